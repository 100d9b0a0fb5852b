"""Routed layers into the decoders of transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language.config import RoutedLayers
from polypath.language.context import connect
from polypath.language.families import Decoder, decoder_of
from polypath.routing import MoE


def attach(
    model: PreTrainedModel,
    routed: RoutedLayers | Callable[[int], MoE],
    layers: Sequence[int] | None = None,
) -> PreTrainedModel:
    """Put routed layers in the place of feed-forward layers; the model is changed and returned.

    routed: what the layers are, or a function from a layer's index to its MoE.
    layers: indices of the decoder's layers; all of them when None.
    From then on the decoder gives its routed layers their RoutingContext: shape, tokens (not with
    inputs_embeds), mask (from a 2-D attention mask), positions and previous. What a surrounding
    `given` block says comes before what the decoder says.
    New layers are drawn from torch's global generator and take the model's dtype and device.
    Raises InputError when the model's family is not a known host or a layer does not exist.
    """
    decoder = decoder_of(model)
    for index in _indices(decoder, layers):
        decoder.put(index, _built(decoder, routed, index))
        decoder.host.origins[index] = routed if isinstance(routed, RoutedLayers) else None
    connect(decoder)
    return model


def _indices(decoder: Decoder, layers: Sequence[int] | None) -> list[int]:
    count = len(decoder.layers)
    if layers is None:
        return list(range(count))
    for index in layers:
        if not 0 <= index < count:
            raise InputError(f"attach: no layer {index}; the model has layers 0 to {count - 1}")
    return sorted(set(layers))


def _built(decoder: Decoder, routed: RoutedLayers | Callable[[int], MoE], index: int) -> MoE:
    """A new routed layer with the dtype and device of what it replaces."""
    if isinstance(routed, RoutedLayers):
        config = decoder.module.config
        layer = routed.build(config.hidden_size, decoder.family.width(config))
    else:
        layer = routed(index)
        if not isinstance(layer, MoE):
            raise InputError(
                f"attach: the function made a {type(layer).__name__} for layer {index}; "
                "a polypath.MoE is right"
            )
    old = next(decoder.mlp(index).parameters())
    layer.to(old.device)
    for parameter in layer.parameters():  # buffers, such as selection biases, stay in float32
        parameter.data = parameter.data.to(old.dtype)
    return layer.train(decoder.mlp(index).training)
