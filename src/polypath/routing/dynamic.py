"""Routers whose things are served by as many experts as their gates say.

Source: DynaMoE: Dynamic Token-Level Expert Activation with Layer-Wise Adaptive Capacity, arXiv
2603.01697.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.context import RoutingContext
from polypath.routing.gates import chosen, lowest, softmax
from polypath.routing.routers import Router
from polypath.routing.scorers import LinearScorer
from polypath.routing.thresholds import Rule, Threshold

Renormalise = Literal["gates", "logits", "proportional", "none"]


class GateScorer(nn.Module):
    """Scores that are gates already: softmax(own scores / temperature), with noise in training.

    own: x (T, D), context to (T, E). noise: the standard deviation of a normal that is added to the
    gates in training, which may make them negative.
    """

    own: Any

    def __init__(self, own: nn.Module, temperature: float = 0.5, noise: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0 or noise < 0:
            raise InputError(
                f"GateScorer: temperature={temperature}, noise={noise}; temperature > 0, noise ≥ 0"
            )
        self.own = own
        self.temperature = temperature
        self.noise = noise

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        gates = softmax(self.own(x, context) / self.temperature)
        if not self.training or not self.noise:
            return gates
        return gates + self.noise * torch.empty_like(gates).normal_(generator=context.generator)

    def centres(self) -> Tensor:
        """(E, D): those of the scores."""
        return self.own.centres()

    def extra_repr(self) -> str:
        return f"temperature={self.temperature}, noise={self.noise}"


class ChosenGates(nn.Module):
    """Weights from scores that are gates, over the chosen experts.

    renormalise:
        "gates": a softmax over the chosen gates; as published. They lie within 0 and 1, so
            without noise no weight is more than e times another.
        "logits": a softmax over what the gates were made of. "proportional": gates over their sum.
        "none": gates as they are.
    temperature: the one that the gates were made with.
    """

    def __init__(self, renormalise: Renormalise = "gates", temperature: float = 0.5) -> None:
        super().__init__()
        if renormalise not in get_args(Renormalise):
            raise unknown("renormalise", renormalise, get_args(Renormalise))
        self.renormalise = renormalise
        self.temperature = temperature

    def probabilities(self, scores: Tensor) -> Tensor:
        """Gates, negative ones as 0, scaled to sum to one."""
        gates = scores.clamp_min(0)
        return gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).tiny)

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        picked = chosen(scores, experts, -torch.inf)
        if self.renormalise in ("proportional", "none"):
            gates = picked.clamp_min(0)
            if self.renormalise == "none":
                return gates
            return gates / gates.sum(-1, keepdim=True).clamp_min(torch.finfo(gates.dtype).tiny)
        if self.renormalise == "logits":
            tiny = torch.finfo(picked.dtype).tiny
            log = self.temperature * picked.clamp_min(tiny).log()
            picked = torch.where(picked == -torch.inf, picked, log)
        weights = softmax(picked)
        if lowest(picked) == -torch.inf:
            weights = weights.masked_fill(picked == -torch.inf, 0.0)
        return weights

    def extra_repr(self) -> str:
        return f"{self.renormalise!r}"


class DynamicRouter(Router):
    """Each thing goes to the experts whose gates pass a rule.

    rule, value, most: see `Threshold`; the published percentile always keeps the same number.
    renormalise: see `ChosenGates`. temperature, noise: see `GateScorer`.
    As published there are no losses, and experts may starve.
    Source: section 3.1.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        rule: Rule = "percentile",
        value: float = 0.5,
        losses: Iterable[AuxiliaryLoss] = (),
        most: int | None = None,
        renormalise: Renormalise = "gates",
        temperature: float = 0.5,
        noise: float = 0.1,
    ) -> None:
        scorer = GateScorer(LinearScorer(dim, num_experts), temperature, noise)
        gate = ChosenGates(renormalise, temperature)
        super().__init__(scorer, Threshold(rule, value, most), gate, losses)
