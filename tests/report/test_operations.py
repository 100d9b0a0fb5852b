from polypath.report.operations import outcome_of
from polypath.report.page import page_of
from polypath.surgery.report import Check, Move, Size, Surgery

DONE = Surgery(
    "merge",
    {"experts": 4.0, "most": None},
    Size(100, 40, 400),
    Size(50, 40, 200),
    [Move("layer 0", "8 experts", "4: 0 ← 2, 3", 0.5), Move("layer 1", "8 experts", "8")],
    [Check("slices sum to the layer", 1e-7, 1e-5), Check("logits stay", 0.1, 1e-5)],
    ["routers keep their rows", "a second note"],
    1.5,
)


def test_a_page_says_what_moved_where_and_how_exact_it_is() -> None:
    outcome = outcome_of(DONE, "checkpoint")
    sizes, moves, checks, settings = outcome.tables
    assert sizes.rows[0] == ["parameters", 100, 50, 0.5]
    assert sizes.note == "Routers keep their rows. A second note."
    assert moves.rows[1] == ["layer 1", "8 experts", "8", None]
    assert [row[-1] for row in checks.rows] == ["yes", "no"]
    assert settings.rows == [["experts", "4.0"], ["most", "None"]]
    page = page_of(outcome)
    for text in ("merge checkpoint", "4: 0 ← 2, 3", "slices sum to the layer", "Routers keep"):
        assert text in page


def test_what_was_not_checked_has_no_table() -> None:
    bare = Surgery("align", {}, Size(1, 1, 4), Size(1, 1, 4), [])
    assert [table.title for table in outcome_of(bare, "it").tables] == [
        "Sizes",
        "What became of what",
        "Settings",
    ]
