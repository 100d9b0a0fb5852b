"""Algorithms as weights: what a network can express, what it learns, and whether by the same way.

Source: Mind The Gap: Deep Learning Doesn't Learn Deeply (arXiv 2505.18623).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from scipy.stats import pearsonr

from polypath.errors import InputError
from polypath.graphs import Adjacency, read_edges
from polypath.graphs.compilation.reasoner import Feedback
from polypath.recipes.reasoning import Reasoning, on_algorithm
from polypath.recipes.reasoning_reports import (
    EXACT,
    HINTS,
    LONGER,
    PLAIN,
    SILENT,
    WARM,
    drift_table,
    figures,
    hints_table,
    networks_table,
    of,
    states_table,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, judge
from polypath.training import distribution
from polypath.training.algorithms import REPORTED, AlgorithmTraining
from polypath.training.checkpoint import save_state
from polypath.training.run import Run

DOMAIN = "graphs"
PAPER = "Mind The Gap (2025)"
BFS, FORD, DFS = "bfs", "bellman-ford", "dfs"


@dataclass(frozen=True)
class Config:
    """What is trained on small graphs, and tested on larger ones."""

    seeds: int = 3
    """How many times every network is trained."""
    data: Path | None = None
    """A file of edges, two names a line; networks are tested on neighbourhoods of this graph
    instead of random graphs."""
    hidden: int = 32
    """Width of the trained networks."""
    batch: int = 16
    """Graphs in a batch, all of one size."""
    smallest: int = 4
    """Nodes of the smallest graphs to train on."""
    largest: int = 10
    """Nodes of the largest."""
    test_nodes: int = 24
    """Nodes of the graphs to test on."""
    test_graphs: int = 32
    """How many of these; networks are also tested on as many smaller ones."""
    probability: float = 0.5
    """Of an edge in a random graph."""
    bfs_steps: int = 300
    """Optimiser steps on breadth-first search."""
    bellman_ford_steps: int = 800
    """On Bellman-Ford."""
    dfs_steps: int = 400
    """On depth-first search."""
    longer: int = 3
    """One more network learns depth-first search for so many times as long."""
    rate: float = 1e-3
    """Learning rate."""
    feedback: Feedback = "soft"
    """What networks read of their own hints in training; both kinds are tested."""
    device: Literal["auto", "cpu", "cuda"] = "cpu"
    """Where networks are trained; small ones are as fast on a CPU."""
    workers: int = 0
    """Networks trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        least = {"hidden": 18, "smallest": 2, "test_nodes": 2, "test_graphs": 4}
        counts = ("seeds", "batch", "bfs_steps", "bellman_ford_steps", "dfs_steps", "longer")
        for name in (*least, *counts):
            if getattr(self, name) < least.get(name, 1):
                raise InputError(
                    f"{name}={getattr(self, name)}; at least {least.get(name, 1)} is needed"
                )
        if self.hidden % 2:
            raise InputError(f"hidden={self.hidden}; an even number is right, for two heads")
        if self.largest < self.smallest:
            raise InputError(f"largest={self.largest} is below smallest={self.smallest}")
        if not 0 < self.probability <= 1:
            raise InputError(f"probability={self.probability}; above 0, to 1, is right")
        if not 0 < self.rate < math.inf:
            raise InputError(f"rate={self.rate}; a positive number is right")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "bfs_steps": 40,
        "bellman_ford_steps": 40,
        "dfs_steps": 10,
        "longer": 2,
        "test_nodes": 12,
        "test_graphs": 8,
    },
    # The specification's experiment on one H100; not measured here.
    "gpu": {
        "hidden": 128,
        "batch": 32,
        "largest": 16,
        "test_nodes": 64,
        "bfs_steps": 10_000,
        "bellman_ford_steps": 10_000,
        "dfs_steps": 10_000,
        "device": "auto",
    },
}


def run(config: Config, run: Run) -> Outcome:
    """Train and test every network under every seed; judge the paper's claims."""
    tasks = networks(config, prepare(config, run.folder), run.device)
    reports = max(task.training.steps for task in tasks.values()) // REPORTED
    arms = {arm: partial(on_algorithm, task, reports) for arm, task in tasks.items()}
    facts = trials(arms, config.seeds, reports, run.folder / "networks", config.workers)
    tables = [
        networks_table(facts, config.test_nodes),
        hints_table(facts),
        states_table(facts),
        drift_table(facts),
    ]
    return conclude(run, facts, tables, claims(facts), figures(facts))


def networks(config: Config, source: Path | None, device: str) -> dict[str, Reasoning]:
    """All that is tested, by name."""
    steps = {BFS: config.bfs_steps, FORD: config.bellman_ford_steps, DFS: config.dfs_steps}
    last = config.test_nodes
    tested = sorted({config.smallest, config.largest, (config.largest + last) // 2, last} - {last})

    def network(
        algorithm: str, start: str = "random", times: int = 1, **changes: bool
    ) -> Reasoning:
        training = AlgorithmTraining(
            times * steps[algorithm],
            config.batch,
            tuple(range(config.smallest, config.largest + 1)),
            config.probability,
            config.rate,
            feedback=config.feedback,
        )
        shape = {"hints": True, "layer_norm": True} | changes
        return Reasoning(
            algorithm,
            start,
            training,
            config.hidden,
            **shape,
            tested=(*(size for size in tested if size < last), last),
            graphs=config.test_graphs,
            source=source,
            device=device,
        )

    found: dict[str, Reasoning] = {}
    for algorithm in steps:
        found |= {
            f"{algorithm}, {EXACT}": network(algorithm, "exact"),
            f"{algorithm}, {HINTS}": network(algorithm),
            f"{algorithm}, {SILENT}": network(algorithm, hints=False),
            f"{algorithm}, {WARM}": network(algorithm, "compiled", layer_norm=False),
        }
        if algorithm != DFS:
            found[f"{algorithm}, {PLAIN}"] = network(algorithm, layer_norm=False)
    return found | {f"{DFS}, {LONGER}": network(DFS, times=config.longer)}


def prepare(config: Config, folder: Path) -> Path | None:
    """Keep the user's graph where every process finds it."""
    if config.data is None:
        return None
    path = folder / "graph.safetensors"
    if distribution.is_main() and not path.exists():
        graph = Adjacency.of(read_edges(config.data))
        save_state(path, {"edge_index": graph.edge_index}, {"nodes": graph.num_nodes})
    distribution.wait()
    return path


def correlation(x: list[float], y: list[float]) -> float:
    """Pearson's; NaN where one is constant."""
    if len(set(x)) == 1 or len(set(y)) == 1:
        return math.nan
    return float(pearsonr(x, y).statistic)


def claims(facts: Mapping[str, list[Facts]]) -> list[Claim]:
    """What the paper and the specification's experiment say, seed by seed."""
    seeds = len(next(iter(facts.values())))
    none = [0.0] * seeds
    right = {arm: of(own, "output") for arm, own in facts.items()}
    trained = {name: right[f"{name}, {HINTS}"] for name in (BFS, FORD, DFS)}
    alike = {name: of(facts[f"{name}, {HINTS}"], "overlap") for name in (BFS, FORD, DFS)}
    exact = [
        min(
            one["feedback"][mode][measure]
            for name in (BFS, FORD, DFS)
            for one in [facts[f"{name}, {EXACT}"][seed]]
            for mode in ("soft", "hard")
            for measure in ("output", "joint")
        )
        for seed in range(seeds)
    ]
    learnt = [arm for arm in facts if not arm.endswith((EXACT, WARM))]
    among = [
        correlation(
            [right[arm][seed] for arm in learnt],
            [of(facts[arm], "overlap")[seed] for arm in learnt],
        )
        for seed in range(seeds)
    ]
    within = [
        correlation(one["graphs"]["accuracy"], one["graphs"]["overlap"])
        for one in facts[f"{FORD}, {HINTS}"]
    ]
    experiment = "the specification's experiment"
    learnability = f"{PAPER}, NC-learnability: DFS is ineffective"

    def below(what: str, source: str, values: list[float], threshold: float) -> Claim:
        return judge(what, source, f"{threshold:g}", values, none, threshold=threshold)

    def above(what: str, source: str, values: list[float], threshold: float) -> Claim:
        return judge(what, source, f"{threshold:g}", values, none, "higher", threshold)

    return [
        above(
            "Compiled networks are exact: all three, every step, soft and hard feedback (the least "
            "share of right predecessors and steps, above 0.999)",
            f"{PAPER}, neural compilation",
            exact,
            0.999,
        ),
        above("BFS is learnt (right predecessors, at least 0.9)", experiment, trained[BFS], 0.9),
        below("DFS is not (right predecessors, at most 0.6)", learnability, trained[DFS], 0.6),
        below(
            "Nor is it in longer training (right predecessors, at most 0.6)",
            "a control",
            right[f"{DFS}, {LONGER}"],
            0.6,
        ),
        below(
            "Nor without hints (right predecessors, at most 0.6)",
            "a control",
            right[f"{DFS}, {SILENT}"],
            0.6,
        ),
        judge(
            "Bellman-Ford is in between: below BFS (right predecessors, difference)",
            f"{PAPER}, Bellman-Ford is intermediate",
            f"{BFS}, {HINTS}",
            trained[FORD],
            trained[BFS],
        ),
        judge(
            "And above DFS (right predecessors, difference)",
            f"{PAPER}, Bellman-Ford is intermediate",
            f"{DFS}, {HINTS}",
            trained[FORD],
            trained[DFS],
            "higher",
        ),
        below(
            "BFS is not learnt as it is compiled (likeness of attention, at most 0.8)",
            f"{PAPER}, mechanistic gap",
            alike[BFS],
            0.8,
        ),
        below(
            "Nor where choices of the same effect count as one (likeness, at most 0.8)",
            f"{PAPER}, mechanistic gap; ties credited",
            of(facts[f"{BFS}, {HINTS}"], "credited"),
            0.8,
        ),
        judge(
            "Bellman-Ford has a mechanistic gap too (accuracy less likeness)",
            f"{PAPER}, mechanistic gap",
            "likeness of attention",
            trained[FORD],
            alike[FORD],
            "higher",
        ),
        below(
            "Accuracy and faithfulness are not strongly correlated (size of the correlation over "
            "trained networks, at most 0.7)",
            f"{PAPER}, abstract of the second version",
            [abs(value) for value in among],
            0.7,
        ),
        below(
            "Nor over graphs (size of the correlation for Bellman-Ford, at most 0.5)",
            f"{PAPER}, abstract of the second version",
            [abs(value) for value in within],
            0.5,
        ),
        judge(
            "Training leaves compiled Bellman-Ford (right predecessors after, difference)",
            "this project's question",
            f"{FORD}, {EXACT}",
            right[f"{FORD}, {WARM}"],
            right[f"{FORD}, {EXACT}"],
        ),
    ]
