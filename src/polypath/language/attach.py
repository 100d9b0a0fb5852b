"""Routed layers into the decoders of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language.adopt import Native, adopt, release
from polypath.language.config import RoutedLayers
from polypath.language.context import connect
from polypath.language.families import Decoder, decoder_of
from polypath.routing import MoE


def attach(
    model: PreTrainedModel,
    routed: RoutedLayers | Callable[[int], MoE] | None = None,
    layers: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Put routed layers into a model, or adopt those that it has; it is changed and returned.

    routed: what the new layers are, or a function from a layer's index to its MoE. They take the
        place of the feed-forward layers, dense or routed, and the model's dtype and device; they
        are drawn from torch's global generator.
    routed=None: the routed layers that the checkpoint brings become `MoE` modules on the same
        parameters, and nothing else changes; `detach` undoes it.
    layers: indices of the decoder's layers; None for all, or for all that can be adopted.
    From then on the decoder gives its routed layers their RoutingContext: shape, tokens (not with
    inputs_embeds), mask (from a 2-D attention mask), positions and previous. What a surrounding
    `given` block says comes before what the decoder says.
    Raises InputError when the model's family is not a known host, a layer does not exist, or there
    is nothing to adopt.
    """
    decoder = decoder_of(model)
    indices = _indices(decoder, layers)
    if routed is None:
        _adopt(decoder, indices, chosen=layers is not None)
    else:
        built = {index: _built(decoder, routed, index) for index in indices}
        for index, layer in built.items():
            decoder.put(index, layer)
            decoder.host.origins[index] = routed if isinstance(routed, RoutedLayers) else None
    connect(decoder)
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Put the native blocks of adopted layers back, parameters and all; the inverse of adopting.

    Layers that took the place of others stay. Raises InputError when no layer was adopted, or one
    was changed into something that its native block cannot hold.
    """
    decoder = decoder_of(model)
    adopted = {i: o for i, o in decoder.host.origins.items() if isinstance(o, Native)}
    if not adopted:
        raise InputError(f"detach: {type(model).__name__} has no adopted layers")
    for index, native in adopted.items():
        decoder.put(index, release(decoder.routed()[index], native))
        del decoder.host.origins[index]
    connect(decoder)
    return model


def _indices(decoder: Decoder, layers: Sequence[int] | None) -> list[int]:
    count = len(decoder.layers)
    for index in layers or ():
        if not 0 <= index < count:
            raise InputError(f"attach: no layer {index}; the model has layers 0 to {count - 1}")
    return list(range(count)) if layers is None else sorted(set(layers))


def _adopt(decoder: Decoder, indices: Sequence[int], chosen: bool) -> None:
    """Adopt the native routed layers among `indices`; if they were chosen, all have to be."""
    native = [index for index in indices if hasattr(decoder.mlp(index), "experts")]
    dense = sorted(set(indices) - set(native))
    if not native or (chosen and dense):
        where = f"layers {dense} of " if chosen else ""
        raise InputError(
            f"attach: no experts to adopt in {where}{type(decoder.module).__name__}; "
            "give RoutedLayers to put routed layers there"
        )
    for index in native:
        if index not in decoder.routed():
            layer, decoder.host.origins[index] = adopt(decoder.mlp(index), decoder.module.config)
            decoder.put(index, layer)


def _built(decoder: Decoder, routed: RoutedLayers | Callable[[int], MoE], index: int) -> MoE:
    """A new routed layer with the dtype and device of what it replaces."""
    config = decoder.module.config
    if isinstance(routed, RoutedLayers):
        layer = routed.build(config.hidden_size, decoder.family.width(config))
        _draw(layer, config.initializer_range)
    else:
        layer = routed(index)
        if not isinstance(layer, MoE):
            raise InputError(
                f"attach: the function made a {type(layer).__name__} for layer {index}; "
                "a polypath.MoE is right"
            )
    old = next(decoder.mlp(index).parameters())
    return layer.to(old.device, old.dtype).train(decoder.mlp(index).training)


def _draw(layer: MoE, spread: float) -> None:
    """Draw the experts' weights as the host draws its own layers; routers keep their own start."""
    for part in (layer.experts, layer.shared):
        for parameter in [] if part is None else part.parameters():
            if parameter.ndim >= 2 and not parameter.is_meta:
                nn.init.normal_(parameter, std=spread)
