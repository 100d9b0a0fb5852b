"""Every gate that the house has on one regression, where it is known which things belong together.

Source of the list: A Comprehensive Survey of Mixture-of-Experts, arXiv 2503.07137, which has no
experiments; the task is this project's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.diagnosis import shares, specialisation
from polypath.errors import InputError
from polypath.language import RoutedLayers, build_stack
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.routing import MoE, given, update_biases
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "clusters"
CLUSTERS, DIM, OUT, HIDDEN, BATCH, TESTED, STRIDE = 8, 16, 4, 8, 256, 4096, 50
HERE = "this project's harness"


@dataclass(frozen=True)
class Config:
    """What is trained, and for how long."""

    seeds: int = 5
    """Draws of clusters and maps, each with every gate."""
    steps: int = 1500
    """Optimiser steps of each layer."""
    workers: int = 0
    """Layers trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")


PRESETS: dict[str, dict[str, Any]] = {"quick": {"seeds": 2, "steps": 200}}


def gates() -> dict[str, RoutedLayers | int]:
    """Routed layers of eight experts by their gate, and dense ones by their width."""

    def routed(router: str = "top-k", k: int = 2, **values: Any) -> RoutedLayers:
        sizes: dict[str, Any] = {"num_experts": CLUSTERS, "hidden": HIDDEN, "kind": "relu"}
        sizes |= {"losses": {}} | ({} if router in ("soft", "dynamic") else {"k": k})
        return RoutedLayers(router, **sizes | values)

    balanced = {"load_balance": 0.01}
    return {
        "dense, active parameters": 2 * HIDDEN,
        "dense, all parameters": CLUSTERS * HIDDEN,
        "soft": routed("soft"),
        "hash": routed("hash", k=1),
        "top-1": routed(k=1, gate="softmax"),
        "top-1, balanced": routed(k=1, gate="softmax", losses=balanced),
        "top-2, balanced": routed(losses=balanced),
        "top-2, softmax over all": routed(gate="softmax", losses=balanced),
        "top-2, noisy": routed(scorer="noisy", losses={"importance": 0.01}),
        "top-2, sigmoid": routed(gate="sigmoid", bias_rate=1e-3),
        "top-2, cosine": routed(scorer="cosine", losses=balanced),
        "top-2, coupled": routed(losses=balanced | {"coupling": 1.0}),
        "top-p": routed("dynamic", options={"rule": "mass", "value": 0.7, "temperature": 1.0}),
        "autonomous": routed("autonomous", losses=balanced),
        "expert choice": routed("expert-choice"),
    }


DENSE, CONTENT_FREE = ("dense, active parameters", "dense, all parameters"), ("hash",)
SPARSE = tuple(n for n in gates() if n not in {*DENSE, *CONTENT_FREE, "soft"})
"""Those that see the thing, and choose among experts."""


@dataclass(frozen=True)
class Points:
    """x (N, DIM), what their cluster's map makes of them y (N, OUT), their cluster (N,)."""

    x: Tensor
    y: Tensor
    cluster: Tensor


class Task:
    """Clusters about centres of spread 1.5, each with a linear map of its own."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.centres = 1.5 * self._normal(CLUSTERS, DIM)
        self.maps = self._normal(CLUSTERS, DIM, OUT) / DIM**0.5

    def draw(self, count: int) -> Points:
        """Points that no other draw has."""
        cluster = torch.randint(CLUSTERS, (count,), generator=self.generator)
        x = self.centres[cluster] + self._normal(count, DIM)
        return Points(x, torch.einsum("nd,ndo->no", x, self.maps[cluster]), cluster)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


class Regression(nn.Module):
    """x (N, DIM) to y (N, OUT): one layer, dense or routed, then a linear map."""

    def __init__(self, chosen: RoutedLayers | int) -> None:
        super().__init__()
        self.layer: nn.Module
        if isinstance(chosen, int):
            self.layer = nn.Sequential(nn.Linear(DIM, chosen), nn.ReLU(), nn.Linear(chosen, DIM))
        else:
            self.layer = build_stack(chosen, DIM, HIDDEN, 1)[0]
        self.leave = nn.Linear(DIM, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.layer(x))


def fit(chosen: RoutedLayers | int, steps: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train one layer; see `measured`."""
    task = Task(seed)
    test = task.draw(TESTED)
    torch.manual_seed(seed)
    model = Regression(chosen).train()
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3, fused=True)
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        loss = advance(model, task.draw(BATCH), step)
        optimiser.step()
        optimiser.zero_grad()
        update_biases(model)
        seconds.append(time.perf_counter() - began)
        if (step + 1) % STRIDE == 0 or step + 1 == steps:
            reporter.advance(loss, BATCH / median(seconds))
            if reporter.stop():
                raise Interrupted
    facts = measured(model.eval(), test) | {"seconds": sum(seconds)}
    return facts, f"R² {facts['R²']:.3f}"


def advance(model: Regression, points: Points, step: int) -> float:
    """Gradients of one step; its mean squared error."""
    with given(step=step, tokens=_ids(points)):
        error = F.mse_loss(model(points.x), points.y)
    routing = model.layer.last if isinstance(model.layer, MoE) else None
    extra = [] if routing is None else list(routing.losses.values())
    (error + sum(extra)).backward()
    return float(error.detach())


def _ids(points: Points) -> Tensor:
    """What a hash reads: numbers that say nothing of the cluster."""
    return (points.x[:, 0] * 1e4).long().abs()


@torch.no_grad()
def measured(model: Regression, test: Points) -> Facts:
    """R² on test points; of a routed layer also how it sends them.

    spread: coefficient of variation of loads. information: normalised mutual information of
    experts and clusters, 0 to 1. experts: how many serve a point.
    """
    with given(tokens=_ids(test)):
        error = (model(test.x) - test.y).square().sum()
    facts: Facts = {"R²": float(1 - error / (test.y - test.y.mean(0)).square().sum())}
    if isinstance(model.layer, MoE) and (routing := model.layer.last) is not None:
        load = shares(routing) * routing.num_experts
        order = torch.Generator().manual_seed(0)
        found = specialisation(routing, test.cluster, CLUSTERS, order)
        facts["spread"] = float(load.std(correction=0))
        facts["information"] = found.information
        facts["experts"] = float(routing.count().double().mean())
    return facts


def run(config: Config, run: Run) -> Outcome:
    """Train every gate under every seed; judge what is known of them."""
    work = {name: partial(fit, chosen, config.steps) for name, chosen in gates().items()}
    reports = -(-config.steps // STRIDE)
    facts = trials(work, config.seeds, reports, run.folder / "gates", config.workers)
    return conclude(run, facts, [_table(facts)], claims(facts))


def _table(facts: Mapping[str, list[Facts]]) -> Table:
    rows: list[list[Any]] = []
    for name, own in facts.items():
        mean, low, high = estimate([one["R²"] for one in own])
        row = [name, mean, "" if low is None else f"{low:.3f} … {high:.3f}"]
        for fact in ("experts", "spread", "information"):
            row.append(fmean(one[fact] for one in own) if fact in own[0] else None)
        rows.append(row)
    return Table(
        "Gates on eight clusters",
        ["gate", "R²", "95 % interval", "experts", "load spread", "information"],
        rows,
        note="Eight experts of width 8; each cluster has a linear map of its own. Test points, "
        "means over seeds. Experts: that serve a point. Load spread: coefficient of variation. "
        "Information: normalised mutual information of experts and clusters.",
    )


def claims(facts: Mapping[str, list[Facts]]) -> list[Claim]:
    """What the survey's sources say of gates, seed by seed, each a draw of the task."""

    def values(name: str, fact: str = "R²") -> list[float]:
        return [one[fact] for one in facts[name]]

    dense = values("dense, active parameters")
    none = [0.0] * len(dense)
    better = [
        judge(
            f"{name}: betters a dense layer of as many active parameters (R², by 0.08)",
            HERE,
            "dense, active parameters",
            values(name),
            dense,
            better="higher",
            threshold=0.08,
        )
        for name in SPARSE
    ]
    best_of_rest = [
        min(values[seed] for name, values in _every(facts).items() if name != "hash")
        for seed in range(len(dense))
    ]
    return [
        *better,
        judge(
            "A gate that knows nothing of things is the worst (R², difference to the next)",
            HERE,
            "the next worst",
            values("hash"),
            best_of_rest,
        ),
        judge(
            "Expert choice spreads loads evenly (coefficient of variation, below 1e-9)",
            "Zhou et al. 2022",
            "0",
            values("expert choice", "spread"),
            none,
            threshold=1e-9,
        ),
        judge(
            "One expert says more of the cluster than two (information, difference)",
            HERE,
            "top-2, balanced",
            values("top-1, balanced", "information"),
            values("top-2, balanced", "information"),
            better="higher",
        ),
        judge(
            "Even loads are no merit: a hash has them (coefficient of variation, below 0.1)",
            HERE,
            "0.1",
            values("hash", "spread"),
            none,
            threshold=0.1,
        ),
    ]


def _every(facts: Mapping[str, list[Facts]]) -> dict[str, list[float]]:
    return {name: [one["R²"] for one in own] for name, own in facts.items()}
