"""Message passing over semirings: what a node gathers from the edges that enter it.

A message is h[source] ⊗ value[type of the edge]; a node's messages, and its boundary value as one
more, are put together by ⊕. Edges × width is never in memory.

Shapes: N nodes, E edges, R types of edges, B queries, D width.
Source: NBFNet (Zhu et al. 2021), equations 3 and 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import fused
from polypath.graphs.adjacency import edges_of

Message = Literal["times", "plus", "minimum", "rotate"]
Aggregate = Literal["sum", "max", "min"]


@dataclass(frozen=True, eq=False)
class Incoming:
    """Edges by the node that they enter: those of v are starts[v] … starts[v + 1] - 1.

    starts: (N + 1,) int64. sources, types: (E,) int64. order: (E,) int64, which of the edges of the
    graph each is. num_types: R.
    """

    starts: Tensor
    sources: Tensor
    types: Tensor
    order: Tensor
    num_types: int

    @classmethod
    def of(
        cls,
        graph: Any,
        num_nodes: int | None = None,
        types: Tensor | None = None,
        num_types: int | None = None,
    ) -> Incoming:
        """Of any directed graph, multiple edges and loops as they are.

        types: (E,) int64, else the graph's `edge_type`, else all edges are of type 0.
        Raises InputError for types that do not fit.
        """
        edge_index, num_nodes = edges_of(graph, num_nodes)
        if types is None:
            types = getattr(graph, "edge_type", None)
        if types is None:
            types = torch.zeros_like(edge_index[0])
        if types.shape != edge_index.shape[1:] or types.dtype != torch.int64:
            raise InputError(
                f"edge types {tuple(types.shape)} of {types.dtype}; ({edge_index.shape[1]},) of "
                "torch.int64 is right, one for each edge"
            )
        most = int(types.max()) + 1 if len(types) else 1
        num_types = most if num_types is None else num_types
        if len(types) and (int(types.min()) < 0 or most > num_types):
            wrong = int(types.min()) if int(types.min()) < 0 else most - 1
            raise InputError(f"an edge is of type {wrong}; types are 0 … {num_types - 1} here")
        order = torch.argsort(edge_index[1], stable=True)
        bounds = torch.arange(num_nodes + 1, device=order.device)
        starts = torch.searchsorted(edge_index[1][order], bounds)
        return cls(starts, edge_index[0][order], types[order], order, num_types)

    @property
    def num_nodes(self) -> int:
        return len(self.starts) - 1

    @property
    def targets(self) -> Tensor:
        """(E,) int64, ascending."""
        ids = torch.arange(self.num_nodes, device=self.sources.device)
        return ids.repeat_interleave(self.starts.diff(), output_size=len(self.sources))

    def kept(self, keep: Tensor) -> Incoming:
        """The edges that a mask (E,) bool keeps; the mask is in the order of these lists."""
        counts = torch.cat([keep.new_zeros(1), keep]).cumsum(0)
        return Incoming(
            counts[self.starts],
            self.sources[keep],
            self.types[keep],
            self.order[keep],
            self.num_types,
        )

    def to(self, device: str | torch.device) -> Incoming:
        return Incoming(
            self.starts.to(device),
            self.sources.to(device),
            self.types.to(device),
            self.order.to(device),
            self.num_types,
        )


def pass_messages(
    edges: Incoming,
    h: Tensor,
    values: Tensor,
    boundary: Tensor,
    message: Message = "times",
    aggregate: Aggregate = "sum",
    weights: Tensor | None = None,
) -> Tensor:
    """One round of Bellman-Ford: (N, B, D), boundary ⊕ the messages that enter each node.

    h, boundary: (N, B, D), float32 or float64. values: (R, D), or (R, B, D) where they depend on
    the query. message: ⊗; "rotate" takes the halves of D as real and imaginary parts. weights: (E,)
    in the order of the graph's own edges, multiply messages; they, "rotate", and GPUs without
    Triton, go the way that has all messages in memory. Of equals, the gradient of "max" and "min"
    goes to the boundary, else to the first edge.
    Raises InputError when shapes do not fit together.
    """
    return _gathered(edges, h, values, boundary, message, (aggregate,), weights)[0]


def pass_statistics(
    edges: Incoming,
    h: Tensor,
    values: Tensor,
    boundary: Tensor,
    message: Message = "times",
    weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sum, sum of squares, maximum and minimum of the messages and the boundary, in one pass.

    Arguments and errors as those of `pass_messages`. Source: PNA (Corso et al. 2020).
    """
    given = (edges, h, values, boundary, message)
    total, square, high, low = _gathered(*given, fused.STATISTICS, weights)
    return total, square, high, low


def _gathered(
    edges: Incoming,
    h: Tensor,
    values: Tensor,
    boundary: Tensor,
    message: Message,
    asked: tuple[str, ...],
    weights: Tensor | None,
) -> tuple[Tensor, ...]:
    """What is asked for, on a CPU by compiled loops, on a GPU that has it by Triton."""
    _check(edges, h, values, boundary, weights)
    if weights is None and message != "rotate":
        if h.device.type == "cpu":
            return fused.Gather.apply(edges, h, values, boundary, message, asked)
        if h.device.type == "cuda" and find_spec("triton") is not None:
            from polypath.graphs import gpu

            return gpu.Gather.apply(edges, h, values, boundary, message, asked)
    return reference(edges, h, values, boundary, message, asked, weights)


def messages(
    edges: Incoming, h: Tensor, values: Tensor, message: Message, weights: Tensor | None = None
) -> Tensor:
    """(E, B, D): all messages, in the order of the lists."""
    x = h[edges.sources]
    value = values[edges.types]
    if value.ndim == 2:
        value = value[:, None]
    if message == "times":
        found = x * value
    elif message == "plus":
        found = x + value
    elif message == "minimum":
        found = torch.where(x <= value, x, value)  # of equals, all of the gradient goes to x
    else:
        (a, b), (c, d) = x.chunk(2, -1), value.chunk(2, -1)
        found = torch.cat([a * c - b * d, a * d + b * c], -1)
    return found if weights is None else found * weights[edges.order][:, None, None]


def reference(
    edges: Incoming,
    h: Tensor,
    values: Tensor,
    boundary: Tensor,
    message: Message,
    asked: tuple[str, ...],
    weights: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Some of `fused.STATISTICS` as the equations read, on any device, with all gradients."""
    found = messages(edges, h, values, message, weights)
    of = {
        "sum": lambda: boundary.index_add(0, edges.targets, found),
        "squares": lambda: (boundary * boundary).index_add(0, edges.targets, found * found),
        "max": lambda: _extreme(edges, found, boundary, "amax"),
        "min": lambda: _extreme(edges, found, boundary, "amin"),
    }
    return tuple(of[name]() for name in asked)


def _extreme(edges: Incoming, found: Tensor, boundary: Tensor, reduce: str) -> Tensor:
    """The extreme of messages and boundary; its gradient goes to one of them."""
    targets = edges.targets
    with torch.no_grad():
        index = targets[:, None, None].expand_as(found)
        best = boundary.scatter_reduce(0, index, found, reduce)
        places = torch.arange(len(found), device=found.device)[:, None, None].expand_as(found)
        missed = torch.where(found == best[targets], places, len(found))
        first = torch.full_like(best, len(found), dtype=torch.int64)
        first = first.scatter_reduce(0, index, missed, "amin")
        own = (boundary == best) | (first == len(found))
        first = first.clamp_max(max(len(found) - 1, 0))
    if not len(found):
        return boundary
    return torch.where(own, boundary, found.gather(0, first))


def _check(
    edges: Incoming, h: Tensor, values: Tensor, boundary: Tensor, weights: Tensor | None
) -> None:
    nodes = edges.num_nodes
    fits = (
        h.ndim == 3
        and len(h) == nodes
        and boundary.shape == h.shape
        and values.shape in ((edges.num_types, h.shape[2]), (edges.num_types, *h.shape[1:]))
        and h.dtype == values.dtype == boundary.dtype
        and h.dtype in (torch.float32, torch.float64)
        and (weights is None or weights.shape == edges.sources.shape)
    )
    if not fits:
        told = "" if weights is None else f", weights {tuple(weights.shape)}"
        raise InputError(
            f"message passing: h {tuple(h.shape)} {h.dtype}, values {tuple(values.shape)} "
            f"{values.dtype}, boundary {tuple(boundary.shape)} {boundary.dtype}{told} over {nodes} "
            f"nodes, {len(edges.sources)} edges and {edges.num_types} types; h and boundary are "
            "(N, B, D), values (R, D) or (R, B, D), weights (E,), all float32 or all float64"
        )
