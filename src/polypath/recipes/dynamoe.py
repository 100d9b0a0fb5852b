"""Counts of experts that follow from gates, and schedules of experts over depth.

On images, as the paper's main result, and on text.
Source: DynaMoE: Dynamic Token-Level Expert Activation with Layer-Wise Adaptive Capacity, arXiv
2603.01697.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from polypath.diagnosis import follows_entropy
from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.recipes import images, measures, text, where
from polypath.recipes.arms import Part
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.recipes.trials import Facts, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.routing.schedules import SHAPES
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "DynaMoE (2026)"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    images: Path | None = None
    """A folder with images and labels in MNIST's format, gzipped; scikit-learn's digits without."""
    epochs: int = 60
    """Times that each classifier sees its images."""
    image_seeds: int = 5
    """How many times each classifier is trained."""
    image_experts: int = 5
    """Experts in each of the four layers of a classifier, on average."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("epochs", 1), ("image_seeds", 1), ("image_experts", 3)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"steps": 20, "epochs": 3, "image_seeds": 2},
    "gpu": GPU,
}


def classifiers(config: Config) -> dict[str, RoutedLayers | int]:
    """On images: every schedule under the percentile and with two experts, and what they rival.

    All have the same number of experts in sum.
    """
    mean, wide = config.image_experts, images.HIDDEN

    def dynamic(shape: str, rule: str = "percentile", value: float = 0.5) -> RoutedLayers:
        options = {"schedule": shape, "rule": rule, "value": value}
        return RoutedLayers("dynamic", num_experts=mean, kind="gelu", losses={}, options=options)

    plain = RoutedLayers(num_experts=mean, kind="gelu", gate="softmax-chosen")
    return {
        "dense, all parameters": mean * wide,
        "dense, active parameters": 2 * wide,
        "top-2, balanced": plain,
        **{f"percentile, {shape}": dynamic(shape) for shape in SHAPES},
        **{f"top-2, {shape}": dynamic(shape, "top", 2.0) for shape in SHAPES},
        "mass, uniform": dynamic("uniform", "mass"),
        "mass, descending": dynamic("descending", "mass"),
    }


def arms(config: Config) -> dict[str, Arm]:
    """On text: a percentile that keeps k of the mean layer's experts, and what it rivals."""
    total, k = config.experts, config.k
    # The middle of the values of which E - 1 - floor(v (E - 1)) is k.
    value = max(0.0, (total - 1 - k + 0.5) / max(1, total - 1))

    def dynamic(shape: str, **options: Any) -> Arm:
        chosen = {"schedule": shape, "rule": "percentile", "value": value} | options
        return Arm(config.top_k("dynamic", losses={}, options=chosen))

    return {
        "dynamoe": dynamic("descending"),
        "smoe": Arm(config.top_k()),
        "uniform": dynamic("uniform"),
        "ascending": dynamic("ascending"),
        "mass": dynamic("uniform", rule="mass", value=0.5),
        "top-k, descending": dynamic("descending", rule="top", value=float(k)),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every classifier and every language model under every seed; judge the claims."""
    work = {
        arm: partial(images.fit, routed, config.epochs, config.images)
        for arm, routed in classifiers(config).items()
    }
    folder = run.folder / "images"
    facts = trials(work, config.image_seeds, config.epochs, folder, config.workers)
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(part) for part in own] for arm, own in parts.items()}
    return text.conclude(
        config,
        run,
        parts,
        [*claims_on_images(facts), *claims_on_text(parts, seen)],
        tables=[_images_table(facts), _text_table(seen)],
    )


Measured = dict[str, float]


def measured(part: Part) -> Measured:
    """How many experts serve a token of a trained model, and whether that follows from entropy."""
    routes = list(where.validation_routes(part).values())
    counts = [routing.count().double() for routing in routes]
    follows = [value for value in map(follows_entropy, routes) if value == value]
    return {
        "experts": fmean(float(count.mean()) for count in counts),
        "spread": fmean(float(count.std(correction=0)) for count in counts),
        "follows": fmean(follows) if follows else float("nan"),
    }


def _text_table(seen: Mapping[str, list[Measured]]) -> Table:
    return measures.means(
        "Experts of a token, on text",
        seen,
        "On the validation text, means over layers and seeds. Spread: standard deviation over "
        "tokens. Follows: its correlation with the entropy of the gate; none where all tokens have "
        "the same number.",
    )


def _images_table(facts: Mapping[str, list[Facts]]) -> Table:
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        mean, low, high = estimate([one["accuracy"] for one in own])
        row = [arm, own[0]["parameters"], round(fmean(one["active"] for one in own)), mean]
        row.append("" if low is None else f"{low:.3f} … {high:.3f}")
        if "counts" in own[0]:
            row += [_counts(own), fmean(fmean(one["load spread"]) for one in own)]
            row.append(fmean(sum(one["dead"]) for one in own))
        else:
            row += [None, None, None]
        rows.append([*row, fmean(one["gradient variance"] for one in own)])
    return Table(
        "Images",
        [
            *("model", "parameters", "active", "accuracy", "95 % interval"),
            *("experts of an image, by layer", "load spread", "dead", "gradient variance"),
        ],
        rows,
        note="Of test images, means over seeds. Active: parameters that an image meets. Experts: "
        "the numbers that occur in a layer, from the first layer on. Load spread: coefficient of "
        "variation, mean over layers. Dead: experts that no training image chose. Gradient "
        "variance: of its length over the steps of the last epoch, by its squared mean.",
    )


def _counts(own: list[Facts]) -> str:
    """Which numbers of experts occur in each layer, over all seeds."""
    layers = []
    for each in zip(*(one["counts"] for one in own), strict=True):
        found = [count for count in range(len(each[0])) if any(seed[count] for seed in each)]
        layers.append(f"{found[0]}" if len(found) == 1 else f"{found[0]}–{found[-1]}")
    return ", ".join(layers)


def claims_on_images(facts: Mapping[str, list[Facts]]) -> list[Claim]:
    """The paper's claims and what its reviewers asked, seed by seed, each a draw of the split."""

    def better(arm: str, than: str, claim: str, source: str, name: str = "accuracy") -> Claim:
        ours, theirs = ([one[name] for one in facts[each]] for each in (arm, than))
        lower = name == "gradient variance"
        return judge(
            f"Images: {claim}", source, than, ours, theirs, better="lower" if lower else "higher"
        )

    table, asked = f"{PAPER}, image classification", "asked by reviewers, left open"
    accurate = "(share right, difference)"
    pairs = zip(facts["percentile, uniform"], facts["top-2, uniform"], strict=True)
    apart = [abs(one["accuracy"] - other["accuracy"]) for one, other in pairs]
    spikes = [float(_varied(one)) for one in facts["percentile, uniform"]]
    return [
        judge(
            "Images: the percentile keeps as many for every image (images with another count)",
            "from the rule itself, against the paper's reading of it",
            "1",
            spikes,
            [0.0] * len(spikes),
            threshold=1.0,
        ),
        judge(
            "Images: it is a top-2, no more (share right, how far apart; below 1e-9)",
            "from the rule itself",
            "top-2, uniform",
            apart,
            [0.0] * len(apart),
            threshold=1e-9,
        ),
        better(
            "percentile, descending",
            "percentile, uniform",
            f"more experts below than above are better, at more work {accurate}",
            table,
        ),
        better(
            "top-2, descending",
            "top-2, uniform",
            f"so they are at equal work {accurate}",
            asked,
        ),
        better(
            "percentile, descending",
            "percentile, ascending",
            f"below is the right place for them {accurate}",
            table,
        ),
        better(
            "percentile, descending",
            "top-2, balanced",
            f"it betters a balanced top-2 {accurate}",
            asked,
        ),
        better(
            "percentile, descending",
            "dense, all parameters",
            f"it betters a dense network of as many parameters {accurate}",
            table,
        ),
        better(
            "mass, descending",
            "percentile, descending",
            f"counts that vary better those that do not {accurate}",
            "what the abstract promises",
        ),
        better(
            "percentile, uniform",
            "top-2, balanced",
            "the percentile lowers the variance of gradients (relative, difference)",
            f"{PAPER}, theorem on variance",
            "gradient variance",
        ),
    ]


def _varied(facts: Facts) -> int:
    """Images whose count of experts is not their layer's most frequent one."""
    return sum(sum(counts) - max(counts) for counts in facts["counts"])


def claims_on_text(parts: Parts, seen: Mapping[str, list[Measured]]) -> list[Claim]:
    """On the validation text, seed by seed."""
    bits = bits_per_byte(parts)

    def better(arm: str, than: str, claim: str, source: str) -> Claim:
        return judge(f"{claim} (bits per byte, difference)", source, than, bits[arm], bits[than])

    table = f"{PAPER}, language modelling"
    follows = [values["follows"] for values in seen["mass"]]
    return [
        better("dynamoe", "uniform", "A descending schedule is better on text", table),
        better("ascending", "uniform", "An ascending one is", table),
        better(
            "uniform",
            "smoe",
            "The percentile betters plain layers that are balanced",
            "asked by reviewers, left open",
        ),
        better("mass", "uniform", "Counts that vary are better", "what the abstract promises"),
        judge(
            "With the mass rule unsure tokens meet more experts (correlation with entropy)",
            "what the abstract promises",
            "0",
            follows,
            [0.0] * len(follows),
            better="higher",
        ),
        text.little_slower(parts, "uniform", "smoe", 0.10, "this project's aim"),
    ]
