"""BFS, Bellman-Ford and DFS with every step on record, over many graphs at once.

Ties go to the smallest index, which is part of the algorithms: it makes their output one function.
Shapes: B graphs, N nodes, T steps.
Source: CLRS-30 (Veličković et al. 2022). Of its DFS hints, discovery and finish times, stack and
probe pointers are left out: colours, parents and the active node say the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.graphs.compilation.batches import GraphBatch

Kind = Literal["mask", "mask_one", "scalar", "categorical", "pointer"]
State = dict[str, Tensor]
WHITE, GREY, BLACK = range(3)


@dataclass(frozen=True)
class Algorithm:
    """What a network is told of an algorithm, and what it has to tell.

    directed: of its graphs. weighted: whether their weights matter. source: whether it has one.
    hints: what its state consists of: "mask" (B, N) bool, "mask_one" the same of one node, "scalar"
    (B, N) float64, "categorical" (B, N) int64 of three classes, "pointer" (B, N) int64.
    """

    name: str
    directed: bool
    weighted: bool
    source: bool
    hints: Mapping[str, Kind]
    start: Callable[[GraphBatch], State]
    step: Callable[[GraphBatch, State], State]


@dataclass(frozen=True, eq=False)
class Trace:
    """An algorithm's states. hints: (T + 1, B, N) each, from the start on; steps: (B,) int64.

    A graph's state stays as it is after its own steps; there is at least one. kinds: of hints.
    """

    hints: State
    steps: Tensor
    kinds: Mapping[str, Kind]

    @property
    def pi(self) -> Tensor:
        """(B, N) int64: the predecessor of each node, itself where it has none."""
        return self.hints["pi"][-1]

    @property
    def unfinished(self) -> Tensor:
        """(T, B) bool: which steps are a graph's own."""
        length = len(self.hints["pi"]) - 1
        return torch.arange(length, device=self.steps.device)[:, None] < self.steps

    def to(self, device: str | torch.device) -> Trace:
        hints = {name: value.to(device) for name, value in self.hints.items()}
        return Trace(hints, self.steps.to(device), self.kinds)


def trace(algorithm: str, graphs: GraphBatch) -> Trace:
    """Run "bfs", "bellman-ford" or "dfs" until nothing changes in any graph.

    BFS: rounds in which all that is reached reaches its neighbours; hints reach and pi.
    Bellman-Ford: rounds of d_v ← min(d_v, d_u + A_uv) on the last round's distances; hints d, msk
    and pi; d is 0 where msk says that nothing is known yet.
    DFS: steps that visit a node or go back; hints colour, active and pi. It restarts from the
    smallest white node in the step that finishes a root, so R roots take 2 N - (R - 1) steps; no
    node is active before the first, the last root is after the last.
    Raises InputError for an unknown name, and for directed graphs where they are to be undirected.
    """
    own = find(algorithm)
    if not own.directed and not bool((graphs.weights == graphs.weights.mT).all()):
        raise InputError(f"{algorithm}: a graph is directed; (B, N, N) weights are symmetric here")
    state = own.start(graphs)
    states, steps = [state], torch.ones_like(graphs.sources)
    while True:
        after = own.step(graphs, state)
        changed = torch.zeros_like(graphs.nodes)
        for name in state:
            changed |= state[name] != after[name]
        moving = changed.any(1)
        if len(states) > 1 and not bool(moving.any()):
            break
        states.append(after)
        steps[moving] = len(states) - 1
        state = after
    hints = {name: torch.stack([one[name] for one in states]) for name in state}
    return Trace(hints, steps, own.hints)


def find(name: str) -> Algorithm:
    """One of ALGORITHMS; InputError with the nearest name where there is none."""
    if name not in ALGORITHMS:
        raise unknown("algorithm", name, ALGORITHMS)
    return ALGORITHMS[name]


def _own(graphs: GraphBatch) -> Tensor:
    """(B, N): every node points to itself."""
    ids = torch.arange(graphs.weights.shape[1], device=graphs.weights.device)
    return ids.expand(graphs.nodes.shape)


def _bfs_start(graphs: GraphBatch) -> State:
    return {"reach": graphs.starts, "pi": _own(graphs)}


def _bfs_step(graphs: GraphBatch, state: State) -> State:
    candidates = graphs.edges & state["reach"][:, None]  # whom a node could be reached from
    new = candidates.any(2) & ~state["reach"]
    return {
        "reach": state["reach"] | new,
        "pi": torch.where(new, candidates.int().argmax(2), state["pi"]),
    }


def _bellman_ford_start(graphs: GraphBatch) -> State:
    return {
        "d": torch.zeros_like(graphs.weights[:, 0]),
        "msk": graphs.starts,
        "pi": _own(graphs),
    }


def _bellman_ford_step(graphs: GraphBatch, state: State) -> State:
    d, msk = state["d"], state["msk"]
    ways = (d[:, None] + graphs.weights.mT).where(graphs.edges.mT & msk[:, None], torch.inf)
    best, parent = ways.min(2)
    better = best < d.where(msk, torch.inf)
    return {
        "d": torch.where(better, best, d),
        "msk": msk | better,
        "pi": torch.where(better, parent, state["pi"]),
    }


def _dfs_start(graphs: GraphBatch) -> State:
    colour = torch.where(graphs.nodes, WHITE, BLACK)  # padding is never visited
    return {"colour": colour, "active": torch.zeros_like(graphs.nodes), "pi": _own(graphs)}


def _dfs_step(graphs: GraphBatch, state: State) -> State:
    colour, active, pi = state["colour"].clone(), state["active"], state["pi"].clone()
    white, some, at = colour == WHITE, active.any(1), active.int().argmax(1)
    rows = torch.arange(len(at), device=at.device)
    children = graphs.edges[rows, at] & white & some[:, None]
    has, child, parent = children.any(1), children.int().argmax(1), pi[rows, at]
    finished = some & ~has
    back = finished & (parent != at)
    start = white.any(1) & ~has & ~back  # nobody is active, or a root is finished
    to = torch.where(has, child, torch.where(start, white.int().argmax(1), parent))
    colour[rows[finished], at[finished]] = BLACK
    colour[rows[has | start], to[has | start]] = GREY
    pi[rows[has], child[has]] = at[has]
    to = torch.where(has | back | start, to, at)  # the last root stays
    return {"colour": colour, "active": F.one_hot(to, active.shape[1]).bool(), "pi": pi}


ALGORITHMS = {
    own.name: own
    for own in (
        Algorithm(
            name="bfs",
            directed=False,
            weighted=False,
            source=True,
            hints={"reach": "mask", "pi": "pointer"},
            start=_bfs_start,
            step=_bfs_step,
        ),
        Algorithm(
            name="bellman-ford",
            directed=False,
            weighted=True,
            source=True,
            hints={"d": "scalar", "msk": "mask", "pi": "pointer"},
            start=_bellman_ford_start,
            step=_bellman_ford_step,
        ),
        Algorithm(
            name="dfs",
            directed=True,
            weighted=False,
            source=False,
            hints={"colour": "categorical", "active": "mask_one", "pi": "pointer"},
            start=_dfs_start,
            step=_dfs_step,
        ),
    )
}
