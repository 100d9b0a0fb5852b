"""Training of Link-MoE's gate on links to validate on, which experts have not been trained on.

Shapes: P positives, M negatives, D columns of a row; see `polypath.graphs.link_moe`.
Source: Mixture of Link Predictors on Graphs (Ma et al. 2024, arXiv 2402.08583), and the authors'
code; parts to train on and to choose by are drawn, where the code takes them in the file's order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.link_moe import GateConfig, LinkMoE
from polypath.graphs.pair_features import OF_GATE
from polypath.graphs.splits import LinkSplit
from polypath.training.links import LinkTask


@dataclass(frozen=True)
class GateTraining:
    """How a gate is trained.

    share: of the pairs to validate on, on which it is trained; it is chosen by the others. batches:
    of an epoch, into which positives and negatives are cut alike. negative_weight: how much the
    mean loss of negatives counts beside that of positives; the authors' code has 10. decay: L2.
    patience: epochs without a better loss to stop after.
    """

    epochs: int = 300
    batches: int = 4
    rate: float = 1e-3
    decay: float = 1e-4
    negative_weight: float = 1.0
    patience: int = 50
    share: float = 0.8

    def __post_init__(self) -> None:
        for name in ("epochs", "batches", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"gate: {name}={getattr(self, name)}; at least 1 is needed")
        for name in ("rate", "negative_weight"):
            if getattr(self, name) <= 0:
                raise InputError(f"gate: {name}={getattr(self, name)}; a positive number is right")
        if self.decay < 0 or not 0 < self.share < 1:
            raise InputError(
                f"gate: decay={self.decay}, share={self.share}; at least 0, and between 0 and 1"
            )


@dataclass
class GateFit:
    """What training left: the best epoch, from 1, 0 before any; losses to choose by, by epoch."""

    epoch: int = 0
    loss: float = math.inf
    losses: list[float] = field(default_factory=list)


def gate_loss(right: Tensor, wrong: Tensor, negative_weight: float) -> Tensor:
    """-mean ln σ(y) of positives (P, 1), and of negatives (M, 1) w times -mean ln (1 - σ(y))."""
    return F.softplus(-right).mean() + negative_weight * F.softplus(wrong).mean()


def halves(count: int, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Places 0 … count - 1 in two parts, the first with that share; neither is empty.

    Raises InputError for fewer than two.
    """
    if count < 2:
        raise InputError(f"{count} pairs to validate on; two at least are to train and choose by")
    order = torch.randperm(count, generator=generator)
    first = min(max(round(share * count), 1), count - 1)
    return order[:first].sort().values, order[first:].sort().values


def validation_parts(
    split: LinkSplit, share: float, seed: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Which links to validate on, and which of their negatives, train a gate; and which choose."""
    generator = torch.Generator().manual_seed(seed)
    right, wrong = (
        halves(pairs.shape[1], share, generator) for pairs in (split.valid, split.valid_negatives)
    )
    return (right[0], wrong[0]), (right[1], wrong[1])


def fit_gate(
    mixture: nn.Module,
    train: tuple[Tensor, Tensor],
    held: tuple[Tensor, Tensor],
    training: GateTraining,
    seed: int,
) -> GateFit:
    """Train rows' network on positives (P, D) and negatives (M, D), leave its best state by `held`.

    The state before training is one to choose among. Any module from rows to logits (·, 1) is fine.
    """
    fit = GateFit()
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(
        [p for p in mixture.parameters() if p.requires_grad],
        training.rate,
        weight_decay=training.decay,
    )
    state: dict[str, Tensor] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for epoch in range(training.epochs + 1):
            if epoch:
                _epoch(mixture, train, training, optimiser, generator)
            loss = held_loss(mixture, held, training.negative_weight)
            fit.losses.append(loss)
            if loss < fit.loss:
                fit.loss, fit.epoch = loss, epoch
                state = {name: value.clone() for name, value in mixture.state_dict().items()}
            if epoch - fit.epoch >= training.patience:
                break
    mixture.load_state_dict(state)
    return fit


def _epoch(
    mixture: nn.Module,
    train: tuple[Tensor, Tensor],
    training: GateTraining,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> None:
    mixture.train()
    count = min(training.batches, *(len(rows) for rows in train))
    parts = [torch.randperm(len(rows), generator=generator).tensor_split(count) for rows in train]
    for own, other in zip(*parts, strict=True):
        right, wrong = mixture(train[0][own]), mixture(train[1][other])
        loss = gate_loss(right, wrong, training.negative_weight)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@torch.no_grad()
def held_loss(mixture: nn.Module, held: tuple[Tensor, Tensor], negative_weight: float) -> float:
    """The loss of rows of positives and negatives, in evaluation mode, which it is left in."""
    mixture.eval()
    loss = float(gate_loss(mixture(held[0]), mixture(held[1]), negative_weight))
    if not math.isfinite(loss):
        raise InputError(f"the gate's loss is {loss}; a lower rate may help")
    return loss


def fit_link_moe(
    experts: Sequence[nn.Module],
    task: LinkTask,
    seed: int,
    gate: GateConfig | None = None,
    training: GateTraining | None = None,
    structure: Sequence[str] = OF_GATE,
) -> tuple[LinkMoE, GateFit]:
    """A mixture of trained link predictors, in evaluation mode; experts stay as they are.

    Its gate is trained on a part of the pairs to validate on, seen on the graph of training links,
    and chosen by the rest. Test pairs are not read.
    """
    training, split, x = training or GateTraining(), task.split, task.x
    features = x.shape[1] if x is not None and x.ndim == 2 else 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LinkMoE.of(experts, features, structure, gate)
    first, rest = validation_parts(split, training.share, seed)
    both = split.valid, split.valid_negatives
    right, wrong = (model.rows(split.graph, x, pairs) for pairs in both)
    train, held = ((right[own[0]], wrong[own[1]]) for own in (first, rest))
    model.mixture.fit_scales(*train)
    fit = fit_gate(model.mixture, train, held, training, seed)
    return model.eval(), fit
