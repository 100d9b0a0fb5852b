"""Rules under which the count of a thing's experts follows from its gates.

Source: DynaMoE, arXiv 2603.01697, for the percentile; the others do what its abstract says.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.routing.context import RoutingContext

Rule = Literal["percentile", "mass", "relative", "mean", "absolute", "top"]

_RANGES: dict[str, tuple[float, float]] = {
    "percentile": (0.0, 1.0),
    "mass": (0.0, 1.0),
    "relative": (0.0, 1.0),
    "absolute": (0.0, 1.0),
    "top": (1.0, math.inf),
}


class Threshold(nn.Module):
    """The experts whose gates are high enough, the highest first; at least one where any is open.

    rule, with `value` v:
        "percentile": gates above the v-quantile of the thing's own gates, linearly interpolated.
            As published. Of E different gates these are always E - 1 - ⌊v (E - 1)⌋: ranks say
            nothing of how sure a gate is, and the count does not vary.
        "mass": the fewest that hold a share v of all. "relative": at least v times the highest.
        "mean": above the thing's mean gate. "absolute": above v. "top": the v highest.
    most: never more than that many.
    Gates are the probabilities; rules of rank ("percentile", "top") read scores, which rank alike
    and do not saturate. No gradient passes the choice.
    Raises InputError for an unknown rule or a value out of range.
    """

    def __init__(self, rule: Rule = "percentile", value: float = 0.5, most: int | None = None):
        super().__init__()
        if rule not in get_args(Rule):
            raise unknown("rule", rule, get_args(Rule))
        low, high = _RANGES.get(rule, (-math.inf, math.inf))
        if not low <= value <= high:
            raise InputError(f"a {rule!r} rule of value={value}; {low:g} to {high:g} is right")
        if most is not None and most < 1:
            raise InputError(f"most={most} experts; at least 1 is needed")
        self.rule = rule
        self.value = value
        self.most = most

    @torch.no_grad()
    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        open_ = scores != -torch.inf
        ranked = scores if self.rule in ("percentile", "top") else probabilities
        gates = ranked.masked_fill(~open_, -torch.inf)
        ordered, experts = gates.sort(dim=-1, descending=True, stable=True)
        kept = self._kept(ordered, open_.sum(-1, keepdim=True))
        kept[:, :1] = True
        kept &= ordered != -torch.inf
        if self.most is not None:
            kept[:, self.most :] = False
        width = int(kept.sum(-1).max()) if kept.numel() else 1
        return experts.masked_fill(~kept, -1)[:, : max(width, 1)]

    def _kept(self, ordered: Tensor, count: Tensor) -> Tensor:
        """(T, E) bool, of gates in falling order, of which the first `count` (T, 1) are open."""
        shares = ordered.clamp_min(0)
        if self.rule == "percentile":
            return ordered > _quantile(ordered, count, self.value)
        if self.rule == "mass":
            before = shares.cumsum(-1) - shares
            return before < self.value * shares.sum(-1, keepdim=True)
        if self.rule == "relative":
            return ordered >= self.value * ordered[:, :1]
        if self.rule == "mean":
            return ordered > shares.sum(-1, keepdim=True) / count
        if self.rule == "absolute":
            return ordered > self.value
        return torch.arange(ordered.shape[1], device=ordered.device).expand_as(ordered) < self.value

    def extra_repr(self) -> str:
        return f"{self.rule!r}, {self.value}" + f", most={self.most}" * (self.most is not None)


def _quantile(ordered: Tensor, count: Tensor, q: float) -> Tensor:
    """(T, 1): the q-quantile of the first `count` (T, 1) of each row, which fall; interpolated."""
    # From below, and rounded: 0.7 · 10 is not quite 7.
    place = ((count.double() - 1).clamp_min(0) * q * 1e9).round() / 1e9
    below = (count - 1 - place.floor().long()).clamp_min(0)
    above = (below - 1).clamp_min(0)
    low, high = ordered.gather(1, below), ordered.gather(1, above)
    part = (place - place.floor()).to(ordered.dtype)
    return torch.where(part > 0, low + part * (high - low), low)
