"""A dense layer that has too little room for its skills, and what granular tuning makes of it.

Points of eight skills, each with a linear rule of its own for one of four labels.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.experts.layouts import linears
from polypath.recipes.trials import Facts
from polypath.routing import losses, routed_layers
from polypath.surgery.convert import routed_layer
from polypath.surgery.granular import Granular
from polypath.surgery.slices import DenseLayer
from polypath.surgery.tuning import Tuning, fit
from polypath.training.parts import Reporter

SKILLS, DIM, HIDDEN, LABELS = 8, 16, 32, 4
BATCH, TESTED, STRIDE = 256, 4096, 50


@dataclass(frozen=True)
class Skills:
    """Centres (S, D) and rules (S, L, D) of a draw."""

    centres: Tensor
    rules: Tensor

    @classmethod
    def draw(cls, seed: int) -> Skills:
        generator = torch.Generator().manual_seed(seed)
        centres = 2 * F.normalize(torch.randn(SKILLS, DIM, generator=generator), dim=1)
        return cls(centres, torch.randn(SKILLS, LABELS, DIM, generator=generator))

    def points(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (N, D) and its label (N,)."""
        skill = torch.randint(SKILLS, (count,), generator=generator)
        noise = torch.randn(count, DIM, generator=generator)
        scores = torch.einsum("nd,nld->nl", noise, self.rules[skill])
        return self.centres[skill] + noise, scores.argmax(1)

    def stream(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.points(BATCH, generator)


class Network(nn.Module):
    """x (N, D) to logits (N, L), over one residual feed-forward layer, dense or routed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Sequential(
            nn.Linear(DIM, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM)
        )
        self.head = nn.Linear(DIM, LABELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x + self.layer(x))

    def dense(self) -> DenseLayer:
        """The dense layer as slices read it."""
        found = linears(self.layer)
        last = found["2"].weight.module
        return DenseLayer({"up": found["0"], "down": found["2"]}, "relu", last)


def variants() -> dict[str, Granular]:
    """The method, with fewer and more copies and slices."""
    method = Granular(4, 2, std=0.1)
    return {
        "4 copies in 2": method,
        "2 copies in 2": replace(method, copies=2),
        "4 copies in 4": replace(method, k=4),
        "4 copies whole": replace(method, k=1),
        "4 copies in 2, apart": replace(method, apart=True),
    }


def trial(steps: int, tuning: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One dense network, and what tuning makes of it in each form; see `measured`."""
    began = time.perf_counter()
    skills = Skills.draw(seed)
    test = skills.points(TESTED, torch.Generator().manual_seed(seed + 10_000))
    torch.manual_seed(seed)
    base = Network()
    noted: list[tuple[int, float]] = []
    train(base, skills.stream(seed), steps, test, noted, reporter)
    facts: Facts = {"dense": {"start": right(base, test), "right": right(base, test)}}
    forms: dict[str, Network] = {"dense, tuned": copy.deepcopy(base)}
    for name, method in variants().items():
        forms[name] = converted(base, replace(method, seed=seed))
    forms["rows apart"] = converted(base, Granular(4, 2, std=0.1, seed=seed))
    forms["fresh experts"] = copy.deepcopy(forms["4 copies in 2"])
    apart, fresh = (_layer(forms[name]) for name in ("rows apart", "fresh experts"))
    nn.init.normal_(apart.router.scorer.weight, std=0.1)
    fresh.experts.reset_parameters()
    for name, network in forms.items():
        start, noted = right(network, test), []
        train(network, skills.stream(seed + 20_000), tuning, test, noted, reporter)
        facts[name] = {"start": start, "right": right(network, test), "curve": noted}
    facts["moved"] = moved(forms["4 copies in 2"])
    facts["seconds"] = time.perf_counter() - began
    return facts, f"{facts['4 copies in 2']['right']:.1%} right"


def _layer(network: Network) -> Any:
    """The one routed layer of a network."""
    return next(iter(routed_layers(network).values()))


def converted(base: Network, method: Granular) -> Network:
    """The same network with its layer as fine experts."""
    made = copy.deepcopy(base)
    made.layer = routed_layer(made.dense(), method)
    return made


def train(
    network: Network,
    stream: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    test: tuple[Tensor, Tensor],
    noted: list[tuple[int, float]],
    reporter: Reporter,
) -> None:
    """Train all of a network; notes what it gets right every few steps."""
    routers = [p for own in routed_layers(network).values() for p in own.router.parameters()]
    network.train()

    def loss(step: int) -> Tensor:
        x, y = next(stream)
        total: Any = F.cross_entropy(network(x), y)
        return total + sum(losses(network).values())

    def after(step: int, value: float) -> None:
        if (step + 1) % STRIDE == 0:
            noted.append((step + 1, right(network, test)))
            reporter.advance(value, 0.0)

    tuning = Tuning(steps, 3e-3, warmup=10, floor=0.05, weight_decay=0.0)
    fit(network.parameters(), loss, tuning, after, routers)


@torch.no_grad()
def right(network: Network, test: tuple[Tensor, Tensor]) -> float:
    """The part of the test points whose label is found."""
    was = network.training
    found = network.eval()(test[0]).argmax(1)
    network.train(was)
    return float((found == test[1]).double().mean())


@torch.no_grad()
def moved(tuned: Network) -> float:
    """How far slices of one position are from each other after tuning, relative to their size.

    They start equal; where they stay so, copies add nothing.
    """
    w_in = _layer(tuned).experts.weights()[0]
    slices = w_in.unflatten(0, (-1, 2)).flatten(2)  # (copies, positions, ·)
    far = (slices[:, None] - slices[None]).norm(dim=-1)
    count = len(slices)
    return float(far.sum() / (count * (count - 1) * slices.shape[1]) / slices.norm(dim=-1).mean())
