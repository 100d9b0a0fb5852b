"""outcome.json: exact round trips, and one clear line for everything that is not one."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.report import (
    Claim,
    Curves,
    Explorer,
    Flow,
    HeatMap,
    Layer,
    Outcome,
    Passage,
    Paths,
    Series,
    Table,
    Walk,
)

FIGURES = [
    Curves("Loss", "step", "nats", [Series("moe", [1, 2], [0.1, None], [0.05, None], [0.2, None])]),
    HeatMap("Load", ["a"], ["0", "1"], [[0.25, None]], x="expert", y="layer", note="shares"),
    Flow("Flow", ["a", "b"], [[[3, 0.5], [0, 2]]]),
    Paths("Paths", [Walk(["a", "b"], ["r"], 0.5)]),
    Explorer(
        "Explorer", [Passage("p", ["x\n"], ["NAME"], {"a": Layer([[1, 0]], [[0.7, 0.3]], 2)})]
    ),
]
OUTCOME = Outcome(
    recipe="moe-lm",
    commit="2685f17",
    machine={"processor": "two cores", "torch": "2.13.0"},
    seeds=[0, 1],
    seconds=12.5,
    tables=[Table("Arms", ["arm", "loss", "best"], [["moe", 1.25, True], ["dense", None, False]])],
    claims=[
        Claim("lower loss", "§4", "dense", -0.1, [-0.2, -0.05], 2, True),
        Claim("lower still", "§5", "dense", None, None, 1, "undecided"),
    ],
    figures=FIGURES,
)

text = st.text(st.characters(), max_size=20)
number = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def broken(change) -> dict:
    value = json.loads(json.dumps(OUTCOME.to_json()))
    change(value)
    return value


def test_saved_outcome_is_read_back_equal(tmp_path: Path) -> None:
    OUTCOME.save(tmp_path / "outcome.json")
    assert Outcome.read(tmp_path / "outcome.json") == OUTCOME
    assert [path.name for path in tmp_path.iterdir()] == ["outcome.json"]


def test_keys_are_those_of_the_contract() -> None:
    value = OUTCOME.to_json()
    contract = {"recipe", "commit", "machine", "seeds", "tables", "claims"}
    assert value.keys() == contract | {"figures", "seconds"}
    claim = {"claim", "source", "baseline", "measured", "interval", "seeds", "held"}
    assert value["claims"][0].keys() == claim
    assert [figure["kind"] for figure in value["figures"]] == [
        "curves",
        "heatmap",
        "flow",
        "paths",
        "explorer",
    ]


@given(
    title=text,
    cells=st.lists(text | number | st.booleans() | st.integers(), max_size=5),
    values=st.lists(number, max_size=5),
)
def test_any_text_and_number_survives(title, cells, values) -> None:
    columns = [str(i) for i in range(len(cells))]
    axis = [str(i) for i in range(len(values))]
    outcome = replace(
        OUTCOME,
        tables=[Table(title, columns, [cells])],
        figures=[HeatMap(title, [title], axis, [values])],
    )
    assert Outcome.from_json(json.loads(json.dumps(outcome.to_json()))) == outcome


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_become_none(value: float) -> None:
    claim = Claim("c", "s", "b", value, None, 1, False)
    outcome = replace(OUTCOME, claims=[claim])
    stored = json.loads(json.dumps(outcome.to_json(), allow_nan=False))
    assert Outcome.from_json(stored).claims == [replace(claim, measured=None)]


def rename_figure(value: dict) -> None:
    value["figures"][1]["kind"] = "heatmop"


def mistype_mean(value: dict) -> None:
    value["figures"][0]["series"][0]["mean"][1] = "low"


def drop_commit(value: dict) -> None:
    del value["commit"]


def add_field(value: dict) -> None:
    value["claims"][0]["sede"] = 3


def mistype_seeds(value: dict) -> None:
    value["seeds"] = [0.5]


def mistype_held(value: dict) -> None:
    value["claims"][0]["held"] = "yes"


def shorten_tokens(value: dict) -> None:
    value["figures"][4]["passages"][0]["tokens"] = []


def list_machine(value: dict) -> None:
    value["machine"] = ["two cores"]


def shorten_row(value: dict) -> None:
    value["tables"][0]["rows"][1] = ["dense"]


def drop_relation(value: dict) -> None:
    value["figures"][3]["paths"][0]["relations"] = []


def part_paths(value: dict) -> None:
    value["figures"][3]["paths"].append({"nodes": ["a", "c"], "relations": ["r"], "weight": 1})


def drop_transition(value: dict) -> None:
    value["figures"][2]["transitions"] = []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (rename_figure, "figures[1]: unknown kind 'heatmop'; did you mean 'heatmap'?"),
        (mistype_mean, "figures[0].series[0].mean[1]: expected a number, not 'low'"),
        (drop_commit, "outcome: commit missing"),
        (add_field, "claims[0]: unknown field 'sede'; did you mean 'seeds'?"),
        (mistype_seeds, "seeds[0]: expected a whole number, not 0.5"),
        (mistype_held, "claims[0].held: expected one of 'undecided', not 'yes'"),
        (shorten_tokens, "passage 'p': 0 tokens, but 1 kinds"),
        (list_machine, "machine: expected an object, not ['two cores']"),
        (shorten_row, "table 'Arms': row 1 has 1 cells under 3 columns"),
        (drop_relation, "walk 'a b': 0 relations between 2 nodes"),
        (part_paths, "paths 'Paths': they do not join the same two nodes"),
        (drop_transition, "flow 'Flow': 2 layers need 1 matrices between them, not 0"),
    ],
)
def test_wrong_outcomes_get_one_line(change, says: str) -> None:
    with pytest.raises(InputError) as caught:
        Outcome.from_json(broken(change))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "says"),
    [(b'{"recipe": "moe', "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "expected an object")],
)
def test_files_that_hold_no_outcome_get_one_line(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "outcome.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        Outcome.read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_absent_file_gets_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        Outcome.read(tmp_path / "outcome.json")
