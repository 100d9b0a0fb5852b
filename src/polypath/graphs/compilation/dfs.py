"""Depth-first search as weights: two rounds of messages in a step, three ReLUs behind each.

In the first every node finds its own next child and the smallest white node; in the second all hear
what the active node found, and each decides whether it is meant.
Shapes: T steps, B graphs, N nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.graphs.compilation.algorithms import WHITE, Trace
from polypath.graphs.compilation.batches import GraphBatch
from polypath.graphs.compilation.reasoner import Reasoner
from polypath.graphs.compilation.wiring import Wiring

AWAY = 10.0
"""More than any sum of a few positions and flags: what shuts a ReLU."""

FIRST = [["has", "next", "own", "parent", "child"], ["free", "first"]]
"""Has a white child, and where; the parent's position as own + parent, and whether there is one;
is any node white, and where the first is."""

SIDES = ["root+", "root-", "next+", "next-", "back+", "back-"]
HEARD = [
    ["active", "has", "place", *SIDES],
    ["free", "first+", "first-", "position", "parent", "child", "done"],
]
"""Of the active node: is there one, has it a child, where is it; differences of positions."""

TESTED = ["next", "root", "back", "first", "active", "free", "place", "position"]
LAST = ["next", "back", "start", "stay", "own", "kept", "found", "child", "done"]


def write_dfs(reasoner: Reasoner, nodes: int, sharpness: float, certain: float) -> None:
    """The state that the trace shows is read from hints; hidden is where the parent is.

    sharpness: c, what a whole unit of position is worth in a logit.
    """
    carried = ["parent", "child", "done"]
    wires = Wiring(
        reasoner,
        [[FIRST, FIRST, FIRST], [HEARD, [TESTED, carried], [LAST]]],
    )
    _find(wires, sharpness)
    _hear(wires, sharpness)
    _test(wires, 2.0 * nodes)
    _move(wires)
    visited = {"next": 1, "start": 1}
    colours = (
        {"colour 0": 1, "next": -1, "start": -1},
        {"colour 1": 1, **visited, "done": -1},
        {"colour 2": 1, "done": 1},
    )
    wires.tell("colour", *({k: certain * v for k, v in form.items()} for form in colours))
    wires.tell("active", {"next": certain, "start": certain, "back": certain, "stay": certain})
    wires.point({"own": 1, "kept": 1, "found": 1}, certain * nodes, AWAY)


def _find(wires: Wiring, sharpness: float) -> None:
    """Every node finds its first white child, and the first white node of all."""
    white = {"colour 0": 4 * sharpness, "position": -sharpness}
    wires.attend(0, 0, white, edge={"edge": 4 * sharpness})
    wires.attend(0, 1, white)
    wires.channel(0, "has", {"1": -1}, gathered={"colour 0": 1}, edges={"edge": 1})
    wires.channel(0, "next", gathered={"position": 1})
    wires.channel(0, "free", gathered={"colour 0": 1})
    wires.channel(0, "first", gathered={"position": 1})
    wires.channel(0, "own", {"own": 1})
    wires.channel(0, "parent", {"kept": 1, "found": 1})
    wires.channel(0, "child", {"child": 1})
    for stage in (1, 2):
        wires.carry(0, stage, *FIRST[0], *FIRST[1])


def _hear(wires: Wiring, sharpness: float) -> None:
    """All hear of the active node; where there is none, "active" is 0 and shuts what it gates."""
    wires.attend(1, 0, {"active": 4 * sharpness})
    wires.channel(1, "active", gathered={"active": 1})
    wires.channel(1, "has", gathered={"has": 1})
    wires.channel(1, "place", gathered={"position": 1})
    parent = {"own": 1.0, "parent": 1.0}
    for sign, side in ((1.0, "+"), (-1.0, "-")):
        own = {"position": -sign}
        heard = {name: sign * factor for name, factor in parent.items()}
        wires.channel(1, f"root{side}", gathered=heard | own)
        wires.channel(1, f"next{side}", own, gathered={"next": sign})
        wires.channel(1, f"back{side}", own, gathered=heard)
        wires.channel(1, f"first{side}", own | {"first": sign})
    for name in ("free", "position", "parent", "child"):
        wires.channel(1, name, {name: 1})
    wires.channel(1, "done", {"active": 1, "has": -1})


def _test(wires: Wiring, inverse: float) -> None:
    """[x = 0] as ReLU(1 - |x| · inverse), shut where it does not matter."""

    def same(name: str, gate: dict[str, float]) -> None:
        form = {f"{name}+": -inverse, f"{name}-": -inverse, "1": 1 + gate.pop("1", 0.0)}
        wires.local(1, 1, name, form | gate)

    # A child of the active node is next; a node without one goes back, unless it is a root.
    same("next", {"active": AWAY, "has": AWAY, "1": -2 * AWAY})
    same("root", {"active": AWAY, "has": -AWAY, "1": -AWAY})
    same("back", {"active": AWAY, "has": -AWAY, "1": -AWAY})
    same("first", {})
    wires.carry(1, 1, "active", "free", "place", "position", "parent", "child", "done")


def _move(wires: Wiring) -> None:
    """Each node decides whether the search comes to it, and who its parent is."""
    wires.carry(1, 2, "next", "done")
    wires.local(1, 2, "back", {"back": 1, "root": -1})
    wires.local(1, 2, "start", {"first": 1, "free": 1, "active": -1, "root": 1, "1": -1})
    wires.local(1, 2, "stay", {"back": 1, "root": 1, "free": -1, "1": -1})  # the last root
    wires.local(1, 2, "own", {"position": 1, "child": -AWAY, "next": -AWAY})
    wires.local(1, 2, "kept", {"parent": 1})
    wires.local(1, 2, "found", {"place": 1, "next": AWAY, "1": -AWAY})
    wires.local(1, 2, "child", {"child": 1, "next": 1})


def dfs_choices(graphs: GraphBatch, trace: Trace) -> Tensor:
    """(T, B, 2, 2, N, N) bool: whom each node may attend to, by step, layer and head.

    Layer 0: its first white child, where it has one; the first white node of all. Layer 1: the
    active node; the other head is free.
    """
    size = graphs.weights.shape[1]
    white = trace.hints["colour"][:-1] == WHITE
    active = trace.hints["active"][:-1]

    def first(candidates: Tensor) -> Tensor:
        return F.one_hot(candidates.int().argmax(-1), size).bool() & candidates

    child = first(graphs.edges & white[:, :, None])
    free = first(white)[:, :, None].expand_as(child)
    heard = active[:, :, None].expand_as(child)
    found = torch.stack([child, free, heard, torch.zeros_like(child)], 2)
    return (found & graphs.nodes[:, None, :, None]).unflatten(2, (2, 2))
