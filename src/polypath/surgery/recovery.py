"""A changed model taught by the one that it was, its routers as they are.

Source: MC-SMoE (Li et al. 2023), section 4 and its released code.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing import routed_layers
from polypath.surgery.compress import Sensitivity, compressed, keep_ratio


@dataclass(frozen=True)
class Recovery:
    """How a changed model is taught.

    weight, temperature: α and τ of the distillation; there is no factor τ². kept: the part of the
    rows of S that stays, in the mean over all compressed maps; 1 for all, and where there are none.
    start, end: parts of the steps before rows go, and after all have gone.
    """

    steps: int = 200
    learning_rate: float = 1e-4
    warmup: int = 16
    weight: float = 0.2
    temperature: float = 2.0
    weight_decay: float = 0.01
    kept: float = 1.0
    start: float = 0.04
    end: float = 0.16

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.kept <= 1 or self.start + self.end >= 1:
            raise InputError(
                f"recovery: steps={self.steps}, kept={self.kept}, start={self.start}, "
                f"end={self.end}; a step at least, a part up to 1, and room between both ends"
            )


def distillation(
    student: Tensor, teacher: Tensor, temperature: float, counted: Tensor | None = None
) -> Tensor:
    """KL(teacher ‖ student) of softened logits (..., C), in the mean over counted places.

    counted: (...) bool, False for padding. The teacher gets no gradient.
    """
    q = (teacher.detach().float() / temperature).log_softmax(-1)
    p = (student.float() / temperature).log_softmax(-1)
    far = (q.exp() * (q - p)).sum(-1)
    return far.mean() if counted is None else far[counted].mean()


@contextmanager
def frozen_routers(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Inside the block no router wants a gradient; gives the parameters that do."""
    held = [p for layer in routed_layers(model).values() for p in layer.router.parameters()]
    before = [p.requires_grad for p in held]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield [p for p in model.parameters() if p.requires_grad]
    finally:
        for parameter, wanted in zip(held, before, strict=True):
            parameter.requires_grad_(wanted)


Logits = Callable[[nn.Module, Any], Tensor]
Loss = Callable[[Tensor, Any], Tensor]


def recover(
    student: nn.Module,
    teacher: nn.Module,
    batches: Iterator[Any],
    logits: Logits,
    loss: Loss,
    config: Recovery,
    after: Callable[[int, float], None] | None = None,
) -> None:
    """Train a student on `loss(logits, batch) + α · distillation`, in place.

    batches: one for each step. logits: of a model on a batch, (..., C). after: told each step and
    its loss. Both models run in evaluation mode, without dropout and auxiliary losses. Where the
    student's maps are compressed, rows of S go as `keep_ratio` says.
    """
    student.eval(), teacher.eval()
    maps = compressed(student)
    pruning = Sensitivity(maps) if maps and config.kept < 1 else None
    first, last = round(config.start * config.steps), round(config.end * config.steps)
    with frozen_routers(student) as trained:
        groups: list[dict[str, Any]] = [
            {"params": [p for p in trained if p.dim() > 1]},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
        optimiser = torch.optim.AdamW(
            groups,
            lr=config.learning_rate,
            betas=(0.9, 0.98),
            eps=1e-6,
            weight_decay=config.weight_decay,
        )
        for step in range(config.steps):
            batch = next(batches)
            with torch.no_grad():
                taught = logits(teacher, batch)
            told = logits(student, batch)
            total = loss(told, batch)
            if config.weight:
                total = total + config.weight * distillation(told, taught, config.temperature)
            total.backward()
            if pruning is not None:
                pruning.observe()
            for group in optimiser.param_groups:
                group["lr"] = config.learning_rate * _linear(step, config.steps, config.warmup)
            optimiser.step()
            optimiser.zero_grad()
            if pruning is not None:
                pruning.prune(keep_ratio(step + 1, config.steps, first, last, config.kept))
            if after is not None:
                after(step, float(total.detach()))


def _linear(step: int, steps: int, warmup: int) -> float:
    """A linear rise, then a linear fall to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (steps - step) / max(1, steps - warmup))


def score_rows(
    model: nn.Module, batches: Iterator[Any], count: int, logits: Logits, loss: Loss, kept: float
) -> float:
    """Zero rows of S by gradients alone, without training: the part of rows that is left.

    count: batches to read.
    """
    pruning = Sensitivity(compressed(model))
    model.eval()
    for _ in range(count):
        batch = next(batches)
        loss(logits(model, batch), batch).backward()
        pruning.observe()
        model.zero_grad()
    pruning.observe()  # what the last step saw counts too
    return pruning.prune(kept)
