"""A router apart from the layers: it reads token ids alone, and one choice serves every layer."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing.context import RoutingContext
from polypath.routing.scorers import routing_dtype


class PregatingScorer(nn.Module):
    """Scores from a causal transformer of one layer over token ids; the things are not read.

    Layers share it: the scores of a pass are computed once. While a model generates, it remembers
    keys and values beside the host's cache.
    vocabulary: V, ids are in 0..V - 1. width: of embedding, features and MLP. heads: of attention.
    Needs `tokens`, and `shape` (batch, length), in the context. Padding is not read.
    Source: Read-ME (Cai et al. 2024), table of the router; released code: two matrices in the MLP,
    attention scores that are not divided by √W.
    """

    def __init__(self, vocabulary: int, num_experts: int, width: int = 512, heads: int = 4) -> None:
        super().__init__()
        if width % (2 * heads):
            raise InputError(f"PregatingScorer: width={width} must be a multiple of 2 · {heads}")
        self.heads = heads
        self.embedding = nn.Embedding(vocabulary, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.leave = nn.Linear(width, num_experts)
        for module in (self.q, self.k, self.v, self.o, self.up, self.down, self.leave):
            nn.init.kaiming_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        self._known: tuple[Tensor, bool, Tensor] | None = None

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        """x (T, D), of which only the dtype matters, to scores (T, E)."""
        tokens = context.need("tokens", "PregatingScorer")
        graph = torch.is_grad_enabled()
        if self._known is None or self._known[0] is not tokens or self._known[1] != graph:
            self._known = (tokens, graph, self._scores(tokens, context))
        return self._known[2].to(routing_dtype(x))

    def _scores(self, tokens: Tensor, context: RoutingContext) -> Tensor:
        batch, length = context.need("shape", "PregatingScorer")
        ids = tokens.view(batch, length)
        places, mask = context.positions, context.mask
        scores = self.decide(
            ids,
            None if places is None else places.view(batch, length),
            None if mask is None else mask.view(batch, length),
            context.remember,
        )
        return scores.flatten(0, 1)

    def decide(
        self,
        ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        remember: Any = None,
    ) -> Tensor:
        """Token ids (B, N) int64 to scores (B, N, E), float32 or float64 as the router is.

        positions: (B, N), from 0 by default. mask: (B, N) bool, False for padding. remember: see
        `RoutingContext`.
        """
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
        h = self.embedding(ids)
        h = h.to(routing_dtype(h))
        h = h + self._attention(_norm(self.norms[0], h), positions, mask, remember)
        h = h + _linear(self.down, F.silu(_linear(self.up, _norm(self.norms[1], h))))
        return _linear(self.leave, _norm(self.norms[2], h))

    def _attention(
        self, h: Tensor, positions: Tensor, mask: Tensor | None, remember: Any
    ) -> Tensor:
        q, k, v = (_linear(part, h) for part in (self.q, self.k, self.v))
        counts = h.new_ones(*h.shape[:2], 1) if mask is None else mask[..., None].to(h.dtype)
        told = torch.cat([self._turned(k, positions), v, counts], -1)
        if remember is not None:
            told = remember(told)
        k, v, counts = told.split([k.shape[-1], v.shape[-1], 1], -1)
        past, length = told.shape[1] - h.shape[1], h.shape[1]
        seen = torch.ones(length, told.shape[1], dtype=torch.bool, device=h.device).tril(past)
        own = torch.ones_like(seen).tril(past).triu(past)
        allowed = (seen & (counts[..., 0] > 0)[:, None]) | own
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self._turned(q, positions), k, v)
        )
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed[:, None], scale=1.0)
        return _linear(self.o, y.transpose(1, 2).flatten(2))

    def _turned(self, h: Tensor, positions: Tensor) -> Tensor:
        """Rotary places: the two halves of each head turn by angles that grow with the place."""
        x = h.unflatten(-1, (self.heads, -1))
        half = x.shape[-1] // 2
        steps = torch.arange(half, device=h.device, dtype=h.dtype) / half
        angles = positions[..., None, None] * torch.exp(-math.log(10_000) * steps)
        a, b = x[..., :half], x[..., half:]
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).flatten(2)

    def __getstate__(self) -> dict:
        """Copies carry no scores of a pass, which hold autograd history."""
        return self.__dict__ | {"_known": None}


def _linear(module: nn.Module, h: Tensor) -> Tensor:
    """A linear map in the dtype of h, whatever the model was cast to."""
    return F.linear(h, module.weight.to(h.dtype), module.bias.to(h.dtype))  # type: ignore[arg-type]


def _norm(module: nn.Module, h: Tensor) -> Tensor:
    return F.rms_norm(h, h.shape[-1:], module.weight.to(h.dtype), 1e-6)  # type: ignore[arg-type]
