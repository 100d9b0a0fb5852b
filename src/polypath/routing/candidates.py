"""Candidates: which experts may be chosen in a step, whatever the things are.

Random draws come from a seed and the training step, so that all ranks, all micro-batches and a
resumed run agree.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.context import RoutingContext, generator_of


class Candidates(nn.Module):
    """A limit on the experts of a layer; part of a Router.

    renormalise: probabilities are shared out among the candidates alone, as if there were no other
        experts; else those of the other experts are set to zero and nothing is made up for.
    """

    renormalise: bool

    def forward(self, context: RoutingContext) -> Tensor | None:
        """(E,) bool, on any device, the experts that may be chosen; None for all."""
        raise NotImplementedError


class OnlyExperts(Candidates):
    """A fixed set of experts, in training and in evaluation: a narrower layer in a wide one."""

    renormalise = True

    def __init__(self, num_experts: int, experts: Iterable[int]) -> None:
        super().__init__()
        kept = sorted(set(experts))
        if not kept or not 0 <= kept[0] <= kept[-1] < num_experts:
            raise InputError(f"OnlyExperts: {kept} of experts 0 to {num_experts - 1}")
        self.num_experts = num_experts
        self.experts = tuple(kept)

    def forward(self, context: RoutingContext) -> Tensor:
        return torch.isin(torch.arange(self.num_experts), torch.tensor(self.experts))

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, experts={self.experts}"


def drawn(num_experts: int, count: int, seed: int, step: int) -> Tensor:
    """(E,) bool: `count` experts drawn without replacement, the same for a seed and a step."""
    allowed = torch.zeros(num_experts, dtype=torch.bool)
    allowed[torch.randperm(num_experts, generator=generator_of(seed, step))[:count]] = True
    return allowed
