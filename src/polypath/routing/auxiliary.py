"""Auxiliary losses on routings, each with one meaning everywhere.

Every loss is a function of sums over counted things. That is what makes it the same number, with
the same gradient, whether a batch is seen whole, in micro-batches or over ranks: the sums of the
whole global batch take part as constants, and each part adds its own gradient. Losses of the parts
add up to the loss of the whole. Padding (outside `Routing.mask`) never counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist

from polypath.errors import InputError, unknown
from polypath.routing.context import RoutingContext
from polypath.routing.layer import rehearsal
from polypath.routing.record import Routing


class _Shared(nn.Module):
    """A loss of which every part of a global batch gives its share; `weight` multiplies it.

    Under torch.distributed a forward with gradients adds sums up over ranks, so all ranks have to
    run alike; one without gradients gives the loss of its own things and asks nobody.
    """

    name: str

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self._whole: Tensor | None = None
        self._counting = False

    def _over_batch(self, own: Tensor) -> Tensor | None:
        """The sums of the whole global batch, without history; None while they are counted."""
        if self._counting:
            self._whole = own.detach() if self._whole is None else self._whole + own.detach()
            return None
        if self._whole is not None:
            return self._whole
        return _over_ranks(own.detach()) if torch.is_grad_enabled() else own.detach()

    def extra_repr(self) -> str:
        return f"weight={self.weight}"


class AuxiliaryLoss(_Shared):
    """A loss on one layer's routing, part of its router.

    A subclass names itself and gives `sums(routing, context)`, (S,), additive over things, whose
    last entry is the number of counted things, and `value(sums)`, a scalar.
    """

    def sums(self, routing: Routing, context: RoutingContext) -> Tensor:
        raise NotImplementedError

    def value(self, sums: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, routing: Routing, context: RoutingContext) -> Tensor:
        """The part's share of the loss over the whole global batch, a scalar."""
        own = self.sums(routing, context)
        whole = self._over_batch(own)
        if whole is None:
            return own.new_zeros(())
        loss = self.value(whole + (own - own.detach()))
        share = own[-1].detach() / whole[-1].clamp_min(1)
        return self.weight * (loss - loss.detach() * (1 - share))


class LayerLoss(_Shared):
    """A loss on the parameters of a layer, whatever the things are; part of a MoE, in training.

    A subclass names itself and gives `check(router, experts)`, which raises InputError for a layer
    that it cannot be a loss of, and `penalty(router, experts, context)`, a scalar.
    seed: the layer's own, for a loss that draws at random.
    """

    seed = 0

    def check(self, router: Any, experts: Any) -> None:
        raise NotImplementedError

    def penalty(self, router: Any, experts: Any, context: RoutingContext) -> Tensor:
        raise NotImplementedError

    def forward(
        self, routing: Routing, router: nn.Module, experts: nn.Module, context: RoutingContext
    ) -> Tensor:
        """The part's share of the penalty, by counted things; all of it where nothing counts."""
        own = _counted(routing).sum()
        whole = self._over_batch(own)
        if whole is None:
            return own.new_zeros(())
        share = torch.where(whole > 0, own / whole.clamp_min(1), 1.0)
        return self.weight * share * self.penalty(router, experts, context)


class LoadBalance(AuxiliaryLoss):
    """E · Σ fᵢ Pᵢ: the share of choices times the mean probability; 1 when both are uniform.

    fᵢ is divided by k (choices, not things, are counted) and Pᵢ by the sum of the gate's
    probabilities, so that the loss reads the same for every k and every gate. E counts the experts
    that may be chosen, the mean over things.
    over="batch": f and P over the whole global batch, all micro-batches and ranks
        (Switch Transformers, equation 4; Qiu et al. 2025 for the global batch).
    over="sequence": f and P within each sequence, averaged over things (DeepSeek-V3, equation 17);
        named "sequence_balance". The first dimension of the context's shape counts sequences.
    """

    def __init__(self, weight: float = 1e-2, over: Literal["batch", "sequence"] = "batch") -> None:
        super().__init__(weight)
        if over not in ("batch", "sequence"):
            raise unknown("load balance over", over, ("batch", "sequence"))
        self.over = over
        self.name = "load_balance" if over == "batch" else "sequence_balance"

    def sums(self, routing: Routing, context: RoutingContext) -> Tensor:
        chosen, p, counted = _choices(routing), _shares(routing), _counted(routing)
        open_ = (routing.scores != -torch.inf).to(counted.dtype).sum(-1) * counted
        if self.over == "batch":
            return torch.cat([chosen.sum(0), p.sum(0), open_.sum()[None], counted.sum()[None]])
        shape = context.need("shape", "LoadBalance(over='sequence')")
        rows = (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))
        parts = (chosen, p, open_, counted)
        chosen, p, open_, counted = (t.unflatten(0, rows).sum(1) for t in parts)
        loss = _balance(chosen, p, open_, counted)
        return torch.stack([(loss * counted).sum(), counted.sum()])

    def value(self, sums: Tensor) -> Tensor:
        if self.over == "sequence":
            return sums[0] / sums[1].clamp_min(1)
        chosen, p = sums[:-2].chunk(2)
        return _balance(chosen, p, sums[-2], sums[-1])


class Importance(AuxiliaryLoss):
    """Squared coefficient of variation of the experts' summed weights; 0 when they are equal.

    Source: Shazeer et al. 2017, equation 7.
    """

    name = "importance"

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__(weight)

    def sums(self, routing: Routing, context: RoutingContext) -> Tensor:
        return torch.cat([routing.importance(), _counted(routing).sum()[None]])

    def value(self, sums: Tensor) -> Tensor:
        importance = sums[:-1]
        return importance.var(unbiased=False) / importance.mean().square().clamp_min(1e-20)


class RouterZ(AuxiliaryLoss):
    """Mean of (log Σ exp scores)², which keeps the scores small.

    A thing that no expert may serve adds 0. Source: ST-MoE (Zoph et al. 2022), equation 5.
    """

    name = "router_z"

    def __init__(self, weight: float = 1e-3) -> None:
        super().__init__(weight)

    def sums(self, routing: Routing, context: RoutingContext) -> Tensor:
        z = routing.scores.logsumexp(-1)
        return _mean_sums(z.masked_fill(z == -torch.inf, 0.0).square(), routing)

    def value(self, sums: Tensor) -> Tensor:
        return sums[0] / sums[1].clamp_min(1)


class Entropy(AuxiliaryLoss):
    """Mean entropy of the gate's probabilities, in nats; a negative weight asks for indecision."""

    name = "entropy"

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__(weight)

    def sums(self, routing: Routing, context: RoutingContext) -> Tensor:
        return _mean_sums(routing.entropy(), routing)

    def value(self, sums: Tensor) -> Tensor:
        return sums[0] / sums[1].clamp_min(1)


def _counted(routing: Routing) -> Tensor:
    """(T,) in the scores' dtype: 1 for things that count, 0 for padding."""
    if routing.mask is None:
        return routing.scores.new_ones(len(routing))
    return routing.mask.to(routing.scores.dtype)


def _mean_sums(values: Tensor, routing: Routing) -> Tensor:
    counted = _counted(routing)
    return torch.stack([torch.where(counted > 0, values, 0.0).sum(), counted.sum()])


def _choices(routing: Routing) -> Tensor:
    """(T, E): 1 where a counted thing chose the expert; no gradient."""
    filled = (routing.experts >= 0).to(routing.scores.dtype) * _counted(routing)[:, None]
    chosen = torch.zeros_like(routing.scores)
    return chosen.scatter_add_(1, routing.experts.clamp_min(0), filled)


def _shares(routing: Routing) -> Tensor:
    """(T, E): the gate's probabilities of counted things, each row scaled to sum to one."""
    if routing.probabilities is None:
        raise InputError("load balance: this routing has no probabilities; its router gives none")
    p = routing.probabilities
    return p / p.sum(-1, keepdim=True).clamp_min(1e-20) * _counted(routing)[:, None]


def _balance(chosen: Tensor, p: Tensor, candidates: Tensor, counted: Tensor) -> Tensor:
    """E Σ f P from sums over things.

    Of choices (..., E), of probabilities (..., E), of candidates (...) and of the things (...).
    """
    f = chosen.detach() / chosen.detach().sum(-1, keepdim=True).clamp_min(1)
    things = counted.clamp_min(1)
    return candidates / things * (f * p).sum(-1) / things


def _over_ranks(sums: Tensor) -> Tensor:
    if dist.is_initialized():
        sums = sums.clone()
        dist.all_reduce(sums)
    return sums


@contextmanager
def whole_batch(model: nn.Module, passes: Iterable[Callable[[], Any]]) -> Iterator[None]:
    """Make auxiliary losses inside the block those of a global batch that is seen in parts.

    passes: calls that run `model` on each part, in order; under torch.distributed every rank has at
        least one. They run once here, as a `rehearsal`, to count; the real passes follow inside the
        block, in the same order, and choose alike.
    Costs one forward more; only worth it with two parts or more, and exact then.
    """
    parts = [m for m in model.modules() if isinstance(m, _Shared)]
    if not parts:
        yield
        return
    try:
        for part in parts:
            part._counting = True
        with rehearsal(model):
            for run in passes:
                run()
        for part in parts:
            part._counting = False
            if part._whole is not None:
                part._whole = _over_ranks(part._whole)
        yield
    finally:
        for part in parts:
            part._counting, part._whole = False, None
