"""What each router reads of `RoutedLayers`, and the options that it alone has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from polypath.errors import InputError

# Beside the number of experts.
READS: dict[str, set[str]] = {
    "top-k": {"k", "scorer", "gate", "capacity", "bias_rate", "losses"},
    "expert-choice": {"k", "scorer", "losses"},
    "hash": {"k"},
    "soft": {"scorer", "losses"},
    "recurrent": {"k", "losses"},
}


@dataclass(frozen=True)
class Recurrent:
    """See `RecurrentScorer`; the layers of a stack share one cell.

    state: p, the width of the state. shared_projection: one projection for all layers.
    cosine: the cell's output is scored as `CosineScorer` does.
    """

    state: int = 128
    passing: Literal["on", "off", "detached"] = "on"
    cell: Literal["gru", "rnn", "lstm"] = "gru"
    shared_projection: bool = False
    cosine: bool = False
    residual: float = 0.0
    residual_detached: bool = False

    def __post_init__(self) -> None:
        if self.state < 1:
            raise InputError(f"RoutedLayers.options: state={self.state}; at least 1 is needed")


# A frozen dataclass for each router that has options of its own; it checks their ranges.
OPTIONS: dict[str, type] = {"recurrent": Recurrent}
