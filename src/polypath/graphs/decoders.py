"""Small link predictors: an encoder of nodes, and a network on the product of both nodes' states.

Shapes: N nodes, B pairs, D channels.
Source: GCN and MLP of OGB's and HeaRT's baselines (Hu et al. 2020; Li et al. 2023).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.dropout import Dropout
from polypath.graphs.encoders import EncoderConfig, GraphEncoder

PIECE = 1 << 16
"""Pairs at once where no gradient is kept."""


@dataclass(frozen=True)
class ProductMLPConfig:
    """What a `ProductMLP` is made of; layers: linear ones on the product, the last to the logit."""

    encoder: EncoderConfig
    layers: int = 2
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.layers < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"ProductMLP: layers={self.layers}, dropout={self.dropout}; at least 1, and from 0 "
                "to below 1"
            )


class ProductMLP(nn.Module):
    """A network on h_i * h_j; an encoder without layers makes it an MLP on features alone."""

    def __init__(self, config: ProductMLPConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = GraphEncoder(config.encoder)
        dim = config.encoder.dim
        hidden: list[nn.Module] = []
        for _ in range(config.layers - 1):
            hidden += [nn.Linear(dim, dim), nn.ReLU(), Dropout(config.dropout)]
        self.decoder = nn.Sequential(*hidden, nn.Linear(dim, 1))

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,) logits of pairs (2, B), the same in both orders."""
        check_pairs(pairs, graph.num_nodes)
        h = self.encoder(graph, x)
        if torch.is_grad_enabled() or pairs.shape[1] <= PIECE:
            return self._decode(h, pairs)
        return torch.cat([self._decode(h, part) for part in pairs.split(PIECE, 1)])

    def _decode(self, h: Tensor, pairs: Tensor) -> Tensor:
        return self.decoder(h[pairs[0]] * h[pairs[1]])[:, 0]
