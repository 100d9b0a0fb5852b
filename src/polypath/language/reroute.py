"""Another router for the experts that a checkpoint brings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError, unknown
from polypath.experts.activations import ACTIVATIONS
from polypath.experts.feedforward import FeedForwardExperts, Kind
from polypath.language.attach import attach
from polypath.language.config import RoutedLayers
from polypath.language.families import decoder_of
from polypath.language.hosting import native_layers, place
from polypath.language.options import READS
from polypath.language.stacks import build_stack
from polypath.routing import LinearScorer, MoE, Router, SoftmaxGate, TopK


def reroute(
    model: PreTrainedModel,
    router: str,
    options: Mapping[str, Any] | None = None,
    losses: Mapping[str, float] | None = None,
    fresh: bool = False,
) -> PreTrainedModel:
    """Give the experts of a checkpoint another router; the model is changed and returned.

    router, options, losses: as in `RoutedLayers`; what the checkpoint says of k, its gate and its
        losses stays where nothing else is said.
    The experts' parameters stay the checkpoint's own; a pool of several layers is made of copies. A
    router that scores by rows of the experts' space starts from the trained ones: the model then
    starts with the logits that it had, wherever the router's method leaves them be.
    fresh: start a router that has no such rows from nothing.
    Raises InputError when there are no experts to route to, the trained router is none of top-k by
    softmax (OLMoE, Qwen3-MoE, Mixtral), or the new one cannot start from it.
    """
    decoder = decoder_of(model)
    attach(model)
    adopted = {index: decoder.routed()[index] for index in native_layers(decoder)}
    found = [_described(index, layer) for index, layer in adopted.items()]
    if any(other != found[0] for other in found):
        raise InputError("reroute: the model's routed layers differ; equal ones are needed")
    routed = _with(found[0], router, options, losses)
    # Built with experts one wide, whose places the trained ones take.
    new = build_stack(replace(routed, hidden=1), decoder.module.config.hidden_size, 1, len(adopted))
    pairs = list(zip(new, adopted.values(), strict=True))
    for bank in dict.fromkeys(layer.experts for layer in new):
        members = [(layer, old) for layer, old in pairs if layer.experts is bank]
        _hand_over([layer for layer, _ in members], [old for _, old in members], router, fresh)
    made = dict(zip(adopted, new, strict=True))
    place(decoder, made.__getitem__, adopted)
    decoder.host.origins.update(dict.fromkeys(adopted, routed))
    return model


def _with(
    found: RoutedLayers,
    router: str,
    options: Mapping[str, Any] | None,
    losses: Mapping[str, float] | None,
) -> RoutedLayers:
    """The description under another router, which keeps what that one reads."""
    if router not in READS:
        raise InputError(f"reroute: {unknown('router', router, READS)}")
    others = set().union(*READS.values()) - READS[router]
    values = {name: value for name, value in found.to_json().items() if name not in others}
    values |= {"router": router, "options": options}
    return RoutedLayers(**values if losses is None else values | {"losses": losses})


def _described(index: int, layer: Any) -> RoutedLayers:
    """What an adopted layer is, in plain values."""
    router, experts = layer.router, layer.experts
    if (
        not isinstance(router, Router)
        or type(router.scorer) is not LinearScorer
        or router.scorer.bias is not None
        or not isinstance(router.selection, TopK)
        or router.selection.bias is not None
        or not isinstance(router.gate, SoftmaxGate)
        or layer.shared is not None
    ):
        raise InputError(
            f"reroute: layer {index} is not top-k by softmax of linear scores: {layer}"
        )
    kinds = [name for name, known in ACTIVATIONS.items() if known is experts.network.activation]
    return RoutedLayers(
        "top-k",
        num_experts=len(experts.down_proj),
        k=router.selection.k,
        hidden=experts.down_proj.shape[2],
        kind=cast(Kind, kinds[0]),
        gate="softmax" if router.gate.over == "all" else "softmax-chosen",
        losses={name: cast(Any, loss).weight for name, loss in router.losses.items()},
    )


def _hand_over(layers: list[MoE], olds: list[Any], name: str, fresh: bool) -> None:
    """Give layers that share a bank the trained experts, and their routers the trained rows."""
    experts = olds[0].experts if len(olds) == 1 else _joined([old.experts for old in olds])
    rows = torch.cat([old.router.scorer.weight for old in olds])
    for layer in layers:
        layer.experts = experts
        _start(layer.router, rows, name, fresh)


@torch.no_grad()
def _joined(banks: list[Any]) -> FeedForwardExperts:
    """One bank of the experts of several equal ones, in order; copies of their parameters."""
    parts = [bank.weights() for bank in banks]
    hidden, dim = parts[0][2].shape[2], parts[0][2].shape[1]
    total = sum(len(part[2]) for part in parts)
    bias, activation = parts[0][3] is not None, banks[0].network.activation
    joined = FeedForwardExperts(total, dim, hidden, activation, bias).to(parts[0][2])
    for whole, *pieces in zip(joined.weights(), *parts, strict=True):
        if whole is not None:
            whole.copy_(torch.cat(pieces))
    return joined


@torch.no_grad()
def _start(router: Any, rows: Tensor, name: str, fresh: bool) -> None:
    """Give a new router the trained rows, where it has any."""
    scorers = [m for m in router.modules() if type(m) is LinearScorer]
    if len(scorers) == 1 and scorers[0].weight.shape == rows.shape:
        scorers[0].weight.copy_(rows)
    elif not fresh:
        raise InputError(
            f"reroute: a {name!r} router has no row for each expert in the experts' space, and "
            "cannot start from the trained one; fresh=True starts it from nothing"
        )
