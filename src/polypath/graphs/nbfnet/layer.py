"""A layer of NBFNet: messages along edges, what a node gathers, and what becomes of it.

Shapes: N nodes, E edges, R types of edges, B queries, D width, M rows (pairs that are computed), S
statistics of a row, U different degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polypath.graphs.nbfnet.config import NBFNetConfig
from polypath.graphs.nbfnet.fused import FusedLayer, Place
from polypath.graphs.nbfnet.rows import Rows, States
from polypath.graphs.passing import Incoming, Message, pass_messages, pass_statistics

OPERATIONS: dict[str, Message] = {"distmult": "times", "transe": "plus", "rotate": "rotate"}


@dataclass(frozen=True, eq=False)
class ByDegree:
    """A graph whose nodes are in the order of their degrees, so that equal ones are neighbours.

    edges: of the renamed nodes. place: (N,) int64, the new name of each node. groups: (N,) int64,
    nodes of one degree are one. scales: (U, 3) float64, 1, s and 1 / s of PNA's degree scalers.
    """

    edges: Incoming
    place: Tensor
    groups: Tensor
    scales: Tensor

    @classmethod
    def of(cls, edges: Incoming) -> ByDegree:
        counts = edges.starts.diff()
        order = counts.argsort(stable=True)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order)).to(order))
        counts = counts[order]
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        moved = (edges.starts[:-1][order] - starts[:-1]).repeat_interleave(counts)
        moved += torch.arange(len(moved), device=moved.device)
        renamed = Incoming(
            starts,
            place[edges.sources[moved]],
            edges.types[moved],
            edges.order[moved],
            edges.num_types,
        )
        degrees, groups = torch.unique_consecutive(counts + 1, return_inverse=True)
        logs = degrees.double().log()
        mean = logs[groups].mean()
        # Where no edge is left, all degrees are the mean one.
        scale = torch.where(mean > 0, logs / mean, torch.ones_like(logs))
        scales = torch.stack([torch.ones_like(scale), scale, 1 / scale.clamp_min(1e-2)], 1)
        return cls(renamed, place, groups, scales)


@dataclass(frozen=True, eq=False)
class Sources:
    """Where each query begins, and what is put there: heads (B,) int64, states (B, D).

    A head of -1 is nowhere.
    """

    heads: Tensor
    states: Tensor

    def boundary(self, nodes: int) -> Tensor:
        """(N, B, D): states at heads, 0 elsewhere."""
        count, dim = self.states.shape
        empty = self.states.new_zeros(nodes, count, dim)
        inside = self.heads >= 0
        place = (self.heads[inside], torch.arange(count, device=self.heads.device)[inside])
        return empty.index_put(place, self.states[inside])

    @classmethod
    def nowhere(cls, states: Tensor) -> Sources:
        """One query that begins nowhere, of states' width."""
        head = torch.full((1,), -1, device=states.device)
        return cls(head, states.new_zeros(1, states.shape[1]))


def compiled(config: NBFNetConfig, device: torch.device) -> bool:
    """Whether layers are compiled: with all that the paper's layers end with, on the CPU."""
    ends = config.layer_norm and config.shortcut and config.activation
    return ends and config.message != "rotate" and device.type == "cpu"


class Layer(nn.Module):
    """One round of Bellman-Ford for all queries.

    combine's columns: the node's own state, then the statistics; of PNA mean, maximum, minimum and
    standard deviation, as they are, times s, and over s, with s the logarithm of a node's degree
    over its mean. On the CPU the scaled ones are never made: nodes of equal degree share a matrix.
    """

    def __init__(self, config: NBFNetConfig) -> None:
        super().__init__()
        dim, types = config.dim, config.num_types
        self.config, self.message = config, OPERATIONS[config.message]
        self.relation = (
            nn.Linear(dim, types * dim) if config.dependent else nn.Embedding(types, dim)
        )
        self.combine = nn.Linear((13 if config.aggregate == "pna" else 2) * dim, dim)
        self.norm = nn.LayerNorm(dim) if config.layer_norm else None

    def forward(
        self,
        graph: ByDegree,
        states: States,
        sources: Sources,
        rows: Rows,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(M, D): the next states of some pairs, from those that they read.

        weights: (E,) of edges, in the order of the graph's own; messages are in memory then.
        """
        values = self.values(sources.states)
        config, norm = self.config, self.norm
        if norm is None or weights is not None or not compiled(config, values.device):
            h = states.rows[states.where].view(graph.edges.num_nodes, len(sources.heads), -1)
            return self.plain(graph, h, sources, values, weights).flatten(0, 1)[rows.pairs]
        place = Place(
            graph.edges,
            rows,
            states.where,
            sources.heads,
            graph.groups if config.aggregate == "pna" else torch.zeros_like(graph.groups),
            self.message,
            config.aggregate,
            norm.eps,
        )
        ends = (self.combine.bias, norm.weight, norm.bias)
        matrices = self.matrices(graph)
        return FusedLayer.apply(place, states.rows, values, sources.states, matrices, *ends)

    def values(self, queries: Tensor) -> Tensor:
        """(R, B, D), or (R, D) where they do not depend on the query."""
        if isinstance(self.relation, nn.Embedding):
            return self.relation.weight
        return self.relation(queries).view(len(queries), self.config.num_types, -1).transpose(0, 1)

    def matrices(self, graph: ByDegree) -> Tensor:
        """(U, (1 + S) D, D): what own state and statistics are multiplied by at each degree."""
        weight, dim = self.combine.weight, self.config.dim
        if self.config.aggregate != "pna":
            return weight.T[None]
        own, scaled = weight[:, :dim].T, weight[:, dim:].view(dim, 3, 4 * dim)
        gathered = torch.einsum("us,osi->uio", graph.scales.to(weight), scaled)
        return torch.cat([own.expand(len(gathered), -1, -1), gathered], 1)

    def plain(
        self,
        graph: ByDegree,
        h: Tensor,
        sources: Sources,
        values: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(N, B, D): all next states as the equations read, on any device."""
        found = self.statistics(graph, h, sources, values, weights)
        if self.config.aggregate == "pna":
            scales = graph.scales.to(h)[graph.groups][:, None, :, None]
            found = (scales * found[:, :, None]).flatten(2)
        z = self.combine(torch.cat([h, found], 2))
        z = z if self.norm is None else self.norm(z)
        z = z.relu() if self.config.activation else z
        return z + h if self.config.shortcut else z

    def statistics(
        self,
        graph: ByDegree,
        h: Tensor,
        sources: Sources,
        values: Tensor,
        weights: Tensor | None = None,
    ) -> Tensor:
        """(N, B, S · D): what each node gathers from its messages and its boundary."""
        edges, boundary = graph.edges, sources.boundary(len(h))
        given = (edges, h, values, boundary, self.message)
        degrees = (edges.starts.diff() + 1).to(h)[:, None, None]
        if self.config.aggregate == "pna":
            total, square, high, low = pass_statistics(*given, weights)
            mean = total / degrees
            deviation = (square / degrees - mean * mean).clamp_min(1e-6).sqrt()
            return torch.cat([mean, high, low, deviation], -1)
        found = pass_messages(*given, "max" if self.config.aggregate == "max" else "sum", weights)
        return found / degrees if self.config.aggregate == "mean" else found
