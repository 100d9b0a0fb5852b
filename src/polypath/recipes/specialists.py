"""A regression for specialists: clusters of points, each with a teacher of its own.

One routed layer learns to stand in for all teachers. As it is known who should serve whom, it shows
whether a router sends a point to the expert that serves it best.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.diagnosis import LayerCoupling, contingency, layer_couplings, shares
from polypath.language import RoutedLayers, build_stack
from polypath.recipes.trials import Facts
from polypath.routing import MoE, Routing, given
from polypath.training.interrupt import Interrupted
from polypath.training.optimisers import adamw
from polypath.training.parts import Reporter

CLUSTERS, DIM, HIDDEN, SPREAD = 8, 32, 32, 0.6
TRAINED, TESTED, BATCH = 16_384, 4_096, 512
STRIDE = 50
"""Steps between what is reported and noted."""


@dataclass(frozen=True)
class Points:
    """x (N, 32), their teacher's y (N, 32), and their cluster (N,)."""

    x: Tensor
    y: Tensor
    cluster: Tensor


def points(seed: int) -> tuple[Points, Points]:
    """Training and test points of one draw of clusters and teachers."""
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator)
    centres = F.normalize(normal(CLUSTERS, DIM), dim=1) * math.sqrt(DIM)
    inner = normal(CLUSTERS, HIDDEN, DIM) / math.sqrt(DIM)
    outer = normal(CLUSTERS, DIM, HIDDEN) / math.sqrt(HIDDEN)

    def drawn(count: int) -> Points:
        cluster = torch.randint(CLUSTERS, (count,), generator=generator)
        x = centres[cluster] + SPREAD * normal(count, DIM)
        y = torch.empty_like(x)
        for index in range(CLUSTERS):
            own = cluster == index
            y[own] = F.gelu(x[own] @ inner[index].T) @ outer[index].T
        return Points(x, y, cluster)

    return drawn(TRAINED), drawn(TESTED)


def fit(routed: RoutedLayers, steps: int, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train one routed layer for so many steps; what it came to, see `measured`, and its curve."""
    data, test = points(seed)
    torch.manual_seed(seed)
    layer = build_stack(routed, DIM, HIDDEN, 1)[0]
    optimiser = adamw(layer, 1e-3, 0.01)
    order = torch.Generator().manual_seed(seed)
    noted: list[list[float | None]] = []
    seconds = []
    for step in range(steps):
        began = time.perf_counter()
        rows = torch.randint(TRAINED, (BATCH,), generator=order)
        loss = advance(layer, data.x[rows], data.y[rows], step)
        optimiser.step()
        optimiser.zero_grad()
        seconds.append(time.perf_counter() - began)
        if (step + 1) % STRIDE == 0 or step + 1 == steps:
            held = coupling_of(layer)
            noted.append([step + 1, loss, held.strength if held else None])
            reporter.advance(loss, BATCH / median(seconds))
            if reporter.stop():
                raise Interrupted
    facts = measured(layer, test) | {"step milliseconds": 1e3 * median(seconds), "curve": noted}
    return facts, f"{facts['error']:.4f} mean squared error"


def advance(layer: MoE, x: Tensor, y: Tensor, step: int) -> float:
    """Gradients of one step; its mean squared error."""
    layer.train()
    with given(step=step):
        error = F.mse_loss(layer(x), y)
    assert layer.last is not None
    (error + sum(layer.last.losses.values())).backward()
    return float(error.detach())


def coupling_of(layer: MoE) -> LayerCoupling | None:
    """None where the layer's router has no rows."""
    return next(iter(layer_couplings(layer).values()), None)


@torch.no_grad()
def measured(layer: MoE, test: Points) -> Facts:
    """How well a student does, and whether points meet the expert that serves them best."""
    layer.eval()
    error = F.mse_loss(layer(test.x), test.y)
    routing = layer.last
    assert routing is not None
    alone = torch.stack([_alone(layer, test, routing, e) for e in range(routing.num_experts)], 1)
    first = routing.probabilities if routing.probabilities is not None else routing.scores
    chosen = first.argmax(1, keepdim=True)
    regret = alone.gather(1, chosen)[:, 0] - alone.min(1).values
    purity = contingency(_first(routing, chosen), test.cluster, CLUSTERS)
    load = shares(routing) * routing.num_experts
    rows = coupling_of(layer)
    return {
        "error": float(error),
        "strength": rows.strength if rows else None,
        "bound": float(rows.bound.mean()) if rows else None,
        "coupled": float((regret == 0).double().mean()),
        "regret": float(regret.mean()),
        "purity": float(purity.max(0).values.sum() / purity.sum()),
        "spread": float(load.std(correction=0)),
    }


def _alone(layer: MoE, test: Points, routing: Routing, expert: int) -> Tensor:
    """(N,): the error of each point when one expert has all the weight of those it chose."""
    weights = routing.weights.sum(1, keepdim=True)
    experts = torch.full_like(weights, expert, dtype=torch.int64)
    y = layer.experts(test.x, Routing(routing.scores, experts, weights))
    return (y - test.y).square().mean(1)


def _first(routing: Routing, chosen: Tensor) -> Routing:
    return Routing(routing.scores, chosen, torch.ones_like(chosen, dtype=torch.float32))
