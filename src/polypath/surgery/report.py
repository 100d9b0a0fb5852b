"""What an operation did to a model: what moved where, sizes before and after, how exact it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from polypath.errors import InputError
from polypath.files import replace_text
from polypath.plain import decode, encode
from polypath.routing import routed_layers

FILE = "surgery.json"


@dataclass(frozen=True)
class Size:
    """parameters: in the model, each once. active: met by a token. bytes: of all parameters."""

    parameters: int
    active: int
    bytes: int

    @classmethod
    def of(cls, model: nn.Module) -> Size:
        """The size of a model; an expert counts as active by the share of experts that serve."""
        every = list(model.parameters())
        total = sum(parameter.numel() for parameter in every)
        idle = 0.0
        for layer in routed_layers(model).values():
            held = sum(parameter.numel() for parameter in layer.experts.parameters())
            idle += held * (1 - served(layer))
        held_bytes = sum(parameter.numel() * parameter.element_size() for parameter in every)
        return cls(total, round(total - idle), held_bytes)


def served(layer: Any) -> float:
    """The share of a layer's stored experts that serve a thing, at most; 1 where it is not known.

    Of experts that were merged, two choices may be one: then it is a bound.
    """
    k = getattr(getattr(layer.router, "selection", None), "k", None)
    if k is None:
        k = 1 if hasattr(getattr(layer.router, "selection", None), "room") else None
    return 1.0 if k is None else min(1.0, k / stored(layer.experts))


def stored(experts: Any) -> int:
    """How many experts a bank keeps."""
    for name in ("stored", "down_proj"):
        if (found := getattr(experts, name, None)) is not None:
            return found if isinstance(found, int) else len(found)
    return len(experts)


@dataclass(frozen=True)
class Move:
    """What became of a part.

    part: where, as "layer 3". was, became: in words. share: of it kept, 0 to 1, or None where that
    says nothing.
    """

    part: str
    was: str
    became: str
    share: float | None = None


@dataclass(frozen=True)
class Check:
    """What should be exact, and how far it is. measured: the largest relative difference found.

    bound: what rounding allows.
    """

    what: str
    measured: float
    bound: float

    @property
    def held(self) -> bool:
        return self.measured <= self.bound


@dataclass(frozen=True)
class Surgery:
    """The report of an operation.

    settings: its configuration in plain values. notes: what a reader should know beside.
    """

    operation: str
    settings: Mapping[str, Any]
    before: Size
    after: Size
    moves: Sequence[Move]
    checks: Sequence[Check] = ()
    notes: Sequence[str] = ()
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Write it beside a model, as `surgery.json`."""
        text = json.dumps(encode(self), indent=1, allow_nan=False)
        replace_text(folder / FILE, text + "\n")

    @classmethod
    def read(cls, folder: Path) -> Surgery:
        """What `save` wrote; raises InputError for a file that is absent or is not one."""
        path = folder / FILE
        try:
            return decode(cls, json.loads(path.read_text(encoding="utf-8")), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise InputError(f"{path}: not JSON: {error}") from error
