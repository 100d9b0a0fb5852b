"""Selections: which experts serve a thing, given its scores and the gate's probabilities.

A selection maps scores and probabilities (T, E) to experts (T, K) int64, -1 where a slot is empty.
Choices carry no gradient. Experts that score -inf are never chosen. Scores of NaN rank first: such
a thing gets weights of NaN from every gate that reads scores, and so a visible output of NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from polypath.errors import InputError
from polypath.routing.context import RoutingContext
from polypath.routing.gates import lowest


class SelectionBias(nn.Module):
    """A bias per expert that only the selection sees, moved against the load after each step.

    b ← b + rate · sign(mean load - load), over the things of the whole global batch. Experts that
    could not be chosen, in no part of the batch, stay as they are and out of the mean.
    value: (E,) float32, the bias; it stays float32 when a model is cast, for steps drown in half
        precision.
    seen: (E,) int64, choices since the last update, or None. open: (E,) int64, positive for experts
        that could be chosen since then, or None.
    Source: loss-free balancing (Wang et al. 2024), algorithm 1.
    """

    value: Tensor
    seen: Tensor | None
    open: Tensor | None

    def __init__(self, num_experts: int, rate: float = 1e-3) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("value", torch.zeros(num_experts))
        self.seen = self.open = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> SelectionBias:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)

    @torch.no_grad()
    def observe(self, experts: Tensor, mask: Tensor | None, scores: Tensor) -> None:
        """Count choices (T, K) by scores (T, E); things outside `mask` (T,) do not count."""
        filled = experts >= 0
        if mask is not None:
            filled = filled & mask[:, None]
        seen = self._counts(self.seen)
        self.seen = seen.index_add_(0, experts.clamp_min(0).flatten(), filled.flatten().to(seen))
        self.open = self._counts(self.open).add_((scores != -torch.inf).any(0))

    @torch.no_grad()
    def update(self) -> None:
        """Move the bias by what was seen since the last update, over all ranks, and forget it."""
        told = torch.stack([self._counts(self.seen), self._counts(self.open)])
        self.seen = self.open = None
        if dist.is_initialized():
            dist.all_reduce(told)
        seen, could = told[0].float(), told[1] > 0
        mean = seen.sum() / could.sum().clamp_min(1)
        self.value += self.rate * torch.sign(mean - seen) * could

    def _counts(self, known: Tensor | None) -> Tensor:
        # Not buffers: those that are not saved would come back from the meta device as anything.
        return torch.zeros_like(self.value, dtype=torch.int64) if known is None else known


class TopK(nn.Module):
    """The k highest scores of each thing.

    bias: ranks probabilities + bias instead of scores (loss-free balancing).
    groups, best_groups: experts lie in equal groups, and only the best groups may be chosen from,
        a group counting the sum of its two highest (DeepSeek-V3, node-limited routing).
    Raises InputError when k < 1, k > E, or the groups do not fit the experts.
    """

    def __init__(
        self,
        k: int,
        bias: SelectionBias | None = None,
        groups: int = 1,
        best_groups: int = 1,
    ) -> None:
        super().__init__()
        if k < 1:
            raise InputError(f"cannot choose k={k} experts; k must be ≥ 1")
        if not 1 <= best_groups <= groups:
            raise InputError(
                f"best_groups={best_groups} of groups={groups}; it must be in 1..groups"
            )
        self.k = k
        self.bias = bias
        self.groups = groups
        self.best_groups = best_groups

    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        num_experts = scores.shape[1]
        if num_experts % self.groups:
            raise InputError(f"{num_experts} experts do not lie in {self.groups} equal groups")
        if self.k > num_experts // self.groups * self.best_groups:
            raise InputError(
                f"cannot choose k={self.k} of {num_experts} experts"
                + f" within {self.best_groups} of {self.groups} groups" * (self.groups > 1)
                + "; k must not exceed what there is to choose from"
            )
        experts = self._choose(scores.detach(), probabilities.detach())
        if self.bias is not None and self.training and torch.is_grad_enabled():
            self.bias.observe(experts, context.mask, scores)
        return experts

    def _choose(self, scores: Tensor, probabilities: Tensor) -> Tensor:
        ranking = scores
        if self.bias is not None:
            forbidden = scores == -torch.inf
            ranking = (probabilities + self.bias.value).masked_fill(forbidden, -torch.inf)
        if self.groups > 1:
            ranking = self._within_best_groups(ranking)
        best, experts = _highest(ranking, self.k)
        if lowest(best) > -torch.inf:
            return experts
        return experts.masked_fill(best == -torch.inf, -1)

    def _within_best_groups(self, ranking: Tensor) -> Tensor:
        grouped = ranking.unflatten(-1, (self.groups, -1))
        # Finite, so that a group with one expert left to choose ranks above a group with none.
        highest = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values
        worth = highest.clamp_min(torch.finfo(highest.dtype).min / 4).sum(-1)
        best = worth.topk(self.best_groups, dim=-1).indices
        allowed = torch.zeros_like(worth, dtype=torch.bool).scatter_(1, best, True)
        return grouped.masked_fill(~allowed[:, :, None], -torch.inf).flatten(1)

    def extra_repr(self) -> str:
        return f"k={self.k}" + (f", best {self.best_groups}/{self.groups}" * (self.groups > 1))


def _highest(ranking: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """As `ranking.topk(k)`, of scores (T, E)."""
    if not ranking.is_cpu or ranking.shape[1] < 16:
        return ranking.topk(k)
    # On long rows numpy finds which they are in less than half of torch's time, but not in order.
    found = torch.from_numpy(np.argpartition(ranking.numpy(), -k, axis=-1)[:, -k:])
    best, order = ranking.gather(1, found).topk(k)
    return best, found.gather(1, order)


class FirstCome(nn.Module):
    """The highest score, where there is room: an expert takes the first `room` of each sequence.

    Later things of the sequence that chose it are served by none. Source: Switch Transformers
    (Fedus et al. 2021), as transformers has it. Raises InputError when room is not positive.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        if room < 1:
            raise InputError(f"first come: room={room}; at least 1 is needed")
        self.room = room

    @torch.no_grad()
    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        best, experts = scores.max(-1)
        if not len(scores):
            return experts[:, None]
        length = context.shape[-1] if context.shape else len(scores)
        chosen = torch.zeros_like(scores, dtype=torch.int32).scatter_(1, experts[:, None], 1)
        if context.mask is not None:  # padding takes no room
            chosen *= context.mask[:, None]
        turn = chosen.unflatten(0, (-1, length)).cumsum(1).flatten(0, 1).gather(1, experts[:, None])
        late = (turn[:, 0] > self.room) | (best == -torch.inf)
        return experts.masked_fill(late, -1)[:, None]

    def extra_repr(self) -> str:
        return f"room={self.room}"


class PerSlice(nn.Module):
    """The best expert of each of k slice positions: of experts j, k + j, 2 k + j, … for j < k.

    Where experts are k slices each of several copies of a network, nothing is taken twice and
    nothing is missed. Raises InputError unless k divides the experts.
    Source: the constraint beside Dynamic-DINO (Lu et al. 2025).
    """

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    @torch.no_grad()
    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        if scores.shape[1] % self.k:
            raise InputError(f"{scores.shape[1]} experts are no copies of k={self.k} slices")
        best, copies = scores.unflatten(1, (-1, self.k)).max(1)
        experts = copies * self.k + torch.arange(self.k, device=scores.device)
        return experts.masked_fill(best == -torch.inf, -1)

    def extra_repr(self) -> str:
        return f"k={self.k}"


class ExpertChoice(nn.Module):
    """Every expert takes the C things it likes best, C = ⌈factor · T / E⌉.

    A thing may be served by any number of experts, none among them; K is the largest number met.
    Not causal: whether a token is served depends on later tokens.
    T counts things, not padding, which is never taken.
    Source: Expert Choice Routing (Zhou et al. 2022), section 3.2; factor is the mean count.
    Raises InputError when factor is not positive.
    """

    def __init__(self, factor: float = 2.0) -> None:
        super().__init__()
        if factor <= 0:
            raise InputError(f"expert choice: factor={factor}; it must be positive")
        self.factor = factor

    @torch.no_grad()
    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        things, num_experts = scores.shape
        wanted = probabilities.masked_fill(scores == -torch.inf, -torch.inf)
        if context.mask is not None:
            wanted = wanted.masked_fill(~context.mask[:, None], -torch.inf)
            things = int(context.mask.sum())
        taken = min(things, math.ceil(self.factor * things / num_experts))
        best, places = wanted.topk(taken, dim=0)
        serves = torch.zeros_like(wanted, dtype=torch.bool)
        serves.scatter_(0, places, best != -torch.inf)
        return _packed(serves)

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class All(nn.Module):
    """Every expert serves every thing, but for those that may not be chosen."""

    @torch.no_grad()
    def forward(self, scores: Tensor, probabilities: Tensor, context: RoutingContext) -> Tensor:
        everyone = torch.arange(scores.shape[1], device=scores.device).expand(scores.shape)
        return everyone.masked_fill(scores == -torch.inf, -1)


def _packed(serves: Tensor) -> Tensor:
    """(T, E) bool to (T, K) expert ids in ascending order, -1 behind them; K the largest count."""
    width = int(serves.sum(-1).max()) if serves.numel() else 0
    ids = torch.arange(serves.shape[1], device=serves.device)
    ordered = torch.where(serves, ids, serves.shape[1]).sort(-1).values[:, : max(width, 1)]
    return ordered.masked_fill(ordered == serves.shape[1], -1)


@torch.no_grad()
def within_capacity(
    experts: Tensor, num_experts: int, factor: float, mask: Tensor | None = None
) -> Tensor:
    """(T, K): the choices that experts of limited capacity have room for, -1 for the others.

    Each expert has room for C = ⌈factor · T · K / E⌉ things and takes first choices before second
    ones, earlier things before later ones. T counts things in `mask` (T,); padding is not served.
    Source: GShard (2020), algorithm 1.
    """
    things, slots = experts.shape
    if mask is not None:
        experts, things = experts.masked_fill(~mask[:, None], -1), int(mask.sum())
    room = math.ceil(factor * things * slots / num_experts)
    queue = experts.T.flatten()
    order = queue.argsort(stable=True)
    sorted_queue = queue[order]
    first = torch.searchsorted(sorted_queue, sorted_queue)
    late = torch.arange(len(queue), device=queue.device) - first >= room
    dropped = torch.empty_like(late).scatter_(0, order, late)
    return experts.masked_fill(dropped.view(slots, -1).T, -1)
