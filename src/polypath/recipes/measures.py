"""Instruments for a comparison: what tells routed models apart beside their loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

import torch
from torch import nn

from polypath.diagnosis import (
    dependence,
    fluctuation,
    imbalance,
    layer_couplings,
    mean_entropy,
    noise_on_routers,
)
from polypath.diagnosis.fluctuation import NOISE
from polypath.errors import InputError
from polypath.recipes import where
from polypath.recipes.arms import Part, trained
from polypath.report import Figure, Table, estimate
from polypath.report.metrics import curves as metric_curves
from polypath.routing import Routing

Routes = Mapping[str, Routing]


@dataclass(frozen=True, eq=False)
class Seen:
    """A trained model and its routes of the validation text; noisy: with noise on routers."""

    model: nn.Module
    routes: Routes
    noisy: Routes

    @classmethod
    def of(cls, part: Part) -> Seen:
        model = trained(part)
        routes = where.validation_routes(part, model)
        with noise_on_routers(model, seed=part.seed):
            return cls(model, routes, where.validation_routes(part, model))


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
    seen = Seen.of(part)
    return {title: measure(seen) for title, (measure, _) in MEASURES.items()}


def _cell(values: list[float | None]) -> str | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    mean, low, high = estimate(known)
    if mean is None or low is None or high is None:
        return f"{fmean(known):.3g}"
    return f"{mean:.3g} ± {(high - low) / 2:.2g}"


Measure = Callable[[Seen], float | None]


def _over_layers(one: Callable[[Routing], float]) -> Measure:
    def measure(seen: Seen) -> float | None:
        try:
            return fmean(one(routing) for routing in seen.routes.values())
        except InputError:  # a router without probabilities
            return None

    return measure


def _ties(seen: Seen) -> float | None:
    """Mean over neighbouring layers of their dependence, above that of shuffled tokens."""
    generator = torch.Generator().manual_seed(0)
    pairs = [dependence(a, b, generator) for a, b in pairwise(seen.routes.values())]
    return fmean(found - control for found, control in pairs) if pairs else None


def unsteady(seen: Seen) -> float:
    """The share of tokens whose heaviest expert changes under noise, mean over layers."""
    pairs = zip(seen.routes.values(), seen.noisy.values(), strict=True)
    return fmean(fluctuation(clean, noisy).first for clean, noisy in pairs)


def _coupled(seen: Seen) -> float | None:
    layers = layer_couplings(seen.model).values()
    return max((layer.strength for layer in layers), default=None)


MEASURES: dict[str, tuple[Measure, str]] = {
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
    "unsteady": (
        unsteady,
        "tokens whose heaviest expert changes when routers see noise of "
        f"{100 * NOISE:g} % of their input's length.",
    ),
    "α*": (
        _coupled,
        "of the worst layer, at most 1 where every router's row excites its own expert most.",
    ),
}


def curves(metrics: list[dict], arms: Sequence[str]) -> list[Figure]:
    """The measures that training logs, over its steps."""
    return [
        metric_curves(
            metrics,
            arms,
            "fluctuation",
            "Fluctuation between validations",
            "share of tokens",
            note="Tokens whose heaviest expert is another than at the validation before; mean over "
            "layers. A model that sends all to one expert does not fluctuate.",
        ),
        metric_curves(
            metrics,
            arms,
            "pathways",
            "Pathway distance",
            "edits",
            note="Mean edit distance between the experts of two windows, of those in each layer "
            "that hold 70 % of the gate.",
        ),
    ]
