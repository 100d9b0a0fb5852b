"""Addition modulo a prime, which a routed network first memorises and later understands.

Source of the task: Power et al. 2022 (grokking); sizes: this project's, after arXiv 2506.21551.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.diagnosis import (
    generalised,
    memorised,
    pathway_distance,
    pathways,
    roughness,
    routing_cosines,
    sample_gates,
)
from polypath.language import RoutedLayers, build_stack
from polypath.recipes.trials import Facts
from polypath.routing import losses, record, routed_layers
from polypath.routing.coupling import centres
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter

WIDTH, LAYERS, HIDDEN, SAMPLES = 32, 3, 16, 80
MEMORISED = 1.5
"""A training pair whose loss, in nats, stays below this is memorised; from the paper."""


@dataclass(frozen=True)
class Pairs:
    """x (N, 2) numbers below the modulus and their sum y (N,) under it."""

    x: Tensor
    y: Tensor


def pairs(modulus: int, share: float, seed: int) -> tuple[Pairs, Pairs]:
    """All pairs of numbers: a share drawn by the seed to train on, the others to test."""
    x = torch.cartesian_prod(torch.arange(modulus), torch.arange(modulus))
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    cut = round(share * len(x))
    parts = (x[order[:cut]], x[order[cut:]])
    train, test = (Pairs(part, part.sum(1) % modulus) for part in parts)
    return train, test


class Adder(nn.Module):
    """Pairs (N, 2) to logits (N, modulus): two embeddings added, then residual routed layers."""

    def __init__(self, modulus: int, routed: RoutedLayers) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(modulus, WIDTH), nn.Embedding(modulus, WIDTH)
        for numbers in (self.left, self.right):
            # Of length 1. Of length √WIDTH, torch's own, they are memorised, not understood.
            nn.init.normal_(numbers.weight, std=WIDTH**-0.5)
        self.layers = nn.ModuleList(build_stack(routed, WIDTH, HIDDEN, LAYERS))
        self.leave = nn.Linear(WIDTH, modulus)

    def forward(self, x: Tensor) -> Tensor:
        h = self.left(x[:, 0]) + self.right(x[:, 1])
        for layer in self.layers:
            h = h + layer(h)
        return self.leave(h)


@dataclass(frozen=True)
class Task:
    """The modulus, the share of pairs to train on, and how long and how often to look."""

    modulus: int
    share: float
    steps: int
    every: int


def fit(
    routed: RoutedLayers, decay: float, task: Task, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Train one network on all its pairs at once, with a look at it every so many steps.

    curve: what `look` gave, by step. memorised, understood: medians of the steps from which
    training pairs are, and test pairs stay right; None where most never are. seconds: in training.
    """
    train, test = pairs(task.modulus, task.share, seed)
    torch.manual_seed(seed)
    model = Adder(task.modulus, routed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=2e-3, weight_decay=decay, betas=(0.9, 0.98), fused=True
    )
    seconds, curve, kept, right = [], [], [], []
    for step in range(task.steps):
        began = time.perf_counter()
        loss = F.cross_entropy(model(train.x), train.y)
        (loss + sum(losses(model).values())).backward()
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - began)
        if (step + 1) % task.every == 0 or step + 1 == task.steps:
            facts, nats, correct = look(model, train, test)
            curve.append({"step": step + 1} | facts)
            kept.append(nats)
            right.append(correct)
            reporter.advance(facts["training loss"], len(train.y) / median(seconds))
            if reporter.stop():
                raise Interrupted
    steps = torch.tensor([point["step"] for point in curve])
    facts = {
        "curve": curve,
        "memorised": _median(steps, memorised(torch.stack(kept, 1), MEMORISED, math.inf)),
        "understood": _median(steps, generalised(torch.stack(right, 1))),
        "seconds": sum(seconds),
    }
    return facts, f"{curve[-1]['test accuracy']:.1%} of the test pairs right"


def _median(steps: Tensor, found: Tensor) -> float | None:
    """Of the steps at the places that were found, where that is most of them."""
    late = torch.where(found < 0, len(steps), found).median()
    return float(steps[late]) if late < len(steps) else None


@torch.no_grad()
def look(model: Adder, train: Pairs, test: Pairs) -> tuple[Facts, Tensor, Tensor]:
    """What is seen of a network: monitors, losses of its training pairs, test pairs that are right.

    distance: mean over pathways of the first SAMPLES training pairs, with `cosine`, `roughness` and
    `entropy` of their gates; the last in nats, mean over layers.
    """
    nats = F.cross_entropy(model(train.x), train.y, reduction="none")
    logits = model(test.x)
    correct = logits.argmax(1) == test.y
    with record(model) as routes:
        model(train.x[:SAMPLES])
    layers = routes.joined()
    each = torch.arange(len(train.x[:SAMPLES]))
    gates = [sample_gates(routing, each) for routing in layers.values()]
    rows = [centres(layer.router, "cosines") for layer in routed_layers(model).values()]
    cosines = routing_cosines(gates, rows)
    rough = roughness(cosines)
    facts = {
        "training loss": float(nats.mean()),
        "test loss": float(F.cross_entropy(logits, test.y)),
        "training accuracy": float((model(train.x).argmax(1) == train.y).double().mean()),
        "test accuracy": float(correct.double().mean()),
        "distance": pathway_distance(pathways(gates)),
        "cosine": float(cosines.mean()),
        "roughness": float(rough.nanmean()) if bool(rough.isfinite().any()) else None,
        "entropy": float(torch.stack([r.entropy().mean() for r in layers.values()]).mean()),
    }
    return facts, nats, correct
