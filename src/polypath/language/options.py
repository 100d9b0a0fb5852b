"""What each router reads of `RoutedLayers`, and the options that it alone has."""

from __future__ import annotations

# Beside the number of experts.
READS: dict[str, set[str]] = {
    "top-k": {"k", "scorer", "gate", "capacity", "bias_rate", "losses"},
    "expert-choice": {"k", "scorer", "losses"},
    "hash": {"k"},
    "soft": {"scorer", "losses"},
}

# A frozen dataclass for each router that has options of its own; it checks their ranges.
OPTIONS: dict[str, type] = {}
