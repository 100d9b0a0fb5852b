"""NBFNet: Bellman-Ford whose sums and products are learnt, from one source node a query.

The state of a node answers for a pair, the query's head and that node; no parameter belongs to a
node, so a model runs on any graph with the same types of edges.

Shapes: N nodes, E edges, R types of edges, B queries, D width, K candidates, P pairs.
Source: Neural Bellman-Ford Networks (Zhu et al. 2021), and the authors' code: residuals, layer
norm, degree scalers, both directions of an undirected pair averaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.nbfnet.config import NBFNetConfig
from polypath.graphs.nbfnet.layer import ByDegree, Layer, Sources, compiled
from polypath.graphs.nbfnet.rows import Step, at_heads, plan
from polypath.graphs.passing import Incoming

STATES, QUERIES = 1 << 21, 16
"""Queries go through the layers together: as many as have so many numbers in their states, which
stay in the cache then, but so many at least, which share what is read of the graph."""


class NBFNet(nn.Module):
    """Scores of tails for queries (head, relation), and of the pairs of an undirected graph."""

    def __init__(self, config: NBFNetConfig) -> None:
        super().__init__()
        self.config = config
        self.query = nn.Embedding(config.num_types, config.dim)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        width = 2 * config.dim
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(
        self,
        graph: Any,
        heads: Tensor,
        relations: Tensor,
        tails: Tensor | None = None,
        weights: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(B, K): the logits of tails (B, K) int64, or (B, N) those of all nodes.

        graph: `Incoming` edges, or what they are made of. heads, relations: (B,) int64.
        weights: of each layer, (E,) in the order of the graph's own edges; messages times these,
        which are all in memory then.
        Raises InputError for ids that the graph or the model does not have.
        """
        edges = self._edges(graph)
        if tails is None:
            tails = torch.arange(edges.num_nodes, device=heads.device).expand(len(heads), -1)
        for name, ids, count in (
            ("heads", heads, edges.num_nodes),
            ("relations", relations, self.config.num_types),
            ("tails", tails, edges.num_nodes),
        ):
            _check(name, ids, count)
        queries = torch.arange(len(heads), device=heads.device)[:, None].expand_as(tails)
        pairs = torch.stack([queries.flatten(), tails.flatten()])
        features = self.features(edges, heads, relations, pairs, weights)
        return self.mlp(features).view(tails.shape)

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(P,): the logits of undirected pairs (2, P), the same for both orders; `LinkPredictor`.

        Each node is asked once for all of its pairs, and the features of both ends are averaged.
        The graph is given self-loops. x is not read.
        Raises InputError where the model knows several types of edges.
        """
        if self.config.num_types != 1:
            raise InputError(
                f"NBFNet: a model of {self.config.num_types} types of edges scores tails of "
                "queries; num_types=1 scores pairs"
            )
        check_pairs(pairs, graph.num_nodes)
        heads, queries = pairs.flatten().unique(return_inverse=True)
        asked = torch.stack([queries, pairs.flip(0).flatten()])
        features = self.features(with_loops(graph), heads, torch.zeros_like(heads), asked)
        return self.mlp(features.view(2, -1, features.shape[1]).mean(0))[:, 0]

    def features(
        self,
        edges: Incoming,
        heads: Tensor,
        relations: Tensor,
        pairs: Tensor,
        weights: Sequence[Tensor] | None = None,
    ) -> Tensor:
        """(P, 2 D): the last states of pairs beside their queries' embeddings.

        pairs: (2, P) int64, of a query 0 … B - 1 and a node.
        """
        if weights is not None and len(weights) != len(self.layers):
            raise InputError(
                f"NBFNet: weights of {len(weights)} layers; there are {len(self.layers)}"
            )
        graph, asked = ByDegree.of(edges), self.query(relations)
        nodes, heads = graph.place[pairs[1]], graph.place[heads]
        size = max(QUERIES, STATES // max(edges.num_nodes * self.config.dim, 1))
        backgrounds = self._backgrounds(graph, asked, weights)
        found, places = [asked[:0]], [pairs[0][:0]]
        for low in range(0, len(heads), size):
            own = ((pairs[0] >= low) & (pairs[0] < low + size)).nonzero()[:, 0]
            sources = Sources(heads[low : low + size], asked[low : low + size])
            wanted = nodes[own] * len(sources.heads) + pairs[0][own] - low
            found.append(self._states(graph, sources, wanted, backgrounds, weights))
            places.append(own)
        order = torch.cat(places).argsort()
        return torch.cat([torch.cat(found)[order], asked[pairs[0]]], 1)

    def _backgrounds(
        self, graph: ByDegree, asked: Tensor, weights: Sequence[Tensor] | None
    ) -> list[Tensor]:
        """(N, D) before the first layer and after each of which one background is all queries'."""
        total = graph.edges.num_nodes
        found = [asked.new_zeros(total, self.config.dim)]
        if weights is not None or not compiled(self.config, asked.device):
            return found
        # Before the first layer all but heads are 0, and so is what they send as factors.
        count = self.config.message == "distmult" if self.config.dependent else len(self.layers)
        once, nowhere = Step.all(total, 1), Sources.nowhere(asked)
        for layer in list(self.layers)[: int(count)]:
            found.append(layer(graph, once.states(found[-1], found[-1], 1), nowhere, once.rows))
        return found

    def _states(
        self,
        graph: ByDegree,
        sources: Sources,
        wanted: Tensor,
        backgrounds: list[Tensor],
        weights: Sequence[Tensor] | None,
    ) -> Tensor:
        """(P, D): the last states of pairs (P,), node · B + query; earlier ones as these need."""
        count, total, depth = len(sources.heads), graph.edges.num_nodes, len(self.layers)
        mask = at_heads(sources.heads, total)
        if weights is None and compiled(self.config, wanted.device):
            need = torch.zeros_like(mask)
            need.view(-1)[wanted] = True
            steps = plan(
                graph.edges, mask, need, [n < len(backgrounds) for n in range(1, depth + 1)]
            )
        else:
            every = Step.all(total, count, wanted.device)
            steps = [Step.of(mask, torch.ones_like(mask)), *[every] * depth]
        rows = sources.states[steps[0].rows.pairs % count]
        states = steps[0].states(rows, backgrounds[0], count)
        for place, layer in enumerate(self.layers, 1):
            given = None if weights is None else weights[place - 1]
            rows = layer(graph, states, sources, steps[place].rows, given)
            states = steps[place].states(rows, backgrounds[min(place, len(backgrounds) - 1)], count)
        return states[wanted]

    def _edges(self, graph: Any) -> Incoming:
        edges = graph if isinstance(graph, Incoming) else Incoming.of(graph)
        known = self.config.num_types
        if edges.num_types > known:
            raise InputError(
                f"NBFNet: a graph with {edges.num_types} types of edges, a model of {known}; a "
                "knowledge graph has two a relation, one of them inverse"
            )
        return replace(edges, num_types=known)


def with_loops(graph: Adjacency) -> Incoming:
    """The edges of an undirected graph, and a self-loop at each node, all of one type."""
    loops = torch.arange(graph.num_nodes, device=graph.nodes.device).expand(2, -1)
    return Incoming.of(torch.cat([graph.edge_index, loops], 1), graph.num_nodes)


def _check(name: str, ids: Tensor, count: int) -> None:
    if ids.dtype != torch.int64:
        raise InputError(f"NBFNet: {name} of {ids.dtype}; torch.int64 is right")
    wrong = ids[(ids < 0) | (ids >= count)]
    if len(wrong):
        raise InputError(f"NBFNet: {name} have {int(wrong[0])}; ids are 0 … {count - 1} here")
