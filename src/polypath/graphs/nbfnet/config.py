"""What an NBFNet is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from polypath.errors import InputError, unknown

Messages = Literal["distmult", "transe", "rotate"]
Aggregation = Literal["pna", "sum", "mean", "max"]


@dataclass(frozen=True)
class NBFNetConfig:
    """What an `NBFNet` is made of.

    num_types: types of edges, and of queries; a knowledge graph has two a relation, one of them
    inverse. message: a state and its edge's value make a message as a product (distmult), a sum
    (transe) or a complex product (rotate). dependent: edges mean what the query makes of them, else
    the same to all; the paper's choice where types are few. layer_norm, shortcut, activation: what
    a layer ends with.
    Raises InputError for sizes below 1, unknown names, and an odd dim with rotate.
    """

    num_types: int
    dim: int = 32
    layers: int = 6
    message: Messages = "distmult"
    aggregate: Aggregation = "pna"
    dependent: bool = True
    layer_norm: bool = True
    shortcut: bool = True
    activation: bool = True

    def __post_init__(self) -> None:
        for name in ("num_types", "dim", "layers"):
            if getattr(self, name) < 1:
                raise InputError(f"NBFNet: {name}={getattr(self, name)}; at least 1 is right")
        for name, known in (("message", get_args(Messages)), ("aggregate", get_args(Aggregation))):
            if getattr(self, name) not in known:
                raise unknown(name, getattr(self, name), known)
        if self.message == "rotate" and self.dim % 2:
            raise InputError(f"NBFNet: dim={self.dim}; rotate needs an even one")
