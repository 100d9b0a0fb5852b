"""Networks whose weights are written, not trained, and run an algorithm exactly.

Source: Mind The Gap: Deep Learning Doesn't Learn Deeply (arXiv 2505.18623); the paper's own weights
are not public, these are this project's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.compilation.algorithms import Trace, find
from polypath.graphs.compilation.batches import GraphBatch
from polypath.graphs.compilation.bellman_ford import bellman_ford_choices, write_bellman_ford
from polypath.graphs.compilation.bfs import bfs_choices, write_bfs
from polypath.graphs.compilation.dfs import dfs_choices, write_dfs
from polypath.graphs.compilation.reasoner import Reasoner, ReasonerConfig

CERTAIN = 100.0
"""Logits of what is decoded: large enough for soft feedback to be hard."""

_FLAT = {"hidden": 4, "heads": 1, "layers": 1, "local_layers": 1, "everywhere": False}
SHAPES: dict[str, dict[str, Any]] = {
    "bfs": _FLAT,
    "bellman-ford": _FLAT,
    "dfs": {"hidden": 18, "heads": 2, "layers": 2, "local_layers": 3, "everywhere": True},
}
"""What each algorithm needs; hidden and heads may be more."""
_WRITERS = {"bfs": write_bfs, "bellman-ford": write_bellman_ford, "dfs": write_dfs}
_CHOICES = {"bfs": bfs_choices, "bellman-ford": bellman_ford_choices, "dfs": dfs_choices}


def shape_for(algorithm: str, hidden: int | None = None, **changes: Any) -> ReasonerConfig:
    """The configuration into which an algorithm can be compiled, as wide as it must be or wider.

    changes: of the other fields; `layer_norm=True` makes one to train that cannot be compiled into.
    """
    find(algorithm)
    config = ReasonerConfig(algorithm, **SHAPES[algorithm] | {"layer_norm": False} | changes)
    return config if hidden is None else replace(config, hidden=hidden)


def compiled(
    algorithm: str,
    nodes: int,
    hidden: int | None = None,
    dtype: torch.dtype = torch.float64,
    sharpness: float | None = None,
) -> Reasoner:
    """A network that runs an algorithm exactly on graphs of up to `nodes` nodes.

    Channels that it does not need are 0. Bellman-Ford takes weights of at most 1, of which no two
    ways have the same sum. sharpness: see `write`.
    """
    with torch.device("meta"):  # without drawing weights
        reasoner = Reasoner(shape_for(algorithm, hidden))
    reasoner = reasoner.to_empty(device="cpu").to(dtype).eval()
    with torch.no_grad():
        for parameter in reasoner.parameters():
            parameter.zero_()
    write(reasoner, nodes, sharpness)
    return reasoner


def write(reasoner: Reasoner, nodes: int, sharpness: float | None = None) -> None:
    """Write a reasoner's algorithm into its weights, in place.

    Channels that the algorithm does not need keep their weights, but none that it does need hears
    them, so that training can make use of them later.
    sharpness: how much a logit changes with a unit of position (BFS and DFS; 50 · nodes), or of
    distance (Bellman-Ford; 1e9, in single precision 1e6). From nodes · ln(nodes / ε) on, attention
    of BFS and DFS errs by less than ε; Bellman-Ford averages ways that differ by less than its
    inverse.
    Raises InputError where the reasoner's shape cannot hold the algorithm.
    """
    config = reasoner.config
    if nodes < 1:
        raise InputError(f"compiled {config.algorithm}: nodes={nodes}; at least 1 is needed")
    wanted = SHAPES[config.algorithm] | {"layer_norm": False, "hints": True}
    if config.algorithm != "bfs":
        wanted["edge_values"] = True
    for name, value in wanted.items():
        own = getattr(config, name)
        if own != value and not (name in ("hidden", "heads") and own > value):
            raise InputError(f"compiled {config.algorithm}: {name}={own}; {value} is needed")
    if sharpness is None:
        single = next(reasoner.parameters()).dtype != torch.float64
        sharpness = 50.0 * nodes
        if config.algorithm == "bellman-ford":
            sharpness = 1e6 if single else 1e9
    _WRITERS[config.algorithm](reasoner, nodes, sharpness, CERTAIN)


def choices(algorithm: str, graphs: GraphBatch, trace: Trace) -> Tensor:
    """(T, B, L, H, N, N) bool: whom the compiled network may attend to, by step, layer and head.

    A row without any is arbitrary: nothing depends on it.
    """
    find(algorithm)
    return _CHOICES[algorithm](graphs, trace)
