"""Breadth-first search as weights: one head finds the reached neighbour of the smallest position.

Shapes: T steps, B graphs, N nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.graphs.compilation.algorithms import Trace
from polypath.graphs.compilation.batches import GraphBatch
from polypath.graphs.compilation.reasoner import Reasoner
from polypath.graphs.compilation.wiring import Wiring

AWAY = 10.0
"""More than any sum of a few positions and flags: what shuts a ReLU."""


def write_bfs(reasoner: Reasoner, nodes: int, sharpness: float, certain: float) -> None:
    """Registers: kept, found and own, of which one is the parent's position; and met.

    sharpness: c, what a whole unit of position is worth in a logit.
    """
    wires = Wiring(reasoner, [[[["kept", "found", "own", "met"]]]])
    own = {"edge": 8 * sharpness, "self": 8 * sharpness}  # not where a wrong pointer leads
    wires.attend(0, 0, {"reach": 4 * sharpness, "position": -sharpness}, edge=own)
    wires.channel(
        0,
        "kept",
        {"kept": 1, "found": 1, "own": 1, "reach": AWAY, "source": -AWAY, "1": -AWAY},
    )
    wires.channel(0, "found", {"reach": -AWAY, "1": -AWAY}, gathered={"position": 1, "reach": AWAY})
    wires.channel(0, "own", {"position": 1, "source": AWAY}, gathered={"reach": -AWAY})
    wires.channel(0, "met", gathered={"reach": 1})
    wires.tell("reach", {"met": certain, "1": -certain / 2})
    wires.point({"kept": 1, "found": 1, "own": 1}, certain * nodes, AWAY)


def bfs_choices(graphs: GraphBatch, trace: Trace) -> Tensor:
    """(T, B, 1, 1, N, N) bool: whom each node may attend to, by step.

    A node that is newly reached, to its parent; one that was, to any that was; else to none.
    """
    own = torch.eye(graphs.weights.shape[1], dtype=torch.bool, device=graphs.weights.device)
    before, after = trace.hints["reach"][:-1], trace.hints["reach"][1:]
    reached = (graphs.edges | own) & before[:, :, None]
    parents = F.one_hot(trace.hints["pi"][1:], len(own)).bool()
    any_of = reached & before[..., None]
    return torch.where((after & ~before)[..., None], parents, any_of)[:, :, None, None]
