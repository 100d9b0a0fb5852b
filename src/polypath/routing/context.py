"""What a router may read beside the things it routes; the host provides it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.routing.record import Routing


@dataclass(frozen=True, eq=False)
class RoutingContext:
    """Everything a router may ask for, over T things laid out row by row; None where not given.

    shape: the things' layout, (batch, length) for tokens; T is its product.
    mask: (T,) bool, False for padding.
    tokens: (T,) int64, token ids.
    positions: (T,) int64, places in the sequence.
    modality: (T,) int64.
    attention: (batch, heads, length, length), of the attention that came before the layer.
    candidates: (E,) or (T, E) bool, the experts that may be chosen.
    experts: (T, K) int64, experts that must be chosen (replay).
    previous: the Routing of the layer below.
    step: the training step.
    generator: the source of the router's randomness.
    """

    shape: tuple[int, ...] | None = None
    mask: Tensor | None = None
    tokens: Tensor | None = None
    positions: Tensor | None = None
    modality: Tensor | None = None
    attention: Tensor | None = None
    candidates: Tensor | None = None
    experts: Tensor | None = None
    previous: Routing | None = None
    step: int | None = None
    generator: torch.Generator | None = None

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
