import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polypath.errors import InputError
from polypath.plain import decode, encode
from polypath.recipes.neural_compilation import (
    PRESETS,
    Config,
    claims,
    correlation,
    networks,
    prepare,
)
from polypath.recipes.reasoning_reports import (
    drift_table,
    figures,
    hints_table,
    networks_table,
    states_table,
)
from polypath.report.outcome import Held
from recipe_runs import first_column, outcome_of

ARMS = [
    *(
        f"{algorithm}, {kind}"
        for algorithm in ("bfs", "bellman-ford")
        for kind in (
            "compiled",
            "with hints",
            "without hints",
            "from compiled",
            "without LayerNorm",
        )
    ),
    "dfs, compiled",
    "dfs, with hints",
    "dfs, without hints",
    "dfs, from compiled",
    "dfs, trained longer",
]


def test_networks_of_an_algorithm_differ_in_what_is_named() -> None:
    config = Config(dfs_steps=7, longer=4)
    found = networks(config, None, "cpu")
    assert list(found) == ARMS
    assert found["dfs, trained longer"].training.steps == 28
    assert found["dfs, with hints"].training.steps == 7
    for arm, task in found.items():
        assert task.tested == (4, 10, 17, 24)
        assert task.layer_norm == (not arm.endswith(("from compiled", "without LayerNorm")))
        assert task.hints == (not arm.endswith("without hints"))
        assert task.training.sizes == tuple(range(4, 11))
    starts = {arm: task.start for arm, task in found.items() if task.start != "random"}
    assert set(starts.values()) == {"exact", "compiled"} and len(starts) == 6
    quick = Config(**PRESETS["quick"], largest=30)
    assert networks(quick, None, "cpu")["bfs, with hints"].tested == (4, 12)


def test_a_graph_of_the_user_is_kept_once(tmp_path: Path) -> None:
    assert prepare(Config(), tmp_path) is None
    edges = tmp_path / "edges.txt"
    edges.write_text("a b\nb c\n")
    path = prepare(Config(data=edges), tmp_path)
    assert path is not None and path.exists()
    edges.unlink()
    assert prepare(Config(data=edges), tmp_path) == path


def test_correlations() -> None:
    assert correlation([1.0, 2.0, 4.0], [3.0, 5.0, 9.0]) == pytest.approx(1)
    assert math.isnan(correlation([1.0, 1.0], [0.0, 1.0]))


RIGHT = {
    "bfs, with hints": (0.97, 0.5),
    "bellman-ford, with hints": (0.85, 0.6),
    "dfs, with hints": (0.3, 0.6),
    "bfs, without hints": (0.95, 0.2),
    "bellman-ford, from compiled": (0.7, 0.8),
}


def facts_of(changes: Mapping[str, tuple[float, float]], seed: int) -> dict[str, Any]:
    """What a seed might have measured: accuracy and likeness by arm."""
    found = {}
    for arm in ARMS:
        values = (1.0, 1.0) if "compiled" in arm else (0.4, 0.3)
        output, overlap = (RIGHT | changes).get(arm, values)
        noise = 0.0 if arm.endswith(", compiled") else 0.002 * seed
        seen = {
            "output": output - noise,
            "hints": {"pi": output},
            "joint": None if "without hints" in arm else output,
            "followed": 0.5,
            "overlap": overlap + noise,
            "credited": overlap + 0.1 + noise,
            "cosine": 0.5,
            "argmax": 0.5,
        }
        look = {"step": 0, "accuracy": output, "overlap": overlap, "drift": 0.25}
        exact = arm.endswith(", compiled")
        found[arm] = {
            "feedback": dict.fromkeys(("soft", "hard"), seen),
            "graphs": {
                "accuracy": [0.5, 0.6, 0.5, 0.6, 0.7],
                "overlap": [0.3, 0.3, 0.4, 0.4 - noise, 0.35],
            },
            "sizes": {"4": 1.0, "24": output},
            "steps": [0.5, None, 0.25][: 2 + seed % 2],
            "states": {"CKA": 0.5, "probe reach": 0.9, "chance reach": 0.6},
            "curve": [] if exact else [look, look | {"step": 9, "accuracy": 0.1}],
            "losses": [] if exact else [[5, 2.0], [10, 1.0]],
            "shown": {"network": [[0.5, 0.5], [1.0, 0.0]], "compiled": [[1.0, 0.0], [1.0, 0.0]]},
        }
    return found


def gathered(changes: Mapping[str, tuple[float, float]] | None = None) -> dict[str, list]:
    every = [facts_of(changes or {}, seed) for seed in range(3)]
    return {arm: [one[arm] for one in every] for arm in ARMS}


def judged(changes: Mapping[str, tuple[float, float]] | None = None) -> list[Held]:
    return [claim.held for claim in claims(gathered(changes))]


def test_claims_follow_what_was_measured() -> None:
    assert judged() == [True] * 13
    assert judged({"dfs, compiled": (0.99, 1.0)})[0] is False
    learnt = judged({"dfs, with hints": (0.9, 0.9), "dfs, trained longer": (0.95, 0.9)})
    assert learnt[2] is learnt[3] is learnt[6] is False and learnt[4] is True
    faithful = judged({"bfs, with hints": (1.0, 0.95)})
    assert faithful[7] is faithful[8] is False
    assert judged({"bellman-ford, from compiled": (1.0, 1.0)})[12] is not False
    alike = {arm: (0.1 * n, 0.09 * n) for n, arm in enumerate(ARMS) if "compiled" not in arm}
    assert judged(alike)[10] is False


def test_tables_and_figures_hold_every_network() -> None:
    facts = gathered()
    table = networks_table(facts, 24)
    assert [row[0] for row in table.rows] == ARMS
    row = dict(zip(table.columns, table.rows[ARMS.index("bfs, with hints")], strict=True))
    assert row["trainability gap"] == pytest.approx(1 - 0.968)
    assert row["mechanistic gap"] == pytest.approx(0.968 - 0.502)
    assert table.rows[ARMS.index("bfs, without hints")][2] is None
    assert [row[1] for row in hints_table(facts).rows[:2]] == ["predecessor", "pi"]
    assert states_table(facts).rows[0] == ["bfs, compiled", "reach", 0.9, 0.6, 0.5]
    assert [row[2] for row in drift_table(facts).rows] == pytest.approx([0.1] * 3)
    drawn = figures(facts)
    assert len(drawn) == 3 * 5 + 1
    by_step = drawn[1]
    assert by_step.kind == "curves" and by_step.series[1].mean == [0.5, None]
    maps = drawn[-1]
    assert maps.kind == "heatmaps" and len(maps.maps) == 6


def test_a_configuration_is_kept_as_it_is() -> None:
    for preset in ({}, *PRESETS.values()):
        config = Config(**preset)
        assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"hidden": 16}, "hidden=16; at least 18"),
        ({"hidden": 19}, "an even number"),
        ({"largest": 3}, "largest=3 is below smallest=4"),
        ({"test_graphs": 3}, "test_graphs=3; at least 4"),
        ({"longer": 0}, "longer=0"),
        ({"probability": 0.0}, "probability=0.0"),
        ({"rate": math.inf}, "rate=inf"),
    ],
)
def test_bad_settings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    edges = tmp_path / "ladder.txt"
    edges.write_text("".join(f"{n} {n + 1}\n{n} {n + 30}\n{n + 30} {n + 31}\n" for n in range(29)))
    steps = ["--bfs-steps", "20", "--bellman-ford-steps", "20", "--dfs-steps", "3", "--longer", "2"]
    small = ["--test-nodes", "8", "--test-graphs", "4", "--seeds", "2", "--largest", "6"]
    outcome = outcome_of(
        tmp_path / "run", "run neural-compilation", *steps, *small, "--data", str(edges)
    )
    assert first_column(outcome, 0) == ARMS
    assert outcome["claims"][0]["held"] is True
    assert len(outcome["claims"]) == 13 and len(outcome["figures"]) == 16
