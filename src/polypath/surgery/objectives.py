"""What unlearning minimises: of a batch to forget, of one to retain, and of the model as it was.

B sequences of S places that have a loss, T things of width D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing import MoE, Routing, routed_layers
from polypath.surgery.attribution import Aim, Batch, Original, gates, inputs
from polypath.surgery.supervision import Target, supervise

IGNORED = -100

Reduction = Literal["sum", "mean"]

Losses = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]
"""From a model and a batch to losses (B, S) in nats, and which of them count (B, S) bool."""


def next_token_losses(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Losses of a causal language model for each next token, (B, S - 1) in float32 at least.

    labels (B, S) are the tokens themselves where a batch has none; -100, and what the attention
    mask leaves out, does not count.
    """
    logits = model(**inputs(model, batch)).logits[:, :-1]
    tokens = batch["labels"] if "labels" in batch else batch["input_ids"]
    labels = tokens[:, 1:].to(logits.device)
    counts = labels != IGNORED
    if (mask := batch.get("attention_mask")) is not None:
        counts = counts & (mask[:, 1:].to(logits.device) != 0)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    wanted = labels.masked_fill(~counts, IGNORED).flatten()
    nats = F.cross_entropy(logits.flatten(0, 1), wanted, reduction="none", ignore_index=IGNORED)
    return nats.view(labels.shape), counts


@dataclass(frozen=True, eq=False)
class Look:
    """What a model makes of a batch.

    nats: losses (B, S), 0 where they do not count. counts: (B, S) bool. hidden: (T, D), what the
    block around the target's layer gives for things that count, or None where it gives no states.
    """

    nats: Tensor
    counts: Tensor
    hidden: Tensor | None = None

    def mean(self) -> Tensor:
        """The cross-entropy of the batch, in nats a place."""
        return self.nats.sum() / self.counts.sum().clamp_min(1)

    def summed(self) -> Tensor:
        """(B,): the loss of each sequence, in nats."""
        return self.nats.sum(1)


def look(model: nn.Module, batch: Batch, layer: str, losses: Losses) -> Look:
    """Losses of a batch, and the states after the block around the routed layer of this name."""
    routed, states = cast(MoE, model.get_submodule(layer)), []

    def hear(block: Any, args: Any, output: Any) -> None:
        found = output[0] if isinstance(output, tuple) else output
        if isinstance(found, Tensor):
            mask = cast(Routing, routed.last).mask
            rows = found.reshape(-1, found.shape[-1])
            states.append(rows if mask is None else rows[mask])

    handle = model.get_submodule(layer.rpartition(".")[0]).register_forward_hook(hear)
    try:
        nats, counts = losses(model, batch)
    finally:
        handle.remove()
    return Look(nats.masked_fill(~counts, 0.0), counts, states[-1] if states else None)


@contextmanager
def anchored(
    model: nn.Module, aims: Sequence[Aim], reduction: Reduction = "sum"
) -> Iterator[Callable[[], Tensor]]:
    """Inside the block, forwards are held against gates of 1 for targets and 0 for all others.

    What is given tells the anchor of the last forward: ‖s - a‖² in the mean over things that count,
    and then over layers. s is the softmax over all E experts. "mean" divides by E, as the released
    code does.
    Source: UOE, equation 3.
    """
    targets = {aim.layer for aim in aims}
    layers = {name: layer for name, layer in routed_layers(model).items() if name in targets}

    def teach(name: str, layer: MoE, rows: Tensor, routing: Routing) -> Target:
        wanted = torch.zeros_like(routing.scores)
        wanted[:, [aim.expert for aim in aims if aim.layer == name]] = 1.0
        return Target(wanted)

    def experts(name: str) -> int:
        routing = layers[name].last
        return routing.num_experts if routing is not None and reduction == "mean" else 1

    def anchor() -> Tensor:
        if not lessons.distances:
            return lessons.loss()  # which says what is wrong
        terms = [far.mean() / experts(name) for name, far in lessons.distances.items()]
        return torch.stack(terms).mean()

    with supervise(layers, teach, "squared") as lessons:
        yield anchor


@dataclass(frozen=True, eq=False)
class Seen:
    """What an objective may read; None where it did not ask for it.

    forget, retain: of the model as it is, with graph. forget_before, retain_before: of the model as
    it was before unlearning, of the same batches and without.
    """

    forget: Look
    retain: Look | None = None
    forget_before: Look | None = None
    retain_before: Look | None = None


Part = Literal["retain", "forget_before", "retain_before"]


class Objective(Protocol):
    """From what was seen to a scalar to be minimised; a frozen dataclass of plain values.

    reads: what of `Seen` it needs beside `forget`.
    """

    @property
    def reads(self) -> tuple[Part, ...]: ...

    def __call__(self, seen: Seen) -> Tensor: ...


@dataclass(frozen=True)
class GA:
    """Gradient ascent: -CE(forget). Not bounded: something else has to stop it."""

    reads: ClassVar[tuple[Part, ...]] = ()

    def __call__(self, seen: Seen) -> Tensor:
        return -seen.forget.mean()


@dataclass(frozen=True)
class GDIFF:
    """Gradient difference: -CE(forget) + λ CE(retain). retain: λ."""

    retain: float = 1.0
    reads: ClassVar[tuple[Part, ...]] = ("retain",)

    def __call__(self, seen: Seen) -> Tensor:
        return -seen.forget.mean() + self.retain * _given(seen, "retain").mean()


@dataclass(frozen=True)
class NPO:
    """Negative preference optimisation: -(2/β) E log σ(β [ℓ - ℓ_ref]) + λ CE(retain).

    ℓ is the summed loss of a sequence, ℓ_ref that of the model as it was. At the start the first
    term is (2/β) ln 2 and its gradient is that of GA on summed losses; it fades as ℓ grows.
    beta: β. retain: λ, 0 for no retained text.
    Source: Zhang et al. 2024. The public code of SEUF takes the model itself for its reference,
    which is GA; that is not done here.
    """

    beta: float = 0.001
    retain: float = 1.0

    @property
    def reads(self) -> tuple[Part, ...]:
        return ("forget_before", "retain") if self.retain else ("forget_before",)

    def __call__(self, seen: Seen) -> Tensor:
        gained = seen.forget.summed() - _given(seen, "forget_before").summed()
        loss = -2 / self.beta * F.logsigmoid(self.beta * gained).mean()
        return loss + self.retain * _given(seen, "retain").mean() if self.retain else loss


@dataclass(frozen=True)
class RMU:
    """Representation misdirection: E ‖H(forget) - c u‖² + a E ‖H(retain) - H_before(retain)‖².

    H: states after the block around the target's layer, means over things. u: a unit vector of
    entries drawn evenly between 0 and 1 before it is scaled. steering: c. retain: a. seed: of u.
    Source: Li et al. 2024 (WMDP).
    Raises InputError where the layer lies in no block that gives states.
    """

    steering: float = 8000.0
    retain: float = 1200.0
    seed: int = 0
    reads: ClassVar[tuple[Part, ...]] = ("retain", "retain_before")

    def direction(self, dim: int) -> Tensor:
        """(D,) float32: u."""
        return F.normalize(
            torch.rand(dim, generator=torch.Generator().manual_seed(self.seed)), dim=0
        )

    def __call__(self, seen: Seen) -> Tensor:
        states = _states(seen.forget)
        wanted = self.steering * self.direction(states.shape[1]).to(states)
        kept = _states(_given(seen, "retain")) - _states(_given(seen, "retain_before"))
        return _far(states - wanted) + self.retain * _far(kept)


def _far(differences: Tensor) -> Tensor:
    """The mean squared length of rows."""
    return differences.square().sum(1).mean()


def _states(look: Look) -> Tensor:
    if look.hidden is None:
        raise InputError("RMU: the target's layer lies in no block that gives states (..., D)")
    return look.hidden


def _given(seen: Seen, part: Part) -> Look:
    look = getattr(seen, part)
    if look is None:
        raise InputError(f"unlearning: the objective needs {part}, which it did not ask for")
    return look


@dataclass(frozen=True)
class Step:
    """One step, on its batch and before its update.

    loss: the objective. anchor: not weighted, None where it is not used. gate: what the targets
    have of the gate in the mean over things to forget and targets, see `gates`.
    """

    loss: float
    anchor: float | None
    gate: float


@dataclass(frozen=True, eq=False)
class StepLoss:
    """The loss of each step of an unlearning: objective + α · anchor, the latter on forgotten text.

    texts: batches to "forget" and to "retain", taken in turn. weight: α; reduction: see `anchored`.
    """

    model: nn.Module
    texts: Mapping[str, Sequence[Batch]]
    objective: Objective
    look: Callable[[nn.Module, Batch], Look]
    original: Original
    aims: Sequence[Aim]
    weight: float
    reduction: Reduction

    def __call__(self, step: int) -> tuple[Tensor, Step]:
        """A scalar with graph, and what it is made of."""
        reads = self.objective.reads
        batches = {name: own[step % len(own)] for name, own in self.texts.items() if own}
        before = {
            part: self.original(self.look, batches[part.removesuffix("_before")])
            for part in reads
            if part.endswith("_before")
        }
        with anchored(self.model, self.aims, self.reduction) as anchor:
            forget = self.look(self.model, batches["forget"])
            held = anchor() if self.weight else None
        gate = self._gate()
        retain = self.look(self.model, batches["retain"]) if "retain" in reads else None
        loss = self.objective(Seen(forget, retain, **before))
        told = None if held is None else float(held.detach())
        noted = Step(float(loss.detach()), told, gate)
        return loss if held is None else loss + self.weight * held, noted

    @torch.no_grad()
    def _gate(self) -> float:
        found = []
        for aim in self.aims:
            routing = cast(Routing, cast(MoE, self.model.get_submodule(aim.layer)).last)
            own = gates(routing)[:, aim.expert]
            found.append((own if routing.mask is None else own[routing.mask]).mean())
        return float(torch.stack(found).mean())
