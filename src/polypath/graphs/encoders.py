"""Node encoders: message-passing networks from features, ids or nothing to states of nodes.

Shapes: N nodes, M stored neighbours, F features, D channels.
Source: NCN (Wang et al. 2024), encoder; GCN (Kipf and Welling 2017); GraphSAGE (Hamilton et al.
2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.convolutions import GCNLayer, SAGELayer, greatest_of_neighbours
from polypath.graphs.dropout import dropout
from polypath.graphs.features import Features, features, linear, thinned
from polypath.graphs.products import (
    EdgeWeights,
    mean_of_neighbours,
    ones,
    propagate,
    symmetric,
)

Convolution = Literal["pure-gcn", "pure-sum", "pure-mean", "pure-max", "gcn", "sage"]


@dataclass(frozen=True)
class EncoderConfig:
    """What a `GraphEncoder` is made of.

    inputs: F, or how many ids there are. ids: nodes have an id instead of features, of which an
    orthogonal embedding is learned; where no x is given, each node is its own.
    convolution: "pure-…" has no weights: a linear layer of the input goes before it. layers: 0
    leaves the input's layer alone. dim: D.
    input_dropout: of features. dropout: behind linear layers. edge_dropout: of stored neighbours,
    in each layer anew; those that stay count 1 / (1 - p). tail_dropout: of the output of pure
    convolutions.
    norm: LayerNorm behind convolutions with weights, but the last. residual: adds a layer's input
    where it has the same width. jumping: the output is the sum over layers, times learned scalars.
    """

    inputs: int
    ids: bool = False
    convolution: Convolution = "gcn"
    layers: int = 2
    dim: int = 256
    input_dropout: float = 0.0
    dropout: float = 0.0
    edge_dropout: float = 0.0
    tail_dropout: float = 0.0
    norm: bool = False
    residual: bool = False
    jumping: bool = False

    def __post_init__(self) -> None:
        if self.convolution not in get_args(Convolution):
            raise unknown("convolution", self.convolution, get_args(Convolution))
        if self.inputs < 1 or self.dim < 1 or self.layers < 0:
            raise InputError(
                f"encoder: inputs={self.inputs}, dim={self.dim}, layers={self.layers}; "
                "1, 1 and 0 are the least"
            )
        for name in ("input_dropout", "dropout", "edge_dropout", "tail_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"encoder: {name}={getattr(self, name)}; from 0 to below 1")

    @property
    def pure(self) -> bool:
        return self.convolution.startswith("pure-")


class GraphEncoder(nn.Module):
    """States of nodes from an `EncoderConfig`; takes x (N, F), ids (N,), or None where ids."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        width = config.inputs
        self.embedding: nn.Embedding | None = None
        self.linear: nn.Linear | None = None
        if config.ids:
            self.embedding = nn.Embedding(config.inputs, config.dim)
            nn.init.orthogonal_(self.embedding.weight)
            width = config.dim
        elif config.pure or not config.layers:
            self.linear = nn.Linear(width, config.dim)
            width = config.dim
        weighted = not config.pure
        makes = {"gcn": GCNLayer, "sage": SAGELayer}
        self.layers = nn.ModuleList(
            makes[config.convolution](width if layer == 0 else config.dim, config.dim)
            for layer in range(config.layers if weighted else 0)
        )
        self.norms = nn.ModuleList(
            nn.LayerNorm(config.dim) if config.norm else nn.Identity()
            for _ in range(max(len(self.layers) - 1, 0))
        )
        self.jumps = nn.Parameter(torch.randn(config.layers)) if config.jumping else None

    def forward(
        self, adjacency: Adjacency, x: Tensor | None = None, weights: EdgeWeights | None = None
    ) -> Tensor:
        """(N, D). weights: take the place of the convolution's normalisation.

        Raises InputError for an x that the configuration does not fit.
        """
        h: Any = self._input(adjacency, x)
        states = []
        for layer in range(self.config.layers):
            after = self._convolve(layer, adjacency, h, weights)
            h = after + h if self._residual(h, after) else after
            states.append(h)
        if self.jumps is None or not states:
            return h
        return torch.einsum("l,lnd->nd", self.jumps, torch.stack(states))

    def _residual(self, before: Features, after: Tensor) -> bool:
        return self.config.residual and isinstance(before, Tensor) and before.shape == after.shape

    def _input(self, adjacency: Adjacency, x: Tensor | None) -> Features:
        config = self.config
        _check_input(config, adjacency, x)
        if self.embedding is not None:
            own = self.embedding.weight if x is None else self.embedding(x)
            return dropout(own, config.dropout, self.training)
        given = cast(Tensor, x)
        whole = config.residual and config.inputs == config.dim  # all of x is added to a layer
        h = thinned(given if whole else features(given), config.input_dropout, self.training)
        if self.linear is None:
            return h
        mapped = linear(h, self.linear.weight, self.linear.bias)
        return dropout(mapped, config.dropout, self.training)

    def _convolve(
        self, layer: int, adjacency: Adjacency, h: Any, weights: EdgeWeights | None
    ) -> Tensor:
        config, last = self.config, layer == self.config.layers - 1
        if config.convolution == "pure-max":
            found = self._greatest(adjacency, h, weights)
        else:
            weights = self._weights(adjacency, weights)
            if config.pure:
                found = propagate(adjacency, weights.values, h, weights.own)
            else:
                found = self.layers[layer](adjacency, h, weights)
        if config.pure:
            return dropout(found, config.tail_dropout, self.training) if last else found
        if last:
            return found
        return dropout(self.norms[layer](found), config.dropout, self.training).relu()

    def _weights(self, adjacency: Adjacency, given: EdgeWeights | None) -> EdgeWeights:
        """The given weights, or those of the convolution, with entries dropped in training."""
        values = None if given is None else given.values
        if self.training and self.config.edge_dropout:
            values = ones(adjacency) if values is None else values
            values = dropout(values, self.config.edge_dropout)
        if given is not None:
            return EdgeWeights(cast(Tensor, values), given.own)
        if self.config.convolution in ("pure-gcn", "gcn"):
            return symmetric(adjacency, values)
        if self.config.convolution == "pure-sum":
            return EdgeWeights(ones(adjacency) if values is None else values)
        return mean_of_neighbours(adjacency, values)

    def _greatest(self, adjacency: Adjacency, h: Tensor, weights: EdgeWeights | None) -> Tensor:
        if weights is not None:
            raise InputError("pure-max takes no weights; the other convolutions do")
        share = self.config.edge_dropout
        if self.training and share:
            drawn = torch.rand(len(adjacency.nodes), device=h.device)
            adjacency, h = adjacency.kept(drawn >= share), h / (1 - share)
        return greatest_of_neighbours(adjacency, h)


def _check_input(config: EncoderConfig, adjacency: Adjacency, x: Tensor | None) -> None:
    nodes = adjacency.num_nodes
    if config.ids:
        if x is None:
            if config.inputs != nodes:
                raise InputError(
                    f"encoder: {config.inputs} ids, {nodes} nodes; without x there is one for each"
                )
            return
        if x.shape != (nodes,) or x.dtype != torch.int64:
            raise InputError(
                f"encoder: x {tuple(x.shape)} of {x.dtype}; ids ({nodes},) of torch.int64 are right"
            )
        if nodes and not 0 <= int(x.min()) <= int(x.max()) < config.inputs:
            raise InputError(
                f"encoder: ids from {int(x.min())} to {int(x.max())}; "
                f"0 … {config.inputs - 1} are known"
            )
    elif x is None or x.shape != (nodes, config.inputs) or not x.dtype.is_floating_point:
        told = "none" if x is None else f"{tuple(x.shape)} of {x.dtype}"
        raise InputError(f"encoder: x is {told}; features ({nodes}, {config.inputs}) are right")
