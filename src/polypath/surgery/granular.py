"""Granular tuning: copies of a dense layer, cut into fine experts that start as the layer itself.

Source: Dynamic-DINO (Lu et al. 2025), arXiv 2507.17436; the gate, which no text states, is
k · softmax over the chosen, under which the start is exact and routers learn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.surgery.convert import Cut, normal_rows
from polypath.surgery.slices import DenseLayer


@dataclass(frozen=True)
class Granular:
    """Every dense layer becomes `copies` · `k` experts, k of which serve a token.

    Expert c · k + j is slice j of copy c. Rows of the router are drawn for copies and repeated for
    their slices, so that the k slices of one copy are chosen together.
    std: of the rows. apart: a token gets one expert for each slice position, whatever its scores
    (published as a possible mitigation; k separate choices). balance: weight of the load balance.
    """

    copies: int = 4
    k: int = 2
    std: float = 0.02
    apart: bool = False
    balance: float = 0.01
    seed: int = 0
    name: str = "granular"

    def __post_init__(self) -> None:
        if self.copies < 1 or self.k < 1:
            raise InputError(f"granular: copies={self.copies}, k={self.k}; at least 1 is needed")

    def check(self, dense: Mapping[int, DenseLayer]) -> None:
        for index, layer in dense.items():
            if layer.width % self.k:
                raise InputError(
                    f"granular: k={self.k} does not divide the {layer.width} units of layer {index}"
                )

    def routed(self, model: Any, dense: Mapping[int, DenseLayer]) -> RoutedLayers:
        first = next(iter(dense.values()))
        return RoutedLayers(
            router="per-slice" if self.apart else "top-k",
            num_experts=self.copies * self.k,
            k=self.k,
            hidden=[layer.width // self.k for layer in dense.values()],
            kind=first.kind,
            bias=first.biased,
            scale=float(self.k),
            losses={"load_balance": self.balance} if self.balance else {},
        )

    def cut(self, index: int, dense: DenseLayer) -> Cut:
        sets = torch.arange(dense.width).view(self.k, -1).repeat(self.copies, 1)
        groups = [range(c * self.k, (c + 1) * self.k) for c in range(self.copies)]
        became = f"{len(sets)} experts of {sets.shape[1]} units: {self.copies} copies in {self.k}"
        return Cut(sets, f"{became}, {self.k} of which serve", groups, bias=1 / self.k)

    def start(self, model: Any, index: int, layer: Any) -> None:
        weight = layer.router.scorer.weight
        rows = torch.empty(self.copies, weight.shape[1])
        normal_rows(rows, self.std, self.seed * 1000 + index)
        weight.copy_(rows.repeat_interleave(self.k, 0))
