"""What each router reads of `RoutedLayers`, and the options that it alone has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polypath.errors import InputError

# Beside the number of experts.
READS: dict[str, set[str]] = {
    "top-k": {"k", "scorer", "gate", "scale", "capacity", "bias_rate", "bias", "losses"},
    "expert-choice": {"k", "scorer", "bias", "losses"},
    "hash": {"k", "bias"},
    "soft": {"scorer", "bias", "losses"},
    "recurrent": {"k", "bias", "losses"},
    "reuse": {"k", "gate", "bias", "losses"},
    "similarity": {"k", "gate", "bias", "losses"},
    "attention": {"k", "gate", "bias", "losses"},
    "autonomous": {"k", "gate", "losses"},
    "dynamic": {"bias", "losses"},
    "pregated": {"k", "bias"},
    "per-slice": {"k", "scale", "bias", "losses"},
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


@dataclass(frozen=True)
class Reuse:
    """Neighbouring layers share their experts, see `ProgressiveScaling`; a top-k router for each.

    group: r, layers in a group, the last of which may be shorter; a layer chooses among all experts
        of its group, the places of its own being those of its place in the group.
    growth: how candidates grow in number from `least` at step `start` to all at step `end`; "none"
        for no limit in training.
    least: candidates at first, num_experts when None. group=1 with fewer is expert dropout.
    local_first: the layer's own experts are always candidates, and at first the only ones.
    renormalise: the limit comes before the softmax.
    As the paper prints it, gate is "softmax", and what is not chosen is not made up for.
    """

    group: int = 2
    growth: Literal["linear", "stepwise", "none"] = "linear"
    start: int = 10_000
    end: int = 30_000
    least: int | None = None
    local_first: bool = False
    renormalise: bool = False

    def __post_init__(self) -> None:
        if self.group < 1:
            raise InputError(f"RoutedLayers.options: group={self.group}; at least 1 is needed")
        if not 0 <= self.start <= self.end:
            raise InputError(
                f"RoutedLayers.options: start={self.start}, end={self.end}; 0 ≤ start ≤ end"
            )


@dataclass(frozen=True)
class Similarity:
    """See `SimilarityScorer`; temperature=None is an infinite one."""

    temperature: float | None = 1.0
    window: int | None = None
    voters: Literal["all", "surer"] = "all"
    start: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "temperature", "window")
        _check_share(self.start)


@dataclass(frozen=True)
class AttentionAware:
    """See `AttentionScorer`; sigma=None is an infinite one."""

    sigma: float | None = 1.0
    heads: Literal["surest", "all"] = "surest"
    relative: bool = True
    detach: bool = False
    start: float | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "sigma")
        _check_share(self.start)


@dataclass(frozen=True)
class Autonomous:
    """Experts that choose for themselves, see `AutonomousRouter` and `FactoredExperts`.

    rank: of the experts' first projection; D F / (D + F) when None. Published with gate "softmax".
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        _check_positive(self, "rank")


@dataclass(frozen=True)
class Dynamic:
    """As many experts for a token as a rule of its gates says, see `DynamicRouter`.

    schedule: the number of experts of each layer by its depth, see `polypath.routing.schedule`,
        from `least` to 2 num_experts - least; their sum is that of num_experts in every layer.
    most: experts of a token, at most; None for no limit.
    """

    rule: Literal["percentile", "mass", "relative", "mean", "absolute", "top"] = "percentile"
    value: float = 0.5
    most: int | None = None
    renormalise: Literal["gates", "logits", "proportional", "none"] = "gates"
    temperature: float = 0.5
    noise: float = 0.1
    schedule: Literal[
        "uniform",
        "descending",
        "ascending",
        "pyramid-up",
        "pyramid-down",
        "wave-up",
        "wave-down",
    ] = "uniform"
    least: int = 2

    def __post_init__(self) -> None:
        _check_positive(self, "temperature", "least", "most")


@dataclass(frozen=True)
class Pregated:
    """One router for all layers, from token ids alone, see `PregatingScorer`.

    vocabulary: how many token ids there are; it has to be given. width, heads: of the router.
    """

    vocabulary: int = 0
    width: int = 512
    heads: int = 4

    def __post_init__(self) -> None:
        _check_positive(self, "vocabulary", "width", "heads")


def _check_positive(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and not value > 0:
            raise InputError(f"RoutedLayers.options: {name}={value}; positive, or None, is right")


def _check_share(start: float | None) -> None:
    if start is not None and not 0 <= start <= 1:
        raise InputError(f"RoutedLayers.options: start={start}; 0 ≤ start ≤ 1, or None, is right")


# A frozen dataclass for each router that has options of its own; it checks their ranges.
OPTIONS: dict[str, type] = {
    "recurrent": Recurrent,
    "reuse": Reuse,
    "similarity": Similarity,
    "attention": AttentionAware,
    "autonomous": Autonomous,
    "dynamic": Dynamic,
    "pregated": Pregated,
}
