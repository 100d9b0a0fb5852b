"""Fewer experts than a router chooses among: several of its ids share one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.record import Routing


class MergedExperts(nn.Module):
    """A bank behind a map: the router's expert e is the bank's expert groups[e].

    Router, choices and weights are those of the E experts that there were. Where several choices of
    a thing share an expert, that runs once, with the sum of their weights.
    bank: takes a routing over its own experts. groups: (E,) int64, kept as a buffer.
    Raises InputError when no id, or more than one bank can have, is in groups.
    Source: MC-SMoE (Li et al. 2023), section 3.2.
    """

    groups: Tensor

    def __init__(self, bank: nn.Module, groups: Sequence[int] | Tensor, stored: int) -> None:
        super().__init__()
        groups = torch.as_tensor(groups, dtype=torch.int64)
        known = groups if groups.device.type != "meta" else groups.new_zeros(0, device="cpu")
        if groups.dim() != 1 or not len(groups) or any(not 0 <= g < stored for g in known.tolist()):
            raise InputError(f"MergedExperts: groups {groups.tolist()} for {stored} experts")
        self.bank = bank
        self.stored = stored
        self.register_buffer("groups", groups)

    def routing(self, routing: Routing) -> Routing:
        """The routing over the E ids as one over the bank's experts, none twice for a thing."""
        chosen = self.groups[routing.experts.clamp_min(0)].masked_fill(routing.experts < 0, -1)
        experts, order = chosen.sort(-1, descending=True)
        weights = routing.weights.gather(1, order)
        if experts.shape[1] > 1:
            again = experts[:, 1:] == experts[:, :-1]
            first = torch.cat([torch.zeros_like(again[:, :1]), again], 1)
            places = (~first).cumsum(-1) - 1  # of the first slot with the same expert
            weights = torch.zeros_like(weights).scatter_add(1, places, weights)
            experts = torch.full_like(experts, -1).scatter_(1, places, experts)
        return replace(
            routing,
            scores=routing.scores.new_zeros(len(routing), self.stored),
            probabilities=None,
            experts=experts,
            weights=weights.masked_fill(experts < 0, 0.0),
        )

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over the E ids to y (T, D)."""
        if routing.num_experts != len(self.groups):
            raise InputError(
                f"a routing over {routing.num_experts} experts for a map of {len(self.groups)}"
            )
        return self.bank(x, self.routing(routing))

    def extra_repr(self) -> str:
        return f"{len(self.groups)} → {self.stored}"
