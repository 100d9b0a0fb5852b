"""Instruments for a comparison: what tells routed models apart beside their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from statistics import fmean

import torch

from polypath.diagnosis import dependence, imbalance, mean_entropy
from polypath.errors import InputError
from polypath.recipes import where
from polypath.recipes.arms import Part
from polypath.report import Figure, Table, estimate
from polypath.routing import Routing

Routes = Mapping[str, Routing]


def table(parts: Mapping[str, list[Part]]) -> Table:
    """Every measure of every arm, the mean over its seeds, with the half width of its interval."""
    rows = []
    for name, own in parts.items():
        seen = [_measured(part) for part in own]
        rows.append([name, *(_cell([values[title] for values in seen]) for title in seen[0])])
    return Table(
        "How they route",
        ["model", *MEASURES],
        rows,
        note="On the validation text, means over layers and seeds, ± half of the 95 % interval. "
        + " ".join(f"{title}: {doc}" for title, (_, doc) in MEASURES.items()),
    )


def means(title: str, seen: Mapping[str, Sequence[Mapping[str, float]]], note: str) -> Table:
    """What a recipe measured of every arm, one mapping a seed: the means over seeds."""
    names = list(next(iter(seen.values()))[0])
    rows = [
        [arm, *(estimate([values[name] for values in own]).mean for name in names)]
        for arm, own in seen.items()
    ]
    return Table(title, ["model", *names], rows, note=note)


def _measured(part: Part) -> dict[str, float | None]:
    routes = where.validation_routes(part)
    return {title: measure(routes) for title, (measure, _) in MEASURES.items()}


def _cell(values: list[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, low, high = estimate(known)
    if mean is None or low is None or high is None:
        return f"{fmean(known):.3g}"
    return f"{mean:.3g} ± {(high - low) / 2:.2g}"


def _over_layers(one: Callable[[Routing], float]) -> Callable[[Routes], float | None]:
    def measure(routes: Routes) -> float | None:
        try:
            return fmean(one(routing) for routing in routes.values())
        except InputError:  # a router without probabilities
            return None

    return measure


def _ties(routes: Routes) -> float | None:
    """Mean over neighbouring layers of their dependence, above that of shuffled tokens."""
    generator = torch.Generator().manual_seed(0)
    pairs = [dependence(a, b, generator) for a, b in pairwise(routes.values())]
    return fmean(found - control for found, control in pairs) if pairs else None


MEASURES: dict[str, tuple[Callable[[Routes], float | None], str]] = {
    "experts": (
        _over_layers(lambda routing: float(routing.count().float().mean())),
        "how many serve a token.",
    ),
    "imbalance": (_over_layers(imbalance), "what the busiest expert has above the mean load."),
    "entropy": (
        _over_layers(lambda routing: mean_entropy(routing) / math.log(routing.num_experts)),
        "of the gate, 1 when it is even.",
    ),
    "ties": (
        _ties,
        "normalised mutual information of the experts of neighbouring layers, "
        "above that with the tokens shuffled.",
    ),
}


def curves(metrics: list[dict], parts: Mapping[str, list[Part]]) -> list[Figure]:
    """The measures that training logs, over its steps."""
    return []
