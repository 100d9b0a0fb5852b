"""One step of messages: GATv2 attention over dense graphs, as CLRS has it.

Shapes: B graphs, N nodes, I channels of a node, E of an edge, D hidden, H heads.
Source: GATv2 (Brody et al. 2022); CLRS-30 (Veličković et al. 2022), processors.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01


class Maps(NamedTuple):
    """From an edge's features to logits (D, F), and to what is gathered (D, F) or None."""

    logit: Tensor
    value: Tensor | None


class GATv2Layer(nn.Module):
    """Attention, a skip, ReLU, and more linear maps with ReLU of each node alone.

    edge_values: what is gathered knows of edges too, Σ_j α_ij (W_m z_j + W_me e_ij); without it an
    edge speaks through the logits alone. local_layers: how many ReLUs there are in all.
    """

    def __init__(
        self,
        inputs: int,
        edges: int,
        hidden: int,
        heads: int = 1,
        local_layers: int = 1,
        edge_values: bool = True,
        layer_norm: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.receiver = nn.Linear(inputs, hidden)
        self.sender = nn.Linear(inputs, hidden, bias=False)
        self.edge = nn.Linear(edges, hidden, bias=False)
        self.score = nn.Parameter(torch.empty(heads, hidden // heads))
        nn.init.xavier_uniform_(self.score)
        self.value = nn.Linear(inputs, hidden, bias=False)
        self.edge_value = nn.Linear(edges, hidden, bias=False) if edge_values else None
        self.skip = nn.Linear(inputs, hidden)
        self.local = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(local_layers - 1))
        self.norm = nn.LayerNorm(hidden) if layer_norm else nn.Identity()

    def maps(self, encode: Tensor) -> Maps:
        """W_e and W_me behind an encoder of edges (E, F): two linear maps in a row are one."""
        value = None if self.edge_value is None else self.edge_value.weight @ encode
        return Maps(self.edge.weight @ encode, value)

    def forward(self, z: Tensor, e: Tensor, maps: Maps, mask: Tensor) -> tuple[Tensor, Tensor]:
        """New states (B, N, D), and attention (B, H, N, N), whose rows are receivers.

        z: (B, N, I). e: (B, N, N, F), features of i's edge to j. mask: (B, N, N) bool, whom each
        may attend to, one at least.
        """
        attention = self.attention(z, e, maps, mask)
        width = self.value.out_features // self.heads
        gathered = attention @ self.value(z).unflatten(-1, (self.heads, width)).transpose(1, 2)
        if maps.value is not None:  # gather first: it costs less, and is the same
            seen = (attention.transpose(1, 2) @ e).transpose(1, 2)
            gathered = gathered + seen @ maps.value.unflatten(0, (self.heads, width)).mT
        h = (gathered.transpose(1, 2).flatten(2) + self.skip(z)).relu()
        for linear in self.local:
            h = cast(nn.Linear, linear)(h).relu()
        return self.norm(h), attention

    def attention(self, z: Tensor, e: Tensor, maps: Maps, mask: Tensor) -> Tensor:
        """(B, H, N, N): softmax over j of aᵀ LeakyReLU(W₁ z_j + W₂ z_i + W_e e_ij)."""
        pre = self.receiver(z)[:, :, None] + self.sender(z)[:, None] + F.linear(e, maps.logit)
        heads = F.leaky_relu(pre, SLOPE).unflatten(-1, (self.heads, -1))
        logits = torch.einsum("bijhd,hd->bhij", heads, self.score)
        return logits.masked_fill(~mask[:, None], -torch.inf).softmax(-1)
