"""One training run for models of many sizes, beside runs for each size; and streams untold apart.

Source: elastic training and routing analysis of the ERNIE 5.0 Technical Report, arXiv 2602.04705.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from polypath.errors import InputError
from polypath.language import (
    Elastic,
    RoutedLayers,
    SubModel,
    elastic_step,
    extract,
    most_used,
    running,
    whole,
)
from polypath.recipes import arms as training
from polypath.recipes import measures, streams, text
from polypath.recipes.arms import Part, bits_per_token, final, kept_text, trained
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.recipes.trials import trials
from polypath.report import Claim, Outcome, Table, judge
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "ERNIE 5.0 (2026)"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    experts: int = 16
    """Experts in each layer."""
    k: int = 4
    """Experts that serve a token."""
    hidden: int = 32
    """Width of an expert."""
    tuning: float = 0.1
    """How long a part that is cut out is trained on, in steps of the whole run."""
    grid_windows: int = 48
    """Windows on which sub-models are compared."""
    stream_steps: int = 300
    """Steps of the model of three streams."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts < 4 or self.k < 2 or self.layers < 3 or 2 * self.k > self.experts:
            raise InputError(
                f"experts={self.experts}, k={self.k}, layers={self.layers}; parts of a model need "
                "4 experts, k = 2 of twice as many, and 3 layers at least"
            )
        if not 0 < self.tuning <= 1 or min(self.grid_windows, self.stream_steps) < 1:
            raise InputError(
                f"tuning={self.tuning}, grid_windows={self.grid_windows}, "
                f"stream_steps={self.stream_steps}; a part of 1, and one at least"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"steps": 20, "grid_windows": 8, "stream_steps": 20},
    "gpu": GPU
    | {
        "hidden": 64,
        "stream_steps": 1500,
    },
}

ALL_FULL = 0.75 * 0.80 * 0.80
"""How often a step of elastic training is whole."""


def arms(config: Config) -> dict[str, Arm]:
    """Elastic in everything, plain, elastic in one thing, and plain for as long as it is whole.

    All balance without a loss, as the report does.
    """
    routed = config.top_k(gate="sigmoid", losses={}, bias_rate=1e-3)

    def elastic(depth: float = 1.0, width: float = 1.0, count: float = 1.0) -> Arm:
        return Arm(routed, around=partial(elastic_step, elastic=Elastic(depth, width, count)))

    return {
        "ernie5": elastic(0.75, 0.80, 0.80),
        "smoe": Arm(routed),
        "depth": elastic(depth=0.75),
        "width": elastic(width=0.80),
        "count": elastic(count=0.80),
        "shorter": Arm(routed, share=ALL_FULL),
    }


def points(config: Config) -> dict[str, tuple[int, int, int]]:
    """Layers, experts and k of the sub-models that are compared; the first is the whole."""
    layers, experts, k = config.layers, config.experts, config.k
    most, half = max(2, round(0.75 * layers)), max(2, round(0.5 * layers))
    return {
        "whole": (layers, experts, k),
        "¾ layers": (most, experts, k),
        "½ layers": (half, experts, k),
        "½ experts": (layers, experts // 2, k),
        "½ k": (layers, experts, k // 2),
        "k = 1": (layers, experts, 1),
        "½ of all": (half, experts // 2, k // 2),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed, cut parts out and train them on; then the streams."""
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(config, part) for part in own] for arm, own in parts.items()}
    tuned = tune(config, parts)
    routed = RoutedLayers(num_experts=16, k=2, hidden=32, gate="sigmoid", losses={}, bias_rate=1e-3)
    work = {
        "streams": partial(streams.fit, routed, config.layers, config.stream_steps, config.data)
    }
    reports = -(-config.stream_steps // streams.STRIDE)
    facts = trials(work, config.seeds, reports, run.folder / "streams", config.workers)["streams"]
    judged = [*claims(config, parts, seen, tuned), *streams.claims(facts, PAPER)]
    grid = measures.means(
        "Sub-models, as they are",
        seen,
        f"Bits per token on {config.grid_windows} windows of the validation text, without further "
        "training, means over seeds. Layers and experts are those that training text uses most; "
        "drawn: half of all, at random. Faster: tokens per second with k = 1, over those with all.",
    )
    shown = [_tuned_table(tuned), streams.table(facts)]
    return text.conclude(
        config, run, parts, judged, tables=[grid, *shown], figures=streams.figures(facts)
    )


def calibrated(config: Config, part: Part, model: Any, size: tuple[int, int, int]) -> SubModel:
    """The sub-model of a size that the training text uses most."""
    layers, experts, k = size
    read = kept_text(part.run.folder / "data").windows().batch(0, part.seed, 32)[:, :-1]
    return most_used(model, [read], layers, experts if experts < config.experts else None, k)


Measured = dict[str, float]


def measured(config: Config, part: Part) -> Measured:
    """What sub-models of a trained model lose, in bits per token, and how much faster k = 1 is."""
    model: Any = trained(part)
    windows = kept_text(part.run.folder / "data").validation(config.grid_windows)
    read, wanted = windows[:, :-1], windows[:, 1:]
    found = {}
    for name, size in points(config).items():
        with running(model, calibrated(config, part, model, size)):
            found[name] = bits_per_token(model, read, wanted)
    with running(model, drawn(config, part)):
        found["drawn"] = bits_per_token(model, read, wanted)
    one = replace(whole(model), k=1)
    found["faster"] = _seconds(model, read, whole(model)) / _seconds(model, read, one)
    return found


def drawn(config: Config, part: Part) -> SubModel:
    """A sub-model of half of all at random, the control."""
    layers, experts, k = points(config)["½ of all"]
    never = Elastic(0.0, 0.0, 0.0, (layers / config.layers,), (experts / config.experts,), (k,))
    every = dict.fromkeys(range(config.layers), config.experts)
    return never.draw(config.layers, every, config.k, part.seed, 0)


@torch.no_grad()
def _seconds(model: Any, read: torch.Tensor, sub: SubModel) -> float:
    """The median time of a forward over five."""
    found = []
    with running(model, sub):
        for _ in range(5):
            began = time.perf_counter()
            model(input_ids=read[:16].to(model.device), use_cache=False)
            found.append(time.perf_counter() - began)
    return median(found)


def tune(config: Config, parts: Parts) -> Parts:
    """Half of all, cut out of two arms and trained on, beside as small a model from nothing."""
    steps = max(1, round(config.tuning * config.steps))
    layers, experts, k = points(config)["½ of all"]
    values = {f.name: getattr(config, f.name) for f in fields(TextConfig)}
    small = TextConfig(**{**values, "layers": layers, "experts": experts, "k": k})
    anew = Arm(small.top_k(gate="sigmoid", losses={}, bias_rate=1e-3))
    found: Parts = {"cut from ernie5": [], "cut from smoe": [], "from nothing": []}
    for arm, own in found.items():
        for part in parts["smoe"]:
            build: Any = partial(text.build, small, anew)
            if arm != "from nothing":
                build = partial(cut, config, parts[arm.removeprefix("cut from ")][part.seed])
            settings = replace(part.settings, steps=steps, warmup=min(5, steps))
            own.append(replace(part, arm=arm, build=build, settings=settings, around=None))
    every = zip(*found.values(), strict=True)
    training.train([part for seed in every for part in seed], config.workers)
    return found


def cut(config: Config, part: Part, vocabulary: int) -> nn.Module:
    """Half of all of a trained model, as a model of its own."""
    model: Any = trained(part)
    return extract(model, calibrated(config, part, model, points(config)["½ of all"]))


def _tuned_table(tuned: Parts) -> Table:
    return Table(
        "Half of all, cut out and trained on",
        ["model", "bits per byte"],
        [[arm, fmean(final(part).bits_per_byte for part in own)] for arm, own in tuned.items()],
        note="On the validation text, after as many further steps each, means over seeds.",
    )


def claims(
    config: Config, parts: Parts, seen: Mapping[str, list[Measured]], tuned: Parts
) -> list[Claim]:
    """What the report says of elastic training, seed by seed."""
    bits = bits_per_byte(parts)
    ablation, none = f"{PAPER}, ablation at 3.2B", [0.0] * config.seeds

    def lost(arm: str, point: str) -> list[float]:
        return [own[point] - own["whole"] for own in seen[arm]]

    def losing_less(point: str, arm: str = "ernie5") -> Claim:
        return judge(
            f"It loses less at {point} (bits per token, difference of losses)",
            ablation,
            "smoe",
            lost(arm, point),
            lost("smoe", point),
        )

    worse = [a / b - 1 for a, b in zip(bits["ernie5"], bits["smoe"], strict=True)]
    small = {arm: [final(part).bits_per_byte for part in own] for arm, own in tuned.items()}
    return [
        judge(
            "Elastic training is as good at full size (bits per byte, ratio - 1, below 1 %)",
            ablation,
            "smoe",
            worse,
            none,
            threshold=0.01,
        ),
        judge(
            "It is better than as many whole steps alone (bits per byte, difference)",
            "this project's control",
            "shorter",
            bits["ernie5"],
            bits["shorter"],
        ),
        losing_less("½ layers"),
        losing_less("½ experts"),
        losing_less("k = 1"),
        losing_less("½ of all"),
        judge(
            "What text uses most is worth keeping (bits per token, difference to a draw)",
            "this project's control",
            "drawn",
            [own["½ of all"] for own in seen["ernie5"]],
            [own["drawn"] for own in seen["ernie5"]],
        ),
        judge(
            "A part that is cut out and trained on is better than one from nothing (bits per byte)",
            f"{PAPER}, compact models",
            "from nothing",
            small["cut from ernie5"],
            small["from nothing"],
        ),
        judge(
            "Better than one cut from a model that was not elastic (bits per byte, difference)",
            f"{PAPER}, compact models",
            "cut from smoe",
            small["cut from ernie5"],
            small["cut from smoe"],
        ),
        judge(
            "k = 1 is faster than all of k (tokens per second, ratio - 1, above 15 %)",
            f"{PAPER}, table 12",
            "all of k",
            [own["faster"] - 1 for own in seen["ernie5"]],
            none,
            better="higher",
            threshold=0.15,
        ),
    ]
