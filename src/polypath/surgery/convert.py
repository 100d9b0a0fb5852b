"""Dense feed-forward layers into routed ones, by a method that says how they are cut."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.language.checkpoint import save_here
from polypath.language.families import Decoder, decoder_of
from polypath.language.hosting import place
from polypath.language.stacks import build_stack
from polypath.plain import encode
from polypath.routing import MoE
from polypath.surgery.report import Check, Move, Size, Surgery
from polypath.surgery.slices import DenseLayer, Slices, dense_layer, fill, probes

EXACT = 1e-5
"""What float32 may differ by, relative to the largest value."""


@dataclass(frozen=True, eq=False)
class Cut:
    """How a dense layer of F units is cut.

    sets: (E, m) int64, the units of each expert. bias: the part of the last bias that each gets.
    shared: (1, s) int64, the units of an expert that serves everything, or None.
    groups: experts that sum to the layer; none where nothing does.
    became: what a reader should know of it. share: of the layer's units that are still there.
    """

    sets: Tensor
    became: str
    groups: Sequence[Sequence[int]] = ()
    bias: float = 1.0
    shared: Tensor | None = None
    share: float = 1.0


class Method(Protocol):
    """How dense layers become routed ones; model: their host, None where they stand alone.

    check: raises InputError where a layer cannot be cut so. routed: what the layers at some places
    will be. cut: a layer's weights. start: gives a new layer's router its first rows.
    """

    @property
    def name(self) -> str: ...

    def check(self, dense: Mapping[int, DenseLayer]) -> None: ...

    def routed(self, model: Any, dense: Mapping[int, DenseLayer]) -> RoutedLayers: ...

    def cut(self, index: int, dense: DenseLayer) -> Cut: ...

    def start(self, model: Any, index: int, layer: Any) -> None: ...


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
    cuts = {index: method.cut(index, layer) for index, layer in chosen.items()}
    place(decoder, method.routed(model, chosen), chosen)
    checks = []
    for index, layer in chosen.items():
        new = decoder.routed()[index]
        checks += _fill(index, new, layer, cuts[index])
        method.start(model, index, new)
    save_here(model)
    model.train(active)
    return report(method, before, Size.of(model), chosen, cuts, checks, began)


def report(
    method: Method,
    before: Size,
    after: Size,
    dense: Mapping[int, DenseLayer],
    cuts: Mapping[int, Cut],
    checks: Sequence[Check],
    began: float,
) -> Surgery:
    """What a conversion did, in the form of all operations."""
    return Surgery(
        method.name,
        encode({name: value for name, value in vars(method).items() if _plain(value)}),
        before,
        after,
        [
            Move(f"layer {index}", f"{dense[index].width} units", cut.became, cut.share)
            for index, cut in cuts.items()
        ],
        checks,
        seconds=time.perf_counter() - began,
    )


def _plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float | bool)


def _fill(index: int, layer: MoE, dense: DenseLayer, cut: Cut) -> list[Check]:
    """Write a dense layer's slices into a routed one; how exact they are."""
    slices = Slices(dense, cut.sets, cut.bias)
    fill(layer.experts, (*slices.inner(), *slices.outer()))
    if cut.shared is not None:
        beside = Slices(dense, cut.shared)
        shared: Any = layer.shared
        shared.up.weight.copy_(beside.inner()[0][0])
        shared.down.weight.copy_(beside.outer()[0][0])
    return exactness(index, slices, dense.output(probes(dense)), cut)


def exactness(index: int, slices: Slices, whole: Tensor, cut: Cut) -> list[Check]:
    """What should be exact of a layer's slices, of which `whole` is what it makes of `probes`."""
    if not cut.groups:
        return []
    error = slices.error(whole, cut.groups)
    return [Check(f"layer {index}: slices sum to the layer", error, EXACT)]


@torch.no_grad()
def routed_layer(dense: DenseLayer, method: Method) -> MoE:
    """A routed layer made of one dense layer that stands in no known host."""
    method.check({0: dense})
    routed = method.routed(None, {0: dense})
    layer = build_stack(routed, dense.dim, dense.width, 1)[0]
    _fill(0, layer, dense, method.cut(0, dense))
    method.start(None, 0, layer)
    return layer


def normal_rows(parameter: nn.Parameter | torch.Tensor, std: float, seed: int) -> None:
    """Fill a parameter with normal numbers of a generator's own."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        drawn = torch.randn(parameter.shape, generator=generator) * std
        parameter.copy_(drawn)
