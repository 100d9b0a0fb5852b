"""Routed layers that keep fewer experts than their router chooses among, described and built."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts.activations import ACTIVATIONS, Activation
from polypath.experts.compressed import CompressedExpert
from polypath.experts.feedforward import FeedForwardExperts
from polypath.experts.layouts import linears
from polypath.experts.merged import MergedExperts
from polypath.experts.mixed import ExpertList
from polypath.language.config import RoutedLayers
from polypath.plain import decode, encode
from polypath.routing import MoE

# Routers of which layers share a part, or whose layers differ.
TOGETHER = ("recurrent", "reuse", "pregated", "dynamic", "autonomous")


@dataclass(frozen=True)
class Merged:
    """What a layer of merged experts is.

    layer: what it was before, RoutedLayers or the checkpoint's own. stored: experts that it keeps.
    rank: of the matrices' low-rank part, 0 where they are whole. rows: for each stored expert, the
    rows that its inner and its outer matrix keep beside it; none where they are whole.
    """

    layer: RoutedLayers | Literal["adopted"]
    stored: int
    rank: int = 0
    rows: Sequence[Sequence[int]] = ()

    def to_json(self) -> dict[str, Any]:
        own = self.layer.to_json() if isinstance(self.layer, RoutedLayers) else self.layer
        return {**encode(self), "layer": own}

    @classmethod
    def from_json(cls, value: Any) -> Merged:
        """What `to_json` gave; raises InputError for anything else."""
        if not isinstance(value, dict):
            raise InputError(f"merged: expected an object, not {value!r:.60}")
        own = value.get("layer")
        layer = RoutedLayers.from_json(own) if isinstance(own, dict) else own
        if layer != "adopted" and not isinstance(layer, RoutedLayers):
            raise InputError(f"merged.layer: {own!r:.40}; an object or 'adopted' is right")
        kept = decode(_Kept, {k: v for k, v in value.items() if k != "layer"}, "merged")
        if kept.stored < 1 or kept.rank < 0 or (kept.rank and len(kept.rows) != kept.stored):
            raise InputError(
                f"merged: stored={kept.stored}, rank={kept.rank}, {len(kept.rows)} rows; one "
                "expert at least, and with a rank two numbers of rows for each"
            )
        return cls(layer, kept.stored, kept.rank, kept.rows)


@dataclass(frozen=True)
class _Kept:
    stored: int
    rank: int = 0
    rows: Sequence[Sequence[int]] = ()


def described(origin: Any, layer: Any, index: int) -> RoutedLayers | Literal["adopted"]:
    """What a layer of a host is by itself, apart from those that it was attached with.

    Raises InputError where nothing says how to make it, or it shares its router or its experts.
    """
    if origin is None:
        raise InputError(f"merge: a function made layer {index}; nothing says how to save it")
    if not isinstance(origin, RoutedLayers):
        return "adopted"
    if origin.router in TOGETHER:
        raise InputError(
            f"merge: layer {index} has a {origin.router!r} router, which is made for all layers "
            "at once; one that each layer has by itself can be merged"
        )
    shared = 0 if layer.shared is None else layer.shared.down.weight.shape[1]
    return replace(origin, hidden=layer.experts.down_proj.shape[2], shared_hidden=shared)


def shrink(layer: MoE, merged: Merged, groups: Tensor | None = None) -> None:
    """Give a layer fewer experts, blank ones, behind a map from the router's ids.

    groups: (E,) int64; zeros, to be loaded, by default.
    """
    bank = layer.experts
    total = len(bank) if isinstance(bank, ExpertList) else len(bank.down_proj)  # type: ignore[arg-type]
    if merged.stored > total:
        raise InputError(f"merged: {merged.stored} experts of {total}")
    if groups is None:
        groups = torch.zeros(total, dtype=torch.int64)
    layer.experts = MergedExperts(_bank(bank, merged), groups, merged.stored)


def _bank(bank: Any, merged: Merged) -> nn.Module:
    if merged.rank:
        dim, hidden, activation, bias = _sizes(bank)
        return ExpertList(
            CompressedExpert(dim, hidden, activation, merged.rank, rows, bias)
            for rows in merged.rows
        )
    if isinstance(bank, ExpertList):
        return ExpertList([deepcopy(bank[0]) for _ in range(merged.stored)])
    return smaller(bank, merged.stored)


def smaller(bank: FeedForwardExperts, count: int) -> FeedForwardExperts:
    """A blank bank of `count` experts like those of another, on torch's own device."""
    dim, hidden, activation, bias = _sizes(bank)
    made = FeedForwardExperts(count, dim, hidden, activation, bias, bank.transposed, bank.engine)
    return made.to(bank.down_proj.dtype)


def _sizes(bank: Any) -> tuple[int, int, Any, bool]:
    """D, F, the activation and whether there are biases, of a bank."""
    if isinstance(bank, ExpertList):
        maps = linears(bank[0])
        hidden, dim = maps["up"].weight.parameter.shape
        return dim, hidden, activation_of(bank), maps["up"].bias is not None
    _, _, w_out, b_out = bank.weights()
    return *w_out.shape[1:], bank.network.activation, b_out is not None


def activation_of(bank: nn.Module) -> Activation:
    """The activation of a bank's experts; raises InputError where it is not known."""
    if isinstance(bank, FeedForwardExperts):
        return bank.network.activation
    names = {nn.ReLU: "relu", nn.GELU: "gelu"}
    network = next(iter(bank.children()))
    kind = next((names[type(m)] for m in network.modules() if type(m) in names), None)
    if kind is None or "gate" in linears(network):
        raise InputError(f"{type(network).__name__} is no expert of two maps and a ReLU or GELU")
    return ACTIVATIONS[kind]
