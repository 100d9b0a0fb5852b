"""Bellman-Ford as weights: one head finds the neighbour through which the way is shortest.

This is min-plus message passing with a softmax of high sharpness for the minimum: sums d_j + A_ji
are in what is gathered, so values have to know of edges.
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


def write_bellman_ford(reasoner: Reasoner, nodes: int, sharpness: float, certain: float) -> None:
    """Registers: far, found and own, of which one of the last two is the parent's position; met.

    For weights of at most 1. sharpness: C₂, what a unit of distance is worth in a logit.
    A node hears itself only where it hears no other that is known: its own distance ties with its
    parent's message, and of a tie the mean position would be found. Nothing is lost, as weights are
    not negative and rounds are synchronous. Where a wrong pointer leads is not heard as an edge.
    """
    far, away = sharpness * nodes, 2.0 * max(nodes, 5)  # of the longest way, and more
    wires = Wiring(reasoner, [[[["far", "found", "own", "met"]]]])
    wires.attend(
        0,
        0,
        {"msk": 2 * far, "d": -sharpness},
        edge={"weight": -sharpness, "edge": 4.5 * far, "self": 3 * far},
    )
    shut = {"source": -away, "1": -away}
    wires.channel(0, "far", shut, gathered={"d": 1, "msk": away}, edges={"weight": 1})
    wires.channel(0, "found", shut, gathered={"position": 1, "msk": away})
    wires.channel(0, "own", {"position": 1, "source": away}, gathered={"msk": -away})
    wires.channel(0, "met", gathered={"msk": 1})
    wires.tell("d", {"far": 1})
    wires.tell("msk", {"met": certain, "1": -certain / 2})
    wires.point({"found": 1, "own": 1}, certain * nodes, away)


def bellman_ford_choices(graphs: GraphBatch, trace: Trace) -> Tensor:
    """(T, B, 1, 1, N, N) bool: whom each node may attend to, by step.

    Every node with a way to the source, to the neighbour through which it is shortest; a node
    without one to none, and the source to whom it likes.
    """
    own = torch.eye(graphs.weights.shape[1], dtype=torch.bool, device=graphs.weights.device)
    d, msk = trace.hints["d"][:-1], trace.hints["msk"][:-1]
    known = graphs.edges.mT & msk[:, :, None]
    ways = (d[:, :, None] + graphs.weights.mT).where(known, torch.inf)
    best = F.one_hot(ways.argmin(-1), len(own)).bool() & known
    free = (known | own & msk[:, :, None]) & graphs.starts[..., None]
    return torch.where(graphs.starts[..., None], free, best)[:, :, None, None]
