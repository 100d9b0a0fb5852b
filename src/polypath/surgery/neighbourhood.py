"""Fine-tuning held near the model that it starts from: a task's loss and a KL to the start.

total = task + λ · KL, the KL averaged over the valid positions of the whole batch. N positions, V
outcomes.
Source: neighbourhood self-constrained fine-tuning of AnalogSeeker, arXiv 2508.10409.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polypath.errors import InputError, unknown
from polypath.routing.layer import rehearsal
from polypath.surgery.attribution import evaluation

Direction = Literal["reverse", "forward"]
"""KL(policy ‖ reference), the method's, or KL(reference ‖ policy), its ablation."""

Without = Callable[[], AbstractContextManager[Any]]
"""Gives a context in which a network is its own reference, as peft's `model.disable_adapter`."""

IGNORED = -100
WEIGHT = 0.1

Model = TypeVar("Model", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class Deferred:
    """Logits that are not made yet, so that they need never be there all at once.

    features: (..., D). head: from rows of them, (n, D), to their logits, (n, V).
    """

    features: Tensor
    head: Callable[[Tensor], Tensor]


Logits = Tensor | Deferred
"""(..., V), at once or deferred."""


class Constrained(NamedTuple):
    """Scalars in float32, or float64 where logits are; only `total` has a gradient.

    total: task + λ · kl, to be minimised. kl: nats, averaged over positions. by_sample: averaged
    over each sample's positions, then over samples; what λ would weigh if short answers counted as
    much as long ones.
    """

    total: Tensor
    task: Tensor
    kl: Tensor
    by_sample: Tensor


def divergence(policy: Tensor, reference: Tensor, direction: Direction = "reverse") -> Tensor:
    """(...) nats: the KL between the distributions of logits (..., V), in float32 or float64.

    ∂/∂z = p (log p/q - KL) where it is reverse, p - q where it is forward. Log-probabilities are
    logits too; outcomes of logit -inf cannot occur. The score s of a yes or no has logits (s, 0).
    """
    ours, theirs = _log_softmax(policy), _log_softmax(reference)
    over, other = (ours, theirs) if direction == "reverse" else (theirs, ours)
    p, q = over.exp(), other.exp()
    gap = (over - other).masked_fill(over == -torch.inf, 0.0)  # 0 · log 0
    # q - p sums to 0, and makes the gradient 0 to the bit where p = q.
    kl = (p * gap - p + q).sum(-1)
    return kl - kl.detach().clamp_max(0.0)  # what rounding left below 0


def _log_softmax(logits: Tensor) -> Tensor:
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return F.log_softmax(logits, -1, dtype=wide)


def over_positions(
    values: Callable[..., Tensor],
    policy: Logits,
    reference: Logits,
    valid: Tensor,
    chunk: int | None,
    *aligned: Tensor,
) -> Tensor:
    """(n, …): `values` of the policy's and the reference's logits at the n valid positions.

    valid: (...) bool. aligned: further tensors of its shape, of which `values` gets their part.
    chunk: positions at once, None for all. What a chunk makes is made again for its gradient, so
        of deferred logits there are never more than those of one chunk.
    Raises InputError where shapes do not fit together.
    """
    features = [x.features if isinstance(x, Deferred) else x for x in (policy, reference)]
    for x, of in zip(features, ("policy", "reference"), strict=True):
        if x.shape[:-1] != valid.shape:
            raise InputError(
                f"neighbourhood: the {of}'s logits {tuple(x.shape)} do not fit the positions "
                f"{tuple(valid.shape)}; they have one dimension more"
            )
    ours, theirs = (x.head if isinstance(x, Deferred) else _as_it_is for x in (policy, reference))

    def of_rows(rows: Tensor, started: Tensor, keep: Tensor, *more: Tensor) -> Tensor:
        with torch.no_grad():
            first = theirs(started[keep])
        said = ours(rows[keep])
        if said.shape != first.shape:
            raise InputError(
                f"neighbourhood: the policy has {said.shape[-1]} outcomes, the reference "
                f"{first.shape[-1]}; both have to speak of the same"
            )
        return values(said, first, *(x[keep] for x in more))

    flat = [x.reshape(-1, x.shape[-1]) for x in features]
    flat += [x.reshape(-1) for x in (valid, *aligned)]
    if chunk is None or len(flat[0]) <= chunk:
        return of_rows(*flat)
    run = partial(checkpoint, of_rows, use_reentrant=False) if torch.is_grad_enabled() else of_rows
    return torch.cat([run(*rows) for rows in zip(*(x.split(chunk) for x in flat), strict=True)])


def _as_it_is(rows: Tensor) -> Tensor:
    return rows


@contextmanager
def at_rest(model: nn.Module, without: Without = nullcontext) -> Iterator[None]:
    """Inside the block a model is a reference: no graph, evaluation mode, inside `without()`.

    After it, the model is as it was: modes, random states, and what routed layers remember.
    """
    with rehearsal(model), without(), evaluation(model):
        yield


def frozen(model: Model) -> Model:
    """A copy of a model as it is now, in evaluation mode, whose parameters need no gradient."""
    return deepcopy(model).eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class Reference:
    """What a model said when tuning started: from a batch to `says(model, batch)`, at rest.

    model: a frozen copy, or the trained network itself where `without()` turns its adapters off.
    """

    model: nn.Module
    says: Callable[[Any, Any], Logits]
    without: Without = nullcontext

    def __call__(self, batch: Any) -> Logits:
        with at_rest(self.model, self.without):
            said = self.says(self.model, batch)
        if isinstance(said, Deferred):
            return replace(said, head=partial(self._later, said.head))
        return said

    def _later(self, head: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
        with at_rest(self.model, self.without):
            return head(rows)


@dataclass(frozen=True, eq=False)
class NeighbourhoodConstraint:
    """A task's loss, held near what a reference says: from a batch to task + λ · KL.

    task: from the policy's logits and the batch to a scalar. policy, reference: from a batch to
        logits, of words, classes or experts; a `Reference`, or any function, is run without graph,
        and before the policy.
    valid: from a batch to (...) bool, the positions that count; None for all.
    weight: λ. chunk: positions of the KL at once, see `over_positions`.
    The KL holds only what is said of the batches that it sees.
    Raises InputError for a λ below 0, a chunk below 1 or an unknown direction.
    """

    task: Callable[[Any, Any], Tensor]
    policy: Callable[[Any], Logits]
    reference: Callable[[Any], Logits]
    valid: Callable[[Any], Tensor] | None = None
    weight: float = WEIGHT
    direction: Direction = "reverse"
    chunk: int | None = None

    def __post_init__(self) -> None:
        _check(self.weight, self.direction, self.chunk)

    def __call__(self, batch: Any, items: float | None = None) -> Constrained:
        """The loss of a batch. items: what to divide by, where it is a part of a larger batch."""
        with torch.no_grad():
            started = self.reference(batch)
        said = self.policy(batch)
        features = said.features if isinstance(said, Deferred) else said
        every = features.new_ones(features.shape[:-1], dtype=torch.bool)
        valid = every if self.valid is None else self.valid(batch)
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.weight > 0):
            values = partial(divergence, direction=self.direction)
            kl = over_positions(values, said, started, valid, self.chunk)
        return _constrained(self.task(said, batch), kl, self.weight, valid, items)


def constrained_loss(
    model: Any,
    reference: nn.Module | Without,
    batch: Mapping[str, Tensor],
    weight: float = WEIGHT,
    direction: Direction = "reverse",
    chunk: int | None = 1024,
    items: float | None = None,
) -> Constrained:
    """Cross-entropy of a causal language model of transformers, held near where it started.

    reference: a frozen copy of the model, or, of a model with adapters, what turns them off.
    batch: what the decoder reads, and labels (B, S) int64, -100 where none counts; not shifted.
    chunk: positions whose logits are there at once, of either model, forward and backward.
    items: what to divide by instead of the batch's own labels, where it is a part of a larger one.
    Auxiliary losses of routed layers are not in it. Give both models the same attention kernel:
    differences between kernels are not small beside a small KL.
    Raises InputError for a model whose head does more than can be done here.
    """
    _check(weight, direction, chunk)
    if isinstance(reference, nn.Module):
        rested = Reference(reference, _says)
    else:
        rested = Reference(model, _says, reference)
    started, said = rested(batch), _says(model, batch)
    labels = batch["labels"][:, 1:]
    valid = labels != IGNORED
    values = partial(_both, weight, direction)
    task, kl = over_positions(values, said, started, valid, chunk, labels).unbind(-1)
    count = valid.sum() if items is None else items
    return _constrained(task.sum() / _at_least_one(count), kl, weight, valid, items)


def _both(weight: float, direction: Direction, z: Tensor, first: Tensor, labels: Tensor) -> Tensor:
    """(n, 2): cross-entropy and KL of logits (n, V)."""
    task = F.nll_loss(_log_softmax(z), labels, reduction="none")
    return torch.stack([task, divergence(z if weight else z.detach(), first, direction)], -1)


def _says(model: Any, batch: Mapping[str, Tensor]) -> Deferred:
    """What a causal language model says of the next token, at all positions but the last."""
    config = model.config.get_text_config()
    scales = ("logit_scale", "logits_scaling", "lm_head_multiplier")
    if model.config.is_encoder_decoder or any(getattr(config, s, None) for s in scales):
        raise InputError(
            f"constrained_loss: {type(model).__name__} is more than a decoder and a linear head; "
            "give its logits to a NeighbourhoodConstraint"
        )
    read = {name: value for name, value in batch.items() if name != "labels"}
    features = model.get_decoder()(**read, use_cache=False).last_hidden_state
    cap = getattr(config, "final_logit_softcapping", None)
    return Deferred(features[:, :-1], partial(_capped, model.get_output_embeddings(), cap))


def _capped(head: nn.Module, cap: float | None, rows: Tensor) -> Tensor:
    logits = head(rows)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _constrained(
    task: Tensor, kl: Tensor, weight: float, valid: Tensor, items: float | None
) -> Constrained:
    """Averages of the KL (n,) at the valid positions (B, …)."""
    mean = kl.sum() / _at_least_one(valid.sum() if items is None else items)
    counts = valid.flatten(1).sum(1) if valid.ndim > 1 else valid.reshape(-1).long()
    sample = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    own = kl.new_zeros(len(counts)).index_add_(0, sample, kl.detach()) / counts.clamp_min(1)
    by_sample = own.sum() / _at_least_one((counts > 0).sum())
    total = task + weight * mean if weight else task
    return Constrained(total, task.detach(), mean.detach(), by_sample)


def _at_least_one(count: Tensor | float) -> Any:
    return count.clamp_min(1) if isinstance(count, Tensor) else max(count, 1)


def _check(weight: float, direction: str, chunk: int | None) -> None:
    if not 0 <= weight < math.inf:
        raise InputError(f"neighbourhood: λ={weight}; 0 or more is right, and 0.1 is usual")
    if direction not in get_args(Direction):
        raise unknown("direction of the KL", direction, get_args(Direction))
    if chunk is not None and chunk < 1:
        raise InputError(f"neighbourhood: chunk={chunk}; at least 1 position, or None for all")
