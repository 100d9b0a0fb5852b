"""What a router may read beside the things it routes; the host provides it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.record import Routing


@dataclass(frozen=True, eq=False)
class Attention:
    """An attention as it ran, N things over the M until now, under H heads of width W.

    probabilities: (B, H, N, M), rows sum to one.
    values: (B, G, M, W), where G divides H: neighbouring heads share values.
    projection: (D, H · W), to the output, whose bias is left out.
    output: (B, N, D), what the attention gave, without the bias.
    """

    probabilities: Tensor
    values: Tensor
    projection: Tensor
    output: Tensor

    def to(self, dtype: torch.dtype) -> Attention:
        return Attention(*(getattr(self, f.name).to(dtype) for f in fields(self)))

    def detach(self) -> Attention:
        return Attention(*(getattr(self, f.name).detach() for f in fields(self)))


@dataclass(frozen=True, eq=False)
class RoutingContext:
    """Everything a router may ask for, over T things laid out row by row; None where not given.

    shape: the things' layout, (batch, length) for tokens; T is its product. A layer fills it in
        from what it is given where it is None.
    mask: (T,) bool, False for padding.
    tokens: (T,) int64, token ids.
    positions: (T,) int64, places in the sequence.
    modality: (T,) int64.
    attention: the attention that came before the layer.
    candidates: (E,) or (T, E) bool, the experts that may be chosen.
    experts: (T, K) int64, experts that must be chosen (replay).
    previous: the Routing of the layer below.
    remember: keeps (batch, length, W) of this layer's things beside the host's cache and gives that
        of all things until now, (batch, past + length, W); None where there is no past.
    step: the training step.
    generator: the source of the router's randomness, torch's own where None. Activation
        checkpointing, which runs a layer again, does not rewind it.
    """

    shape: tuple[int, ...] | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None
    positions: Tensor | None = None
    modality: Tensor | None = None
    attention: Attention | None = None
    candidates: Tensor | None = None
    experts: Tensor | None = None
    previous: Routing | None = None
    remember: Callable[[Tensor], Tensor] | None = None
    step: int | None = None
    generator: torch.Generator | None = None

    def check(self, things: int, num_experts: int) -> None:
        """Raise InputError where a field does not fit T things and E experts; reads no values."""
        if self.shape is not None and math.prod(self.shape) != things:
            raise InputError(
                f"routing context: shape {tuple(self.shape)} is the layout of "
                f"{math.prod(self.shape)} things; the router was given {things}"
            )
        per_thing = [(things,)]
        _check("mask", self.mask, torch.bool, per_thing)
        _check("tokens", self.tokens, torch.int64, per_thing)
        _check("positions", self.positions, torch.int64, per_thing)
        _check("modality", self.modality, torch.int64, per_thing)
        _check("candidates", self.candidates, torch.bool, [(num_experts,), (things, num_experts)])
        if self.experts is not None:
            slots = self.experts.shape[1] if self.experts.ndim == 2 else 1
            _check("experts", self.experts, torch.int64, [(things, slots)])

    def need(self, name: str, router: str) -> Any:
        """The field `name`, or an InputError that says which router lacks what."""
        value = getattr(self, name)
        if value is None:
            raise InputError(
                f"{router} needs `{name}` in its routing context and was given none; "
                f"a model prepared by polypath.language.attach provides it, elsewhere use "
                f"`with polypath.routing.given({name}=...)`"
            )
        return value


def _check(
    name: str, value: Tensor | None, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]
) -> None:
    if value is None or (value.dtype == dtype and value.shape in shapes):
        return
    wanted = " or ".join(map(str, shapes))
    raise InputError(
        f"routing context: {name} is {tuple(value.shape)} of {value.dtype}; "
        f"{wanted} of {dtype} is needed"
    )


def generator_of(seed: int, step: int) -> torch.Generator:
    """A generator on the CPU that draws the same for a seed and a step, on all ranks."""
    # One number of both: seeds beside each other would draw alike.
    return torch.Generator().manual_seed((seed * 0x9E3779B97F4A7C15 + step) % 2**63)


_ambient: ContextVar[RoutingContext | None] = ContextVar("routing_context", default=None)


def current() -> RoutingContext:
    """The context that surrounds this call, empty where nothing was given."""
    return _ambient.get() or RoutingContext()


@contextmanager
def given(**values: Any) -> Iterator[RoutingContext]:
    """Give the named fields to every routed layer that runs inside the block.

    Fields that are not named keep the value of the surrounding block.
    Raises InputError for a name that RoutingContext does not have.
    """
    unknown = values.keys() - {f.name for f in fields(RoutingContext)}
    if unknown:
        raise InputError(f"RoutingContext has no field {', '.join(map(repr, sorted(unknown)))}")
    context = replace(current(), **values)
    token = _ambient.set(context)
    try:
        yield context
    finally:
        _ambient.reset(token)
