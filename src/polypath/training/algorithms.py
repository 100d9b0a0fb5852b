"""Training of networks that run algorithms: new random graphs in every step, traces as targets.

Shapes: T steps, B graphs, N nodes.
Source: CLRS-30 (Veličković et al. 2022).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.compilation.algorithms import Trace, find, trace
from polypath.graphs.compilation.batches import GraphBatch, random_graphs
from polypath.graphs.compilation.reasoner import Feedback, Reasoner, Rollout
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter

REPORTED = 50
"""Steps between two reports."""


@dataclass(frozen=True)
class AlgorithmTraining:
    """How a reasoner is trained.

    sizes: of the graphs; each batch has one of them, by chance. probability: of an edge. rate:
    Adam's. clip: the greatest gradient norm. feedback: of hints, while training.
    """

    steps: int = 10_000
    batch: int = 32
    sizes: Sequence[int] = (4, 7, 11, 13, 16)
    probability: float = 0.5
    rate: float = 1e-3
    clip: float = 1.0
    feedback: Feedback = "soft"

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if not self.sizes or min(self.sizes) < 1:
            raise InputError(f"sizes={list(self.sizes)}; one of at least 1, or more, are right")
        for name in ("rate", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name}={getattr(self, name)}; a positive number is right")


def reasoning_losses(rollout: Rollout, graphs: GraphBatch, wanted: Trace) -> dict[str, Tensor]:
    """Scalars by name: "output", the cross-entropy of predecessors, and one for each hint.

    Means over real nodes, and of hints over steps that are not finished: binary cross-entropy of
    masks, cross-entropy of classes and pointers, squared error of scalars. Where a mask is of one
    node, cross-entropy among nodes, once a step.
    """
    real = graphs.nodes
    losses = {"output": F.cross_entropy(rollout.scores[real], wanted.pi[real])}
    counted = wanted.unfinished[..., None] & real
    for name, raw in rollout.hints.items():
        kind, after = wanted.kinds[name], wanted.hints[name][1:]
        if kind == "mask_one":
            own = wanted.unfinished
            losses[name] = F.cross_entropy(raw[own], after[own].int().argmax(-1))
            continue
        found, target = raw[counted], after[counted]
        if kind == "mask":
            losses[name] = F.binary_cross_entropy_with_logits(found, target.to(found.dtype))
        elif kind == "scalar":
            losses[name] = F.mse_loss(found, target.to(found.dtype))
        else:
            losses[name] = F.cross_entropy(found, target)
    return losses


def fit_reasoner(
    reasoner: Reasoner,
    training: AlgorithmTraining,
    seed: int,
    reporter: Reporter | None = None,
    look: Callable[[int], None] | None = None,
    every: int = REPORTED,
) -> list[float]:
    """Train on fresh Erdős–Rényi graphs; gives the loss, output and hints, of every step.

    look: called with the number of steps taken, before the first and after every `every` steps.
    Raises InputError for a loss that is not finite; Interrupted where the reporter says stop.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(reasoner.parameters(), training.rate)
    device = next(reasoner.parameters()).device
    losses: list[float] = []
    if look is not None:
        look(0)
    began = time.perf_counter()
    reasoner.train()
    for step in range(1, training.steps + 1):
        graphs, wanted = drawn(reasoner.config.algorithm, training, generator)
        graphs = graphs.to(device)
        wanted = wanted.to(device)
        rollout = reasoner(graphs, wanted.steps, training.feedback)
        loss = torch.stack(list(reasoning_losses(rollout, graphs, wanted).values())).sum()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(reasoner.parameters(), training.clip)
        optimiser.step()
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise InputError(f"the loss is {losses[-1]} in step {step}; a lower rate may help")
        if reporter is not None and step % REPORTED == 0:
            reporter.advance(losses[-1], step * training.batch / (time.perf_counter() - began))
            if reporter.stop():
                raise Interrupted
        if look is not None and step % every == 0:
            look(step)
    reasoner.eval()
    return losses


def drawn(
    algorithm: str, training: AlgorithmTraining, generator: torch.Generator
) -> tuple[GraphBatch, Trace]:
    """A batch of one size, and what the algorithm does on it."""
    own = find(algorithm)
    place = int(torch.randint(len(training.sizes), (1,), generator=generator))
    sizes = torch.full((training.batch,), training.sizes[place])
    graphs = random_graphs(sizes, generator, training.probability, own.directed, own.weighted)
    return graphs, trace(algorithm, graphs)
