"""Dense feed-forward layers into routed ones, by a method that says how they are cut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts, SharedExpert
from polypath.language import RoutedLayers
from polypath.language.checkpoint import save_here
from polypath.language.families import Decoder, decoder_of
from polypath.language.hosting import place
from polypath.plain import encode
from polypath.routing import MoE
from polypath.routing.dispatch import Weights
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.slices import DenseLayer, dense_layer, fill, sum_error

EXACT = 1e-5
"""What float32 may differ by, relative to the largest value."""


@dataclass(frozen=True)
class Cut:
    """A dense layer, cut. experts: stacked weights. shared: of an expert that serves everything.

    groups: experts that sum to the layer; none where nothing does.
    became: what a reader should know of it. share: of the layer's units that are still there.
    """

    experts: Weights
    shared: Weights | None
    groups: Sequence[Sequence[int]]
    became: str
    share: float = 1.0


class Method(Protocol):
    """How dense layers become routed ones.

    check: raises InputError where a layer cannot be cut so. routed: what the layers at some places
    will be. cut: a layer's weights. start: gives a new layer's router its first rows.
    """

    name: str

    def check(self, dense: Mapping[int, DenseLayer]) -> None: ...

    def routed(self, model: PreTrainedModel, dense: Mapping[int, DenseLayer]) -> RoutedLayers: ...

    def cut(self, index: int, dense: DenseLayer) -> Cut: ...

    def start(self, model: PreTrainedModel, index: int, layer: Any) -> None: ...


def dense_layers(decoder: Decoder) -> dict[int, DenseLayer]:
    """The dense feed-forward layers of a model by index; raises InputError where there are none."""
    known = {
        index: dense_layer(decoder, index)
        for index in range(len(decoder.layers))
        if index not in decoder.routed() and not hasattr(decoder.mlp(index), "experts")
    }
    if not known:
        raise InputError(f"{type(decoder.module).__name__} has no dense layers to convert")
    return known


@torch.no_grad()
def convert(model: PreTrainedModel, method: Method, layers: Sequence[int] | None = None) -> Surgery:
    """Cut a model's dense layers into experts; the model is changed, the report says how.

    layers: their indices, all dense ones by default. Routers are drawn from torch's generator.
    Raises InputError, before anything is changed, where a layer cannot be cut so.
    """
    began = time.perf_counter()
    decoder = decoder_of(model)
    dense = dense_layers(decoder)
    for index in layers or ():
        if index not in dense:
            raise InputError(f"convert: layer {index} is not dense; {sorted(dense)} are")
    chosen = {index: dense[index] for index in (dense if layers is None else sorted(set(layers)))}
    method.check(chosen)
    before, active = Size.of(model), model.training
    cuts, moves, checks = {}, [], []
    for index, layer in chosen.items():
        cuts[index] = method.cut(index, layer)
        made = cuts[index]
        moves.append(Move(f"layer {index}", f"{layer.width} units", made.became, made.share))
        if made.groups:
            error = sum_error(layer.weights(), made.experts, layer.kind, made.groups)
            checks.append(Check(f"layer {index}: slices sum to the layer", error, EXACT))
    place(decoder, method.routed(model, chosen), chosen)
    for index, made in cuts.items():
        new = decoder.routed()[index]
        _fill(new, made)
        method.start(model, index, new)
    save_here(model)
    model.train(active)
    settings = {name: value for name, value in vars(method).items() if _plain(value)}
    return Surgery(
        method.name,
        encode(settings),
        before,
        Size.of(model),
        moves,
        checks,
        seconds=time.perf_counter() - began,
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _fill(layer: MoE, cut: Cut) -> None:
    assert isinstance(layer.experts, FeedForwardExperts)
    fill(layer.experts, cut.experts)
    if cut.shared is not None:
        assert isinstance(layer.shared, SharedExpert)
        layer.shared.up.weight.copy_(cut.shared[0][0])
        layer.shared.down.weight.copy_(cut.shared[2][0])


def normal_rows(parameter: nn.Parameter | torch.Tensor, std: float, seed: int) -> None:
    """Fill a parameter with normal numbers of a generator's own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(parameter.shape, generator=generator) * std
        parameter.copy_(drawn)
