"""Layers over neighbours: with weights (GCN, GraphSAGE), and the maximum.

Shapes: N nodes, F inputs, D outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.graphs.adjacency import Adjacency
from polypath.graphs.features import Features, linear
from polypath.graphs.passing import Incoming, pass_messages
from polypath.graphs.products import EdgeWeights, propagate


class GCNLayer(nn.Module):
    """The weighted sum over neighbours of a linear map, and a bias.

    Source: GCN (Kipf and Welling 2017).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, adjacency: Adjacency, h: Features, weights: EdgeWeights) -> Tensor:
        """(N, D) from h (N, F)."""
        return _mapped_sum(adjacency, h, self.weight, weights) + self.bias


class SAGELayer(nn.Module):
    """A linear map of the weighted sum over neighbours, and another of the node itself.

    Source: GraphSAGE (Hamilton et al. 2017).
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.neighbours = nn.Linear(inputs, outputs)
        self.root = nn.Linear(inputs, outputs, bias=False)

    def forward(self, adjacency: Adjacency, h: Features, weights: EdgeWeights) -> Tensor:
        """(N, D) from h (N, F)."""
        found = _mapped_sum(adjacency, h, self.neighbours.weight, weights)
        return found + self.neighbours.bias + linear(h, self.root.weight)


def _mapped_sum(adjacency: Adjacency, h: Features, weight: Tensor, weights: EdgeWeights) -> Tensor:
    """The weighted sum over neighbours of h weight^T; of both sides, the narrower is summed."""
    outputs, inputs = weight.shape
    if isinstance(h, Tensor) and inputs < outputs:
        return F.linear(propagate(adjacency, weights.values, h, weights.own), weight)
    return propagate(adjacency, weights.values, linear(h, weight), weights.own)


def greatest_of_neighbours(adjacency: Adjacency, h: Tensor) -> Tensor:
    """(N, D): the maximum of each channel of h (N, D) over neighbours; 0 without any."""
    kinds = torch.zeros_like(adjacency.nodes)
    places = torch.arange(len(kinds), device=kinds.device)
    edges = Incoming(adjacency.starts, adjacency.nodes, kinds, places, 1)
    least, one = torch.full_like(h, -torch.inf), h.new_ones(1, h.shape[1])
    found = pass_messages(edges, h[:, None], one, least[:, None], aggregate="max")[:, 0]
    return torch.where((adjacency.degrees > 0)[:, None], found, 0)
