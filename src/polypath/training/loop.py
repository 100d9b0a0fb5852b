"""The training loop: one language model, from its first step or from where a kill left it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing import given, losses, record, routed_layers, update_biases, whole_batch
from polypath.training import distribution
from polypath.training.checkpoint import load_state, save_state
from polypath.training.interrupt import Interrupted
from polypath.training.monitor import Monitor, kept_mass
from polypath.training.optimisers import adamw, cosine_schedule
from polypath.training.parts import Reporter
from polypath.training.run import Run


@dataclass(frozen=True)
class Settings:
    """How one model is trained."""

    steps: int
    accumulate: int = 1
    learning_rate: float = 3e-3
    warmup: int = 20
    weight_decay: float = 0.1
    clip: float = 1.0
    evaluate_every: int = 50
    log_every: int = 5
    device: str = "cpu"


class Batches(Protocol):
    """Training data: the batch of a step, the same whenever it is asked for."""

    def batch(self, step: int) -> Tensor:
        """(B, L + 1) int64, this rank's rows of the global batch of `step`."""
        ...


@dataclass(frozen=True)
class Validation:
    """Windows to validate on, and the bytes of text that their targets stand for.

    batches: (B, L + 1) int64 each, this rank's part. size: bytes in the targets of all ranks.
    """

    batches: Sequence[Tensor]
    size: int


@dataclass
class Training:
    """One model in training: its optimiser, its place, and how it is saved and taken up again.

    around: from the model and a step to a context in which the step's forwards run.
    """

    model: nn.Module
    data: Batches
    validation: Validation
    settings: Settings
    run: Run
    arm: str
    seed: int
    around: Callable[[nn.Module, int], AbstractContextManager[None]] | None = None
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    monitor: Monitor = field(default_factory=Monitor)
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.optimiser = adamw(self.model, self.settings.learning_rate, self.settings.weight_decay)

    def fit(self, reporter: Reporter) -> None:
        """Train to the last step; when asked to stop, save the state and raise Interrupted."""
        self.restore()
        reporter.skip(self.step)
        while self.step < self.settings.steps:
            loss = self.advance()
            if self.step % self.settings.log_every == 0 or self.finished:
                self.log("train", loss=loss, **kept_mass(self.model))
            if self.step % self.settings.evaluate_every == 0 or self.finished:
                self.log("valid", **self.evaluate())
                self.save()
            reporter.advance(loss, self.tokens_per_second)
            if distribution.any_rank(reporter.stop()):
                self.save()
                raise Interrupted

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.seconds, 1e-9)

    @property
    def finished(self) -> bool:
        return self.step >= self.settings.steps

    def advance(self) -> float:
        """One step on the global batch; its loss in nats per token, without auxiliaries."""
        began = time.perf_counter()
        self.model.train()
        batch = self.data.batch(self.step).to(self.settings.device)
        parts = batch.chunk(self.settings.accumulate)
        targets = batch[:, 1:].numel() * distribution.world()
        nats = batch.new_zeros((), dtype=torch.float32)
        with self.surrounded(), self.counted(parts):
            for part in parts:
                share = self.nats(part) / targets
                (share + sum(losses(self.model).values())).backward()
                nats += share.detach()
        distribution.clip_grad_norm(self.model, self.settings.clip)
        self.set_learning_rate()
        self.optimiser.step()
        self.optimiser.zero_grad()
        update_biases(self.model)
        loss = float(distribution.summed(nats))
        if not math.isfinite(loss):
            raise InputError(
                f"{self.arm}, seed {self.seed}: the loss is {loss} at step {self.step}; "
                "a lower learning_rate or a longer warmup may help"
            )
        self.step += 1
        self.tokens += targets
        self.seconds += time.perf_counter() - began
        return loss

    @contextmanager
    def surrounded(self) -> Iterator[None]:
        """What a step's forwards are told: the step, and what `around` does to the model."""
        changed = nullcontext() if self.around is None else self.around(self.model, self.step)
        with given(step=self.step), changed:
            yield

    def counted(self, parts: Sequence[Tensor]) -> AbstractContextManager[None]:
        """Auxiliary losses of the whole batch, which micro-batches alone cannot know."""
        if len(parts) == 1:
            return nullcontext()
        return whole_batch(self.model, [partial(self.nats, part) for part in parts])

    def nats(self, batch: Tensor) -> Tensor:
        """The summed cross-entropy of a batch (B, L + 1), in nats."""
        dtype = torch.bfloat16 if batch.device.type == "cuda" else None
        with torch.autocast(batch.device.type, dtype=dtype, enabled=dtype is not None):
            logits = self.model(input_ids=batch[:, :-1], use_cache=False).logits
        return F.cross_entropy(
            logits.flatten(0, 1).float(), batch[:, 1:].flatten(), reduction="sum"
        )

    def set_learning_rate(self) -> None:
        settings = self.settings
        factor = cosine_schedule(self.step, settings.steps, settings.warmup)
        for group in self.optimiser.param_groups:
            group["lr"] = settings.learning_rate * factor

    @torch.no_grad()
    def evaluate(self) -> dict[str, Any]:
        """Validation loss (nats per token), bits per byte, and how the layers routed."""
        self.model.eval()
        nats = torch.zeros((), dtype=torch.float64)
        targets = torch.zeros((), dtype=torch.float64)
        for batch in self.validation.batches:
            nats += self.nats(batch.to(self.settings.device)).cpu()
            targets += batch[:, 1:].numel()
        nats, targets = distribution.summed(nats), distribution.summed(targets)
        per_byte = float(nats) / (self.validation.size * math.log(2))
        loss = float(nats / targets)
        return {"loss": loss, "bits_per_byte": per_byte, **self.routing_facts()}

    def routing_facts(self) -> dict[str, Any]:
        """How the layers route the first validation batch; see `Monitor.facts`."""
        if not routed_layers(self.model):
            return {}
        batch = self.validation.batches[0].to(self.settings.device)
        with record(self.model) as routes:
            self.nats(batch)
        return self.monitor.facts(routes.joined(), batch.shape[1] - 1)

    def log(self, split: str, **values: Any) -> None:
        if distribution.is_main():
            place = {"arm": self.arm, "seed": self.seed, "step": self.step, "split": split}
            self.run.log(**place, tokens=self.tokens, **values)

    @property
    def path(self) -> Path:
        return self.run.checkpoint(self.arm, self.seed)

    def save(self) -> None:
        """Keep everything that the next step depends on."""
        tensors = distribution.full_state(self.model, self.optimiser)
        tensors |= self.monitor.tensors() | {"random": torch.get_rng_state()}
        facts = {"step": self.step, "tokens": self.tokens, "seconds": self.seconds}
        if distribution.is_main():
            save_state(self.path, tensors, facts)
        distribution.wait()  # the others may read it

    def restore(self) -> None:
        """Take up the saved state, and forget the metrics that lie after it."""
        if not self.path.exists():
            if distribution.is_main():
                self.run.forget_after(self.arm, self.seed, 0)
            return
        tensors, facts = load_state(self.path)
        torch.set_rng_state(tensors["random"])
        self.monitor.restore(tensors)
        distribution.load_full_state(self.model, self.optimiser, tensors)
        self.step, self.tokens, self.seconds = facts["step"], facts["tokens"], facts["seconds"]
        if distribution.is_main():
            self.run.forget_after(self.arm, self.seed, self.step)
