"""What Read-ME is compared with, and what one can see of where its router sends things."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.diagnosis import dependence
from polypath.language import RoutedLayers
from polypath.recipes.dense_hosts import scores
from polypath.routing import MoE, Routing, RoutingContext, record, routed_layers
from polypath.surgery.calibration import Calibration, ChannelSums
from polypath.surgery.convert import Cut
from polypath.surgery.readme import ReadMe, domain_masks, overlaps
from polypath.surgery.slices import DenseLayer, sets_of
from polypath.surgery.supervision import Target, supervise
from polypath.surgery.tuning import After, Tuning, fit, training_only, watching


@dataclass(frozen=True, eq=False)
class Half:
    """The baseline: every dense layer keeps its most active channels, for all domains alike."""

    sizes: Mapping[int, Tensor]
    kept: float
    name: str = "half"

    def check(self, dense: Mapping[int, DenseLayer]) -> None:
        pass

    def routed(self, model: PreTrainedModel, dense: Mapping[int, DenseLayer]) -> RoutedLayers:
        first = next(iter(dense.values()))
        wide = [round(self.kept * layer.width) for layer in dense.values()]
        return RoutedLayers(num_experts=1, k=1, hidden=wide, kind=first.kind, losses={})

    def cut(self, index: int, dense: DenseLayer) -> Cut:
        return Cut(sets_of(domain_masks(self.sizes[index][None], self.kept)), "half of the units")

    def start(self, model: PreTrainedModel, index: int, layer: Any) -> None:
        pass


@dataclass(frozen=True, eq=False)
class PerLayer(ReadMe):
    """The baseline: the same experts under a linear router in every layer, which reads its rows."""

    def routed(self, model: PreTrainedModel, dense: Mapping[int, DenseLayer]) -> RoutedLayers:
        same = super().routed(model, dense)
        return replace(same, router="top-k", options=None, losses={})

    def start(self, model: PreTrainedModel, index: int, layer: Any) -> None:
        pass


def pooled(seen: Mapping[str, Calibration]) -> dict[int, Tensor]:
    """The mean activity of channels over all domains, by layer."""
    first = next(iter(seen.values()))
    return {
        index: torch.stack([own.dense[index].mean() for own in seen.values()]).mean(0)
        for index in first.dense
    }


def at_random(seen: Mapping[str, Calibration], seed: int) -> dict[str, Calibration]:
    """Calibrations of channels that are active at random, the control."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: Calibration(
            dense={
                index: ChannelSums(1, torch.rand(len(sums.sizes), generator=generator).double())
                for index, sums in own.dense.items()
            }
        )
        for name, own in seen.items()
    }


def tune_layers(
    model: PreTrainedModel,
    dense: PreTrainedModel,
    masks: Mapping[int, Tensor],
    stream: Iterator[Tensor],
    tuning: Tuning,
    after: After,
) -> None:
    """Teach each layer's own router the overlaps of its own layer."""
    layers = routed_layers(model)
    index_of = dict(zip(layers, sorted(masks), strict=True))
    seen: dict[int, Tensor] = {}

    def teach(name: str, layer: MoE, rows: Tensor, routing: Routing) -> Target:
        index = index_of[name]
        return Target(overlaps(seen[index], masks[index]).softmax(-1))

    def loss(step: int) -> Tensor:
        ids = next(stream)[:, :-1]
        with torch.no_grad(), watching(dense) as active:
            dense(input_ids=ids, use_cache=False)
        seen.update(active)
        with supervise(layers, teach) as lessons:
            model(input_ids=ids, use_cache=False)
        return lessons.loss()

    parts = [p for layer in layers.values() for p in layer.router.parameters()]
    with training_only(model, parts):
        fit(parts, loss, tuning, after)


def bits(model: PreTrainedModel, test: Mapping[str, Tensor]) -> dict[str, float]:
    """Bits per byte on each domain."""
    return {name: scores(model, windows)["bits"] for name, windows in test.items()}


def told(model: PreTrainedModel, test: Mapping[str, Tensor]) -> dict[str, float]:
    """Bits per byte when each domain's own expert serves all of it."""
    found = {}
    layers = routed_layers(model)
    for expert, (name, windows) in enumerate(test.items()):

        def choose(
            layer: MoE, rows: Tensor, context: RoutingContext, expert: int = expert
        ) -> Routing:
            count = len(rows)
            zeros = rows.new_zeros(count, len(test))
            return Routing(zeros, torch.full((count, 1), expert), rows.new_ones(count, 1))

        for layer in layers.values():
            layer.override = choose
        found[name] = scores(model, windows)["bits"]
    for layer in layers.values():
        layer.override = None
    return found


@torch.no_grad()
def _routings(model: PreTrainedModel, test: Mapping[str, Tensor]) -> dict[str, Routing]:
    """The routings of eight windows of each domain."""
    every = torch.cat([windows[:8, :-1] for windows in test.values()])
    with record(model) as routes:
        model(input_ids=every, use_cache=False)
    return routes.joined()


def _choices(model: PreTrainedModel, test: Mapping[str, Tensor]) -> list[Tensor]:
    """(windows, length) of the first expert of every byte, layer by layer."""
    length = next(iter(test.values())).shape[1] - 1
    return [own.experts[:, 0].view(-1, length) for own in _routings(model, test).values()]


def repeats(model: PreTrainedModel, test: Mapping[str, Tensor]) -> float:
    """The part of bytes that go where the one before went, in the mean over layers."""
    return fmean(
        float((own[:, 1:] == own[:, :-1]).double().mean()) for own in _choices(model, test)
    )


@torch.no_grad()
def tied(model: PreTrainedModel, test: Mapping[str, Tensor]) -> float:
    """How much a layer's choice says of the next one's: normalised mutual information."""
    generator = torch.Generator().manual_seed(0)
    pairs = pairwise(_routings(model, test).values())
    return fmean(dependence(a, b, generator)[0] for a, b in pairs)


def usage(model: PreTrainedModel, test: Mapping[str, Tensor]) -> list[list[float]]:
    """For each domain, the parts of its bytes that each expert gets, in the first layer."""
    found = []
    for windows in test.values():
        choice = _choices(model, {"own": windows})[0].flatten()
        found.append((torch.bincount(choice, minlength=len(test)) / len(choice)).tolist())
    return found
