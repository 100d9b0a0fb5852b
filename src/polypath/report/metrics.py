"""Curves over training, from the lines of a run's `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

from polypath.report.figures import Curves, Series
from polypath.report.statistics import series

Record = Mapping[str, Any]

MOST_POINTS = 100


def curves(
    records: Iterable[Record],
    arms: Sequence[str],
    quantity: str,
    title: str,
    y: str,
    split: str = "valid",
    note: str = "",
) -> Curves:
    """A number such as "loss" over steps: one line for each of `arms`, with its band over seeds.

    Of a quantity that each layer has, such as "entropy", the mean over layers.
    """
    runs: dict[str, dict[int, dict[int, float]]] = {arm: {} for arm in arms}
    for record in records:
        if record["split"] == split and record["arm"] in runs and record.get(quantity) is not None:
            seeds = runs[record["arm"]]
            seeds.setdefault(record["seed"], {})[record["step"]] = _one(record[quantity])
    lines = [_line(arm, list(seeds.values())) for arm, seeds in runs.items() if seeds]
    return Curves(title, "step", y, lines, f"{note} {_band_note(lines)}".strip())


def entropy_curves(
    records: Iterable[Record], arm: str, title: str = "Routing entropy over training"
) -> Curves:
    """The mean entropy of the gate of one arm in nats: one line a layer, with its band."""
    runs: dict[str, dict[int, dict[int, float]]] = {}
    for record in records:
        if record["arm"] == arm:
            for layer, value in (record.get("entropy") or {}).items():
                seeds = runs.setdefault(layer, {})
                seeds.setdefault(record["seed"], {})[record["step"]] = value
    names = layer_labels(list(runs))
    lines = [_line(names[layer], list(seeds.values())) for layer, seeds in runs.items()]
    note = "0 when the gate is sure of its choice, log E when all experts are equal to it."
    return Curves(title, "step", "nats", lines, f"{note} {_band_note(lines)}".strip())


def layer_labels(names: Sequence[str]) -> dict[str, str]:
    """Layers' dotted names to short ones: "layer 3" where a number is all that they differ in."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1:
        differing = [column for column in zip(*parts, strict=True) if len(set(column)) > 1]
        numbers = differing[0] if len(differing) == 1 else ()
        if numbers and all(part.isdecimal() for part in numbers):
            return {name: f"layer {n}" for name, n in zip(names, numbers, strict=True)}
    return {name: name for name in names}


def _one(value: float | Mapping[str, float]) -> float:
    return fmean(value.values()) if isinstance(value, Mapping) else value


def _line(name: str, runs: Sequence[Mapping[int, float]]) -> Series:
    """The steps that every seed has reached, each with its mean and interval.

    Of more than MOST_POINTS, those next to each other are averaged, at the last step of them.
    """
    steps = sorted(set.intersection(*(set(run) for run in runs)))
    count = min(len(steps), MOST_POINTS)
    cuts = [i * len(steps) // count for i in range(count + 1)] if count else []
    blocks = [steps[a:b] for a, b in pairwise(cuts)]
    values = [[fmean(run[step] for step in block) for block in blocks] for run in runs]
    return series(name, [block[-1] for block in blocks], values)


def _band_note(lines: Sequence[Series]) -> str:
    banded = any(low is not None for line in lines for low in line.low)
    return "Bands: 95 % intervals of the mean over seeds." if banded else ""
