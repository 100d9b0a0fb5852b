import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of
from polypath.graphs.compilation import compiled
from polypath.recipes.reasoning import (
    Reasoning,
    Standard,
    by_graph,
    by_step,
    measured,
    on_algorithm,
    rolled,
    states,
    thinned,
)
from polypath.training.algorithms import AlgorithmTraining
from polypath.training.checkpoint import save_state

TRAINING = AlgorithmTraining(steps=10, batch=4, sizes=(4, 5))


def task(algorithm: str, start: str = "random", **changes: Any) -> Reasoning:
    made = Reasoning(
        algorithm, start, TRAINING, 18, True, start == "random", (5, 9), 6, None, "cpu"
    )
    return replace(made, **changes)


class Silent:
    """A reporter that nobody reads."""

    skipped = 0

    def skip(self, steps: int) -> None:
        self.skipped += steps

    def advance(self, loss: float, tokens_per_second: float) -> None: ...

    def stop(self) -> bool:
        return False


@pytest.mark.parametrize("algorithm", ["bfs", "bellman-ford", "dfs"])
def test_what_is_exact_is_seen_as_exact(algorithm: str) -> None:
    reporter = Silent()
    facts, line = on_algorithm(task(algorithm, "exact"), 7, 0, reporter)
    assert reporter.skipped == 7 and line.startswith("100.0% right, attention alike 1.00")
    assert facts["sizes"] == {"5": 1.0, "9": 1.0} and facts["losses"] == facts["curve"] == []
    for mode in ("soft", "hard", "single"):
        seen = facts["feedback"][mode]
        assert seen["output"] == seen["joint"] == 1 and seen["overlap"] == pytest.approx(1)
    assert facts["states"]["CKA"] == pytest.approx(1)
    assert facts["graphs"]["accuracy"] == [1.0] * 6
    assert facts["shown"]["network"] == facts["shown"]["compiled"]
    json.dumps(facts, allow_nan=False)


@pytest.mark.parametrize("algorithm", ["bfs", "bellman-ford"])
def test_a_trained_network_is_looked_at_on_its_way(algorithm: str) -> None:
    facts, _ = on_algorithm(task(algorithm), 0, 1, Silent())
    assert [look["step"] for look in facts["curve"]] == list(range(11))
    assert facts["curve"][0]["drift"] == 0 < facts["curve"][-1]["drift"]
    assert len(facts["losses"]) == 10
    soft = facts["feedback"]["soft"]
    assert soft["output"] == pytest.approx(sum(facts["graphs"]["accuracy"]) / 6)
    assert soft["overlap"] < soft["credited"] + 1e-9 and "single" not in facts["feedback"]
    assert facts["shown"]["network"] != facts["shown"]["compiled"]


def test_a_trial_is_its_seed() -> None:
    short = task("bfs", training=replace(TRAINING, steps=2))
    one, same, other = (on_algorithm(short, 0, seed, Silent())[0] for seed in (1, 1, 2))
    assert one["feedback"] == same["feedback"] and one["losses"] == same["losses"]
    assert one["losses"] != other["losses"] and one["sizes"] != other["sizes"]


def test_without_hints_there_is_no_trace_and_one_kind_of_feedback() -> None:
    facts, _ = on_algorithm(task("bfs", hints=False), 0, 0, Silent())
    assert list(facts["feedback"]) == ["soft"]
    assert facts["feedback"]["soft"]["hints"] == {} and facts["feedback"]["soft"]["joint"] is None


def test_compiled_weights_are_where_training_begins() -> None:
    facts, _ = on_algorithm(task("bellman-ford", "compiled"), 0, 0, Silent())
    assert facts["curve"][0]["accuracy"] == 1 and facts["curve"][0]["overlap"] > 0.999
    assert 0 < facts["curve"][-1]["drift"] < 1e-3


def test_likeness_by_step_and_by_graph_are_parts_of_the_whole() -> None:
    own = task("bfs")
    torch.manual_seed(0)
    against = Standard.of(own, 9, 6, 3)
    rollout = rolled(own.network(), against.graphs, against.wanted, "soft")
    rows = against.allowed.any(-1)[:, :, 0, 0] & against.wanted.unfinished[..., None]
    whole = measured(rollout, against)["overlap"]
    counts = rows.sum((1, 2)).tolist()
    steps = by_step(rollout, against)
    assert len(steps) == len(counts) and None not in steps
    total = sum(value * count for value, count in zip(steps, counts, strict=True) if value)
    assert total / sum(counts) == pytest.approx(whole)
    counts = rows.sum((0, 2)).tolist()
    graphs = by_graph(rollout, against)["overlap"]
    total = sum(value * count for value, count in zip(graphs, counts, strict=True))
    assert total / sum(counts) == pytest.approx(whole)


def test_registers_are_read_from_states_that_hold_them() -> None:
    own = task("bellman-ford")
    against = Standard.of(own, 9, 12, 3)
    rollout = rolled(compiled("bellman-ford", 9), against.graphs, against.wanted, "soft")
    found = states(rollout, against)
    assert found["probe distance"] > 0.999 and found["probe parent"] > 0.999
    blind = rollout._replace(hidden=torch.randn_like(rollout.hidden))
    noise = states(blind, against)
    assert noise["probe distance"] < 0.2 and noise["CKA"] < 0.2
    assert noise["probe reach"] <= noise["chance reach"] + 0.05


def test_losses_are_thinned_to_means() -> None:
    assert thinned([3.0, 1.0], 2) == [[1, 3.0], [2, 1.0]]
    assert thinned([float(n) for n in range(100)], 4)[0] == [25, 12.0]
    assert thinned([]) == []


def test_graphs_are_neighbourhoods_of_a_given_graph(tmp_path: Path) -> None:
    whole = adjacency_of(nx.circular_ladder_graph(30))
    path = tmp_path / "graph.safetensors"
    save_state(path, {"edge_index": whole.edge_index}, {"nodes": whole.num_nodes})
    graphs, wanted = task("bellman-ford", source=path).drawn(9, 5, 0)
    assert graphs.sizes.tolist() == [9] * 5 and int(graphs.edges.sum(-1).max()) <= 3
    assert wanted.hints["msk"][-1].all()  # they are connected
    facts, _ = on_algorithm(task("dfs", "exact", source=path), 0, 0, Silent())
    assert facts["feedback"]["soft"]["joint"] == 1
    assert not math.isnan(facts["states"]["CKA"])
