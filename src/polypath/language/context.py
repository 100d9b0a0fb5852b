"""What a host tells its routed layers: a RoutingContext for every forward.

The decoder's forward makes one `Pass` from its own arguments and hands it down among the keyword
arguments of its layers. These give it to their attention, where each routed layer picks it up
before it runs. It travels with the arguments, not in an ambient variable, so that a layer that
runs again for its gradient (checkpointing), later and perhaps in another thread, is told what it
was told the first time.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils import ModelOutput

from polypath.language.families import Decoder
from polypath.language.memory import Memory
from polypath.language.observed import PLACE, observe, observed
from polypath.routing import MoE, Routing, RoutingContext, current

_KEY = "routing_pass"


class Pass:
    """One forward of a host: what it knows, and the routings that its layers made so far.

    No dataclass: FSDP copies these among the arguments of a layer, and what the layers below told
    would stay in a copy.
    """

    def __init__(self, context: RoutingContext) -> None:
        self.context = context
        self.routings: dict[int, Routing] = {}


class Seat:
    """A routed layer's place in its host: it is told what the pass knows, and tells its routing."""

    def __init__(self, decoder: Decoder, index: int) -> None:
        self.decoder = decoder
        self.index = index
        self.observes = needs_attention(decoder.routed()[index])
        self._pass: Pass | None = None
        self._seen: dict[str, Tensor] = {}
        self._told: dict[str, Any] = {}

    def before_attention(self, attention: nn.Module, args: tuple, kwargs: dict) -> tuple:
        """Take the pass out of the arguments of the layer's attention."""
        kwargs = dict(kwargs)
        self._pass = kwargs.pop(_KEY, None)
        self._seen, self._told = {}, {}
        if (cache := kwargs.get("past_key_values")) is not None:
            self._told["remember"] = Memory(cache, self.index, len(self.decoder.layers))
        if self.observes:
            kwargs[PLACE] = self._seen
        return args, kwargs

    def after_attention(self, attention: nn.Module, args: tuple, output: Any) -> None:
        """Note what the attention saw, where it was looked at."""
        if self._seen:
            self._told["attention"] = observed(self.decoder, self.index, self._seen, output[0])

    def before_routing(self, layer: MoE, args: tuple, kwargs: dict) -> tuple:
        """Give the routed layer its context; without a pass, it reads the ambient one."""
        if self._pass is None:
            return args, kwargs
        context = replace(self._pass.context, **self._told)
        # Of the layers that ran, for some may be bypassed; in a rerun those above have run too.
        below = [index for index in self._pass.routings if index < self.index]
        if below:
            context = replace(context, previous=self._pass.routings[max(below)])
        return args, {"context": context} | kwargs

    def after_routing(self, layer: MoE, args: tuple, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Tell the layers above which way the things went, and the host what it expects."""
        routing = cast(Routing, layer.last)
        if self._pass is not None:
            self._pass.routings[self.index] = routing
        self._pass, self._seen, self._told = None, {}, {}
        # Some hosts expect the weights of the chosen experts beside the layer's output.
        return (y, routing.weights) if self.decoder.family.pairs else y


def needs_attention(layer: MoE) -> bool:
    """Whether a router has to be told the attention before it."""
    return any(getattr(module, "needs_attention", False) for module in layer.router.modules())


def connect(decoder: Decoder) -> None:
    """Make the decoder tell its routed layers what it knows, as they stand now."""
    disconnect(decoder)
    if not decoder.family.tells:
        return
    handles = decoder.host.handles
    handles.append(decoder.module.register_forward_pre_hook(start_pass, with_kwargs=True))
    handles.append(decoder.module.register_forward_hook(finish_pass, with_kwargs=True))
    routed = decoder.routed()
    if any(needs_attention(layer) for layer in routed.values()):
        observe(decoder)
    for index in range(len(decoder.layers)):
        attention = decoder.attention(index)
        if index not in routed:
            handles.append(attention.register_forward_pre_hook(drop_pass, with_kwargs=True))
            continue
        seat, layer = Seat(decoder, index), routed[index]
        handles += [
            attention.register_forward_pre_hook(seat.before_attention, with_kwargs=True),
            attention.register_forward_hook(seat.after_attention),
            layer.register_forward_pre_hook(seat.before_routing, with_kwargs=True),
            layer.register_forward_hook(seat.after_routing),
        ]


def disconnect(decoder: Decoder) -> None:
    """Undo `connect`."""
    for handle in decoder.host.handles:
        handle.remove()
    decoder.host.handles.clear()


def start_pass(decoder: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """A pre-hook of the decoder: add the pass to its arguments."""
    named = _signature(type(decoder).forward).bind(decoder, *args, **kwargs).arguments
    return args, kwargs | {_KEY: Pass(_context(named))}


def finish_pass(decoder: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    """A hook of the decoder: transformers' own `router_logits`, where they were asked for."""
    if isinstance(output, ModelOutput) and output.get("router_logits") == ():
        routings = kwargs[_KEY].routings
        output.router_logits = tuple(routings[index].scores for index in sorted(routings))


def drop_pass(attention: nn.Module, args: tuple, kwargs: dict) -> tuple:
    """A pre-hook of the attention of layers that are not routed: the pass goes no further."""
    return args, {name: value for name, value in kwargs.items() if name != _KEY}


@cache
def _signature(forward: Callable[..., Any]) -> inspect.Signature:
    return inspect.signature(forward)


def _context(named: dict[str, Any]) -> RoutingContext:
    """What the arguments of the decoder say; what a `given` block says comes first."""
    tokens = named.get("input_ids")
    things = named.get("inputs_embeds") if tokens is None else tokens
    if things is None:
        return current()  # the decoder has its own words for this
    batch, length = things.shape[:2]
    cache = named.get("past_key_values")
    past = 0 if cache is None else int(cache.get_seq_length())
    host: dict[str, Any] = {
        "shape": (batch, length),
        "tokens": None if tokens is None else tokens.flatten().long(),
        "mask": _mask(named.get("attention_mask"), past, length),
        "positions": _positions(named.get("position_ids"), past, things),
    }
    around = current()
    return replace(around, **{n: v for n, v in host.items() if getattr(around, n) is None})


def _mask(attention_mask: Any, past: int, length: int) -> Tensor | None:
    """(T,) bool from a padding mask (batch, past + length); other masks do not tell padding."""
    if not isinstance(attention_mask, Tensor) or attention_mask.dim() != 2:
        return None
    return (attention_mask[:, past : past + length] != 0).flatten()


def _positions(position_ids: Tensor | None, past: int, things: Tensor) -> Tensor:
    """(T,) int64 from position ids (batch or 1, length), or counted from the cache's length."""
    batch, length = things.shape[:2]
    if position_ids is None:
        position_ids = torch.arange(past, past + length, device=things.device)[None]
    return position_ids.expand(batch, length).flatten()
