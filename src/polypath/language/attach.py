"""Routed layers into the decoders of transformers, and out again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language.checkpoint import save_here
from polypath.language.config import RoutedLayers
from polypath.language.families import Decoder, decoder_of
from polypath.language.hosting import adopt_layers, native_layers, place, release_layers
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
    Afterwards the decoder gives its routed layers their RoutingContext: shape, tokens (not with
    inputs_embeds), mask (from a 2-D attention mask), positions and previous; what a surrounding
    `given` block says comes first. And `model.save_pretrained` is the one of this package.
    Raises InputError when the model's family is not a known host, a layer does not exist, or there
    is nothing to adopt.
    """
    decoder = decoder_of(model)
    indices = _indices(decoder, layers)
    if routed is None:
        adopt_layers(decoder, _adoptable(decoder, indices, chosen=layers is not None))
    else:
        place(decoder, routed, indices)
    save_here(model)
    return model


def detach(model: PreTrainedModel) -> PreTrainedModel:
    """Put the native blocks of adopted layers back, parameters and all; the inverse of adopting.

    Layers that took the place of others stay. Raises InputError when no layer was adopted, or one
    was changed into something that its native block cannot hold.
    """
    decoder = decoder_of(model)
    if not release_layers(decoder):
        raise InputError(f"detach: {type(model).__name__} has no adopted layers")
    if not decoder.routed():
        del vars(model)["save_pretrained"]
    return model


def _indices(decoder: Decoder, layers: Sequence[int] | None) -> list[int]:
    count = len(decoder.layers)
    for index in layers or ():
        if not 0 <= index < count:
            raise InputError(f"attach: no layer {index}; the model has layers 0 to {count - 1}")
    return list(range(count)) if layers is None else sorted(set(layers))


def _adoptable(decoder: Decoder, indices: Sequence[int], chosen: bool) -> list[int]:
    """The native layers among `indices`; if these were chosen, all have to be."""
    native = sorted(set(indices) & set(native_layers(decoder)))
    dense = sorted(set(indices) - set(native))
    if not native or (chosen and dense):
        where = f"layers {dense} of " if chosen else ""
        raise InputError(
            f"attach: no experts to adopt in {where}{type(decoder.module).__name__}; "
            "give RoutedLayers to put routed layers there"
        )
    return native
