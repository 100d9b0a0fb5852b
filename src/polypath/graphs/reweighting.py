"""Edges that count more where the present model agrees with them: re-weighted message passing.

Shapes: N nodes, M stored neighbours, D channels, B pairs.
Source: Wang et al. 2024, arXiv 2310.04612, section 5; as the authors' code has it, which adds
to the weights that training began with and softens probabilities, not logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.encoders import GraphEncoder
from polypath.graphs.products import EdgeWeights, propagate

Predict = Callable[[Tensor, Tensor], Tensor]
"""From states of two nodes (B, D) and (B, D) to logits of their link (B,)."""


@dataclass(frozen=True)
class Reweighting:
    """How much edges gain, and when: every `interval` epochs from `warm_up` on.

    alpha: what all entries of a column gain together, as a multiple of their sum.
    """

    alpha: float = 0.1
    interval: int = 50
    warm_up: int = 50

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < math.inf or self.interval < 1 or self.warm_up < 0:
            raise InputError(
                f"reweighting: alpha={self.alpha}, interval={self.interval}, "
                f"warm_up={self.warm_up}; from 0, 1 and 0 on is right"
            )

    def due(self, epoch: int) -> bool:
        """Whether weights are made anew before an epoch, counted from 0."""
        return epoch >= self.warm_up and epoch % self.interval == 0


class ReweightedEncoder(nn.Module):
    """An encoder on one graph whose edges weigh what its own link predictor last made of them.

    base: the weights that training begins with, for the encoder's convolution `symmetric` (GCN) or
    `mean_with_self` (SAGE). The present ones are buffers, so that they are kept with a state. It
    also runs on that graph without some of its edges, which changes no weight of the others.
    """

    values: Tensor
    own: Tensor | None

    def __init__(self, encoder: GraphEncoder, graph: Adjacency, base: EdgeWeights) -> None:
        super().__init__()
        self.encoder, self.graph, self.base = encoder, graph, base
        self.register_buffer("values", base.values.clone())
        self.register_buffer("own", None if base.own is None else base.own.clone())

    def forward(self, adjacency: Adjacency, x: Tensor | None = None) -> Tensor:
        """(N, D). Raises InputError for edges that the graph does not have."""
        values = self.values if adjacency is self.graph else self.values[self._places(adjacency)]
        return self.encoder(adjacency, x, EdgeWeights(values, self.own))

    @torch.no_grad()
    def update(self, alpha: float, predict: Predict, x: Tensor | None = None) -> None:
        """Weigh edges anew from states in evaluation mode, always from the base; no gradient.

        The entry of row r and column c, those of the nodes themselves among them, becomes
        w_rc + α S_rc Σ_r w_rc, with S the softmax over r of the chance of a link between what is
        around c and r.
        """
        was = self.training
        self.eval()
        h = self(self.graph, x)
        self.train(was)
        scores = agreement(self.graph, self.base, h, predict)
        found = strengthened(self.graph, self.base, scores, alpha)
        self.values.copy_(found.values)
        if self.own is not None and found.own is not None:
            self.own.copy_(found.own)

    def _places(self, adjacency: Adjacency) -> Tensor:
        """(M',): where the entries of another graph are in this one."""
        if adjacency.num_nodes != self.graph.num_nodes:
            raise InputError(
                f"a re-weighted encoder of {self.graph.num_nodes} nodes got a graph of "
                f"{adjacency.num_nodes}"
            )
        places = self.graph.places(adjacency.edge_index)
        if (places < 0).any():
            raise InputError(
                "a re-weighted encoder got edges that its graph does not have; it runs on that "
                "graph, or on a part of it"
            )
        return places


def agreement(adjacency: Adjacency, base: EdgeWeights, h: Tensor, predict: Predict) -> EdgeWeights:
    """For entry (r, c): the chance of a link between c's aggregated neighbourhood and r."""
    around = propagate(adjacency, base.values, h, base.own)
    values = predict(around[adjacency.nodes], h[adjacency.sources]).sigmoid()
    return EdgeWeights(values, None if base.own is None else predict(around, h).sigmoid())


def strengthened(
    adjacency: Adjacency, base: EdgeWeights, scores: EdgeWeights, alpha: float
) -> EdgeWeights:
    """The base plus α times the sum of each column, shared out by the softmax of its scores.

    The entry of row r and column c is one of r's stored neighbours, or r's own where r = c.
    """
    shares, sums = softmax_of_columns(adjacency, scores), column_sums(adjacency, base)
    values = base.values + alpha * shares.values * sums[adjacency.nodes]
    if base.own is None or shares.own is None:
        return EdgeWeights(values)
    return EdgeWeights(values, base.own + alpha * shares.own * sums)


def softmax_of_columns(adjacency: Adjacency, scores: EdgeWeights) -> EdgeWeights:
    """exp(s_rc) / Σ_r exp(s_rc), for scores of any size that exp can take, as chances are."""
    powers = EdgeWeights(scores.values.exp(), None if scores.own is None else scores.own.exp())
    sums = column_sums(adjacency, powers)
    values = powers.values / sums[adjacency.nodes]
    return EdgeWeights(values, None if powers.own is None else powers.own / sums)


def column_sums(adjacency: Adjacency, weights: EdgeWeights) -> Tensor:
    """(N,): of all entries that share a column, the nodes' own among them."""
    start = weights.values.new_zeros(adjacency.num_nodes) if weights.own is None else weights.own
    return start.index_add(0, adjacency.nodes, weights.values)
