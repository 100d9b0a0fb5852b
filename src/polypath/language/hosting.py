"""Routed layers in a decoder's places: new ones put in, native ones adopted and released."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from polypath.errors import InputError
from polypath.language.adopt import Native, adopt, release
from polypath.language.config import RoutedLayers
from polypath.language.context import connect
from polypath.language.families import Decoder
from polypath.language.merged import Merged, shrink
from polypath.language.stacks import build_stack
from polypath.routing import MoE

Make = Callable[[int], MoE]


def place(decoder: Decoder, routed: RoutedLayers | Make, indices: Iterable[int]) -> None:
    """Put new layers in the places at `indices`, all of them or, on an error, none."""
    places = sorted(indices)
    if isinstance(routed, RoutedLayers):
        config = decoder.module.config
        width = decoder.family.width(config)
        made = build_stack(routed, config.hidden_size, width, len(places))
    else:
        made = [_made(routed, index) for index in places]
    built = {
        index: _fitted(decoder, layer, index) for index, layer in zip(places, made, strict=True)
    }
    for index, layer in built.items():
        decoder.put(index, layer)
        decoder.host.origins[index] = routed if isinstance(routed, RoutedLayers) else None
    connect(decoder)


def rebuild(decoder: Decoder, index: int, merged: Merged) -> None:
    """Put a blank layer of merged experts at an index, to be loaded."""
    if isinstance(merged.layer, RoutedLayers):
        place(decoder, merged.layer, [index])
    elif index in native_layers(decoder):
        adopt_layers(decoder, [index])
    else:
        raise InputError(f"layer {index} of the model has no experts to adopt")
    shrink(decoder.routed()[index], merged)
    decoder.host.origins[index] = merged


def native_layers(decoder: Decoder) -> list[int]:
    """The layers that have experts of their own, adopted or not."""
    native = []
    for index in range(len(decoder.layers)):
        adopted = isinstance(decoder.host.origins.get(index), Native)
        if adopted or (index not in decoder.routed() and hasattr(decoder.mlp(index), "experts")):
            native.append(index)
    return native


def adopt_layers(decoder: Decoder, indices: Iterable[int]) -> None:
    """Adopt the native layers at `indices`; those that are adopted stay as they are."""
    for index in indices:
        if index not in decoder.routed():
            layer, native = adopt(decoder.mlp(index), decoder.module.config)
            decoder.put(index, layer)
            decoder.host.origins[index] = native
    connect(decoder)


def release_layers(decoder: Decoder) -> list[int]:
    """Put the native blocks of all adopted layers back; their indices."""
    layers, origins = decoder.routed(), decoder.host.origins
    adopted = {i: o for i in layers if isinstance(o := origins.get(i), Native)}
    for index, native in adopted.items():
        native.check(layers[index])
    for index, native in adopted.items():
        decoder.put(index, release(layers[index], native))
        del origins[index]
    connect(decoder)
    return list(adopted)


def _made(make: Make, index: int) -> MoE:
    layer = make(index)
    if not isinstance(layer, MoE):
        raise InputError(
            f"attach: the function made a {type(layer).__name__} for layer {index}; "
            "a polypath.MoE is right"
        )
    return layer


def _fitted(decoder: Decoder, layer: MoE, index: int) -> MoE:
    """A new routed layer with the dtype and device of the attention before it."""
    beside = next(decoder.attention(index).parameters())
    return layer.to(beside.device, beside.dtype).train(decoder.mlp(index).training)
