"""A network that runs an algorithm, trained or compiled, tested on larger graphs under one seed."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polypath.diagnosis.faithfulness import (
    Agreement,
    attention_agreement,
    linear_cka,
    linear_probe,
    relative_drift,
    trace_accuracy,
)
from polypath.graphs import Adjacency
from polypath.graphs.compilation.algorithms import Trace, find, trace
from polypath.graphs.compilation.batches import GraphBatch, neighbourhoods, random_graphs
from polypath.graphs.compilation.compiled import choices, compiled, shape_for, write
from polypath.graphs.compilation.reasoner import Feedback, Reasoner, Rollout
from polypath.recipes.trials import Facts
from polypath.training.algorithms import REPORTED, AlgorithmTraining, fit_reasoner
from polypath.training.checkpoint import load_state
from polypath.training.parts import Reporter

LOOKS = 10
"""How often a network is looked at while it is trained."""
WATCHED = 8
"""Graphs on which it is looked at; they are not those that it is tested on."""
SHOWN = 10
"""Nodes of the graph whose attention is shown."""


@dataclass(frozen=True)
class Reasoning:
    """What is trained, and on which graphs it is tested.

    start: "random" weights, "compiled" ones that are trained on, or "exact" ones that are not
    trained. tested: sizes of graphs, of which the last is measured in full. graphs: of each size.
    source: a file with a graph whose neighbourhoods are tested, instead of random graphs.
    """

    algorithm: str
    start: str
    training: AlgorithmTraining
    hidden: int
    hints: bool
    layer_norm: bool
    tested: Sequence[int]
    graphs: int
    source: Path | None
    device: str

    def drawn(self, size: int, graphs: int, seed: int) -> tuple[GraphBatch, Trace]:
        """Graphs of one size, and what the algorithm does on them."""
        own, generator = find(self.algorithm), torch.Generator().manual_seed(seed)
        kind = own.directed, own.weighted
        if self.source is None:
            sizes = torch.full((graphs,), size)
            found = random_graphs(sizes, generator, self.training.probability, *kind)
        else:
            tensors, facts = load_state(self.source)
            whole = Adjacency.of(tensors["edge_index"], facts["nodes"])
            found = neighbourhoods(whole, size, graphs, generator, *kind)
        return found, trace(self.algorithm, found)

    def network(self) -> Reasoner:
        """As it is before training."""
        if self.start == "exact":
            return compiled(self.algorithm, max(self.tested))
        shape = shape_for(self.algorithm, self.hidden, layer_norm=self.layer_norm, hints=self.hints)
        network = Reasoner(shape)
        if self.start == "compiled":
            write(network, max(self.tested))
        return network


@dataclass(frozen=True, eq=False)
class Standard:
    """What the compiled network does on graphs, and to whom it may attend."""

    algorithm: str
    graphs: GraphBatch
    wanted: Trace
    rollout: Rollout
    allowed: Tensor

    @classmethod
    def of(cls, task: Reasoning, size: int, graphs: int, seed: int) -> Standard:
        drawn, wanted = task.drawn(size, graphs, seed)
        rollout = rolled(compiled(task.algorithm, max(task.tested)), drawn, wanted, "hard")
        return cls(task.algorithm, drawn, wanted, rollout, choices(task.algorithm, drawn, wanted))

    def agreement(self, own: Rollout, steps: slice, graphs: slice) -> Agreement:
        """How alike attention is in some steps and graphs."""
        part = steps, graphs
        return attention_agreement(
            own.attention[part],
            self.rollout.attention[part],
            self.allowed[part],
            self.wanted.unfinished[part],
        )


def on_algorithm(task: Reasoning, reports: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train a network on small graphs, compare it with the compiled one on larger ones.

    reports: how often the longest of all trainings reports.
    sizes: by size, the share of right predecessors. feedback: by "soft" and "hard", and "single"
    for single precision of what is exact, see `measured`. steps: by step of the algorithm, likeness
    of attention, None where no row counts.
    graphs: accuracy and likeness of each. curve: while it is trained. shown: attention rows of one
    small graph in its second step, of the network and the compiled.
    """
    began = time.perf_counter()
    torch.manual_seed(seed)
    network = task.network()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    last = task.tested[-1]
    watched = Standard.of(task, last, WATCHED, seed + 2_000_000)
    curve: list[dict[str, float]] = []

    def look(step: int) -> None:
        own = rolled(network, watched.graphs, watched.wanted, "soft")
        seen, drift = measured(own, watched), relative_drift(network.state_dict(), start)
        curve.append(
            {"step": step, "accuracy": seen["output"], "overlap": seen["overlap"], "drift": drift}
        )
        network.to(task.device).train()

    losses: list[float] = []
    if task.start != "exact":
        every = max(1, task.training.steps // LOOKS)
        network.to(task.device)
        losses = fit_reasoner(network, task.training, seed, reporter, look, every)
    reporter.skip(reports - len(losses) // REPORTED)
    sizes = {str(size): accuracy(task, network, size, seed) for size in task.tested[:-1]}
    against = Standard.of(task, last, task.graphs, seed + 1_000_000)
    modes: tuple[Feedback, ...] = ("soft", "hard") if network.config.hints else ("soft",)
    done = {mode: rolled(network, against.graphs, against.wanted, mode) for mode in modes}
    found: dict[str, Any] = {mode: measured(own, against) for mode, own in done.items()}
    if task.start == "exact":
        single = compiled(task.algorithm, last, dtype=torch.float32)
        found["single"] = measured(rolled(single, against.graphs, against.wanted, "soft"), against)
    first, own = found["soft"], done["soft"]
    facts = {
        "sizes": sizes | {str(last): first["output"]},
        "feedback": found,
        "steps": by_step(own, against),
        "graphs": by_graph(own, against),
        "states": states(own, against),
        "curve": curve,
        "losses": thinned(losses),
        "shown": shown(task, network, seed),
        "seconds": time.perf_counter() - began,
    }
    return facts, f"{first['output']:.1%} right, attention alike {first['overlap']:.2f}"


@torch.no_grad()
def rolled(network: Reasoner, graphs: GraphBatch, wanted: Trace, feedback: Feedback) -> Rollout:
    """What a network does, on the CPU."""
    return network.cpu().eval()(graphs, wanted.steps, feedback)


def accuracy(task: Reasoning, network: Reasoner, size: int, seed: int) -> float:
    """The share of right predecessors on test graphs of a size."""
    graphs, wanted = task.drawn(size, task.graphs, seed + 1_000_000)
    return trace_accuracy(rolled(network, graphs, wanted, "soft"), graphs, wanted).output


def measured(own: Rollout, against: Standard) -> dict[str, Any]:
    """Accuracy of output and trace, and how alike attention is to the compiled network's."""
    right = trace_accuracy(own, against.graphs, against.wanted)
    agreement = against.agreement(own, slice(None), slice(None))
    return {
        "output": right.output,
        "hints": dict(right.hints),
        "joint": right.joint,
        "followed": right.followed,
        "overlap": agreement.best(),
        "overlap, mean head": agreement.mean(),
        "credited": agreement.best("credited"),
        "cosine": agreement.best("cosine"),
        "argmax": agreement.best("argmax"),
    }


def by_step(own: Rollout, against: Standard) -> list[float | None]:
    """How alike attention is in each step of the algorithm; None where no row counts."""
    found = [
        against.agreement(own, slice(t, t + 1), slice(None)).best()
        for t in range(len(own.attention))
    ]
    return [None if math.isnan(value) else value for value in found]


def by_graph(own: Rollout, against: Standard) -> dict[str, list[float]]:
    """Accuracy and likeness of attention of every graph."""
    right = (own.pi == against.wanted.pi) & against.graphs.nodes
    alike = [against.agreement(own, slice(None), slice(b, b + 1)).best() for b in range(len(right))]
    return {"accuracy": (right.sum(1) / against.graphs.sizes).tolist(), "overlap": alike}


def states(own: Rollout, against: Standard) -> dict[str, float]:
    """CKA of hidden states with the compiled registers, and probes for what they should hold.

    Probes are fitted on one half of the graphs, and tested on the other.
    """
    graphs, wanted = against.graphs, against.wanted
    counted = wanted.unfinished[..., None] & graphs.nodes
    rows = own.hidden[counted]
    half = (torch.arange(len(graphs)) % 2 == 0)[:, None].expand(counted.shape)[counted]
    found = {"CKA": linear_cka(rows, against.rollout.hidden[counted])}
    for name, target in _registers(against.algorithm, graphs, wanted).items():
        probe = linear_probe(rows, target[counted], half)
        found |= {f"probe {name}": probe.score, f"chance {name}": probe.chance}
    return found


def _registers(algorithm: str, graphs: GraphBatch, wanted: Trace) -> dict[str, Tensor]:
    """(T, B, N) each: flags, distances, and the parent's position."""
    after = {name: value[1:] for name, value in wanted.hints.items()}
    places = graphs.positions.expand(after["pi"].shape).gather(-1, after["pi"])
    if algorithm == "bfs":
        return {"reach": after["reach"], "parent": places}
    if algorithm == "bellman-ford":
        return {"reach": after["msk"], "distance": after["d"], "parent": places}
    return {"reach": after["colour"] > 0, "active": after["active"], "parent": places}


def thinned(losses: Sequence[float], points: int = 50) -> list[list[float]]:
    """Steps and mean losses of so many stretches, or of all steps where there are fewer."""
    stretch = max(1, len(losses) // points)
    return [
        [first + stretch, sum(losses[first : first + stretch]) / stretch]
        for first in range(0, len(losses) - stretch + 1, stretch)
    ]


def shown(task: Reasoning, network: Reasoner, seed: int) -> dict[str, list[list[float]]]:
    """Attention of the first layer and head in a small graph's second step, or its first."""
    against = Standard.of(task, SHOWN, 1, seed + 3_000_000)
    own = rolled(network, against.graphs, against.wanted, "soft")
    at = min(1, int(against.wanted.steps) - 1)
    rows = {"network": own, "compiled": against.rollout}
    return {name: value.attention[at, 0, 0, 0].tolist() for name, value in rows.items()}
