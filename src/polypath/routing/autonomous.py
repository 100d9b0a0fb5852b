"""Experts that choose for themselves: a thing goes to those that it excites most; no router.

Source: Autonomy-of-Experts Models (Lv et al. 2025), arXiv 2501.13074, as the baseline of
arXiv 2512.23447.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.auxiliary import AuxiliaryLoss
from polypath.routing.context import RoutingContext
from polypath.routing.gates import softmax_gate
from polypath.routing.routers import Router
from polypath.routing.scorers import routing_dtype
from polypath.routing.selection import TopK


class AutonomousScorer(nn.Module):
    """The length of each expert's low-rank reading of a thing: scores = ‖A_e x‖.

    experts: a bank that gives `readings(x)`, (T, E, r), as `FactoredExperts`. It is read, not
        owned: its parameters are those of the layer's experts. Every expert reads every thing.
    """

    def __init__(self, experts: Any) -> None:
        super().__init__()
        if not hasattr(experts, "readings"):
            raise InputError(
                f"AutonomousScorer: {type(experts).__name__} has no low-rank readings; "
                "FactoredExperts have"
            )
        # In a tuple, so that it is no part of this module.
        self._experts = (experts,)

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        return self._experts[0].readings(x.to(routing_dtype(x))).norm(dim=-1)


class AutonomousRouter(Router):
    """The k experts whose readings of a thing are longest, weighted by a softmax of the lengths.

    experts: those of the layer, see `AutonomousScorer`.
    gate: "softmax" over all experts, as published, or "softmax-chosen".
    """

    def __init__(
        self,
        experts: Any,
        k: int,
        losses: Iterable[AuxiliaryLoss] = (),
        gate: str = "softmax",
    ) -> None:
        super().__init__(AutonomousScorer(experts), TopK(k), softmax_gate(gate), losses)
