"""Pathways that tell memorising from understanding, without a test set.

On addition modulo a prime, which is memorised long before it is understood.
Source: Where to find Grokking in LLM Pretraining? Monitor Memorization-to-Generalization without
Test, arXiv 2506.21551.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from scipy.stats import pearsonr, spearmanr

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.recipes import arithmetic
from polypath.recipes.random_routers import dimensions
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.report.figures import Curves
from polypath.report.statistics import series
from polypath.training.run import Run

DOMAIN = "arithmetic"
PAPER = "Grokking in LLM Pretraining (2025)"
MONITORS = ("distance", "cosine", "roughness", "entropy", "training loss", "test loss")


@dataclass(frozen=True)
class Config:
    """What is trained, and for how long."""

    seeds: int = 5
    """How many times everything is trained, with seeds 0, 1, …"""
    steps: int = 6000
    """Optimiser steps of each network, on all training pairs at once."""
    every: int = 125
    """Steps between looks at a network."""
    modulus: int = 23
    """Numbers are added modulo this."""
    share: float = 0.7
    """The part of all pairs that is trained on."""
    experts: int = 8
    """Experts in each of three layers."""
    decay: float = 2.0
    """Weight decay; without it nothing is understood."""
    workers: int = 0
    """Networks trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name, least in (("seeds", 1), ("steps", 1), ("every", 1), ("modulus", 5)):
            if getattr(self, name) < least:
                raise InputError(f"{name}={getattr(self, name)}; at least {least} is needed")
        if not 0.1 <= self.share <= 0.9:
            raise InputError(f"share={self.share}; 0.1 to 0.9 is right")
        if self.experts < 2 or self.decay < 0:
            raise InputError(f"experts={self.experts}, decay={self.decay}; experts ≥ 2, decay ≥ 0")


PRESETS: dict[str, dict[str, Any]] = {"quick": {"seeds": 2, "steps": 500, "every": 25}}


def arms(config: Config) -> dict[str, tuple[RoutedLayers, float]]:
    """Networks and their weight decays: all experts, the same without decay, and two experts."""
    soft = RoutedLayers("soft", num_experts=config.experts, kind="relu", losses={})
    two = RoutedLayers(num_experts=config.experts, k=2, kind="relu", losses={})
    return {
        "all experts": (soft, config.decay),
        "no decay": (soft, 0.0),
        "top-2": (two, config.decay),
        "top-2, balanced": (
            RoutedLayers(num_experts=config.experts, k=2, kind="relu"),
            config.decay,
        ),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every network under every seed; judge what its pathways tell."""
    task = arithmetic.Task(config.modulus, config.share, config.steps, config.every)
    work = {
        arm: partial(arithmetic.fit, routed, decay, task)
        for arm, (routed, decay) in arms(config).items()
    }
    folder = run.folder / "addition"
    looks = -(-config.steps // config.every)
    facts = trials(work, config.seeds, looks, folder, config.workers)
    tables = [_table(facts), _correlations(facts["all experts"])]
    figures = [
        _curves(facts, "test accuracy", "Test pairs that are right", "share"),
        _curves(facts, "distance", "Pathway distance of training pairs", "edits"),
        _curves(facts, "cosine", "Cosine of neighbouring layers' routing", "cosine"),
        _curves(facts, "training loss", "Training loss", "nats"),
    ]
    return conclude(run, facts, tables, claims(facts, config.seeds), figures)


def after_memorising(facts: Facts) -> list[Facts]:
    """The looks from the first on at which all but one in a hundred training pairs are right."""
    curve = facts["curve"]
    known = [i for i, look in enumerate(curve) if look["training accuracy"] >= 0.99]
    return curve[known[0] :] if known else []


def correlation(
    looks: Sequence[Facts], monitor: str, how: Callable[..., Any] = pearsonr
) -> tuple[float, float]:
    """Of a monitor with test accuracy over looks, with its p-value; NaN where one is constant."""
    both = [(look[monitor], look["test accuracy"]) for look in looks if look[monitor] is not None]
    if len(both) < 3 or any(len(set(values)) == 1 for values in zip(*both, strict=True)):
        return float("nan"), float("nan")
    found = how(*zip(*both, strict=True))
    return float(found.statistic), float(found.pvalue)


def rise_and_fall(facts: Facts) -> tuple[float, float]:
    """How far the distance rises from memorising to its peak, and falls from there; shares.

    The fall is to the first look at which nine in ten test pairs are right, or to the last one.
    """
    looks = after_memorising(facts)
    if not looks:
        return float("nan"), float("nan")
    known = [i for i, look in enumerate(looks) if look["test accuracy"] >= 0.9]
    end = known[0] if known else len(looks) - 1
    first, last = looks[0]["distance"], looks[end]["distance"]
    peak = max(look["distance"] for look in looks[: end + 1])
    return peak / first - 1, 1 - last / peak


def _table(facts: Mapping[str, list[Facts]]) -> Table:
    def mean(values: list[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if len(known) == len(values) else None

    rows: list[list[Any]] = []
    for arm, own in facts.items():
        changes = [rise_and_fall(one) for one in own]
        rows.append(
            [
                arm,
                mean([one["memorised"] for one in own]),
                mean([one["understood"] for one in own]),
                fmean(one["curve"][-1]["test accuracy"] for one in own),
                estimate([rise for rise, _ in changes]).mean,
                estimate([fall for _, fall in changes]).mean,
            ]
        )
    return Table(
        "Memorised, then understood",
        ["model", "memorised", "understood", "test accuracy", "rise", "fall"],
        rows,
        note="Steps from which half of the training pairs are memorised, and half of the test "
        "pairs stay right; none where a seed never gets there. Rise of the pathway distance from "
        "memorising to its peak, and fall from there until nine in ten test pairs are right, or "
        "the end. Means over seeds.",
    )


def _correlations(own: list[Facts]) -> Table:
    """Each monitor with test accuracy, in the first arm."""
    rows: list[list[Any]] = []
    for monitor in MONITORS:
        looks = [after_memorising(one) for one in own]
        pearson = [correlation(each, monitor) for each in looks]
        spearman = [correlation(each, monitor, spearmanr)[0] for each in looks]
        rows.append(
            [
                monitor,
                estimate([r for r, _ in pearson]).mean,
                estimate(spearman).mean,
                estimate([max(p, 1e-300) for _, p in pearson]).mean,
            ]
        )
    return Table(
        "What tells of test accuracy",
        ["monitor", "Pearson", "Spearman", "p"],
        rows,
        note="With all experts, over the looks after memorising, means over seeds; test loss needs "
        "a test set, the others do not. p: of Pearson's, as if looks were independent, which they "
        "are not: curves that only move one way always correlate.",
    )


def _curves(facts: Mapping[str, list[Facts]], name: str, title: str, y: str) -> Curves:
    lines = []
    for arm, own in facts.items():
        steps = [look["step"] for look in own[0]["curve"]]
        runs = [[look[name] for look in one["curve"]] for one in own]
        lines.append(series(arm, steps, runs))
    return Curves(title, "step", y, lines, "Bands: 95 % intervals of the mean over seeds.")


def claims(facts: Mapping[str, list[Facts]], seeds: int) -> list[Claim]:
    """What the paper says of pathways, seed by seed."""
    own = facts["all experts"]
    none = [0.0] * seeds
    looks = [after_memorising(one) for one in own]

    def told(monitor: str) -> list[float]:
        return [correlation(each, monitor)[0] for each in looks]

    change = {arm: [rise_and_fall(one) for one in each] for arm, each in facts.items()}
    rises, falls = ([pair[i] for pair in change["all experts"]] for i in (0, 1))
    figure, table = f"{PAPER}, figure of distances", f"{PAPER}, table of correlations"
    dimension = [dimensions(seed) for seed in range(seeds)]
    return [
        judge(
            "After memorising, pathways first drift apart (rise of the distance, at least 0.2)",
            "this project's run in NumPy",
            "0.2",
            rises,
            none,
            better="higher",
            threshold=0.2,
        ),
        judge(
            "As pairs are understood, they draw together (fall of the distance, at least 0.25)",
            figure,
            "0.25",
            falls,
            none,
            better="higher",
            threshold=0.25,
        ),
        judge(
            "Without weight decay nothing is understood, and they draw together less (difference)",
            "a control",
            "no decay",
            falls,
            [fall for _, fall in change["no decay"]],
            better="higher",
        ),
        judge(
            "Distance tells of test accuracy (correlation, at most -0.6)",
            table,
            "-0.6",
            told("distance"),
            none,
            threshold=-0.6,
        ),
        judge(
            "Training loss does not (size of its correlation, at most 0.3)",
            table,
            "0.3",
            [abs(value) for value in told("training loss")],
            none,
            threshold=0.3,
        ),
        judge(
            "So does how straight ways are (correlation of the mean cosine, at least 0.3)",
            table,
            "0.3",
            told("cosine"),
            none,
            better="higher",
            threshold=0.3,
        ),
        judge(
            "Distance tells more than the gate's entropy (size of correlation, difference)",
            f"{PAPER}, entropy control",
            "entropy",
            [abs(value) for value in told("distance")],
            [abs(value) for value in told("entropy")],
            better="higher",
        ),
        judge(
            "Farther pathways mean a higher effective dimension, at equal trace (correlation)",
            f"{PAPER}, companion check",
            "0",
            [scaled for scaled, _ in dimension],
            none,
            better="higher",
        ),
        judge(
            "They do also where the trace is free (correlation)",
            f"{PAPER}, companion check",
            "0",
            [raw for _, raw in dimension],
            none,
            better="higher",
        ),
    ]
