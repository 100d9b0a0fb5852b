"""A small dense language model over bytes, which a recipe trains before it operates on it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from polypath.errors import InputError
from polypath.language import read_corpus
from polypath.language.tokens import Windows
from polypath.surgery.tuning import Tuning, fit, next_token, training_only
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter

STRIDE = 10
"""Steps between what is reported."""


@dataclass(frozen=True)
class Host:
    """Sizes of the model, and how it is trained."""

    dim: int = 64
    layers: int = 4
    heads: int = 2
    hidden: int = 256
    context: int = 128
    batch: int = 16
    steps: int = 600
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        if min(self.dim, self.layers, self.heads, self.hidden, self.context, self.steps) < 1:
            raise InputError(f"{self}: every size is 1 at least")
        if self.dim % (2 * self.heads):
            raise InputError(f"dim={self.dim} must be a multiple of 2 · heads = {2 * self.heads}")

    def model(self) -> LlamaForCausalLM:
        """The model as it is drawn from torch's generator."""
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=256,
                hidden_size=self.dim,
                intermediate_size=self.hidden,
                num_hidden_layers=self.layers,
                num_attention_heads=self.heads,
                max_position_embeddings=self.context,
                initializer_range=0.5 * self.dim**-0.5,
                tie_word_embeddings=True,
                bos_token_id=None,
                eos_token_id=None,
            )
        )

    def tuning(self, steps: int | None = None, part: float = 1.0) -> Tuning:
        """So many steps at a part of the host's learning rate."""
        return Tuning(
            steps=steps or self.steps,
            learning_rate=self.learning_rate * part,
            warmup=min(20, (steps or self.steps) // 5 + 1),
            floor=0.05,
            weight_decay=0.01,
        )


@dataclass(frozen=True)
class HostConfig:
    """The host that is trained first, and how much is seen of what becomes of it."""

    limit_mb: float = 4.0
    """Take about this many megabytes of a text."""
    seeds: int = 3
    """How many times everything is trained, with seeds 0, 1, …"""
    steps: int = 450
    """Steps of the host."""
    rate: float = 0.3
    """The learning rate of what follows, as a part of the host's."""
    dim: int = 64
    """Width of the model."""
    hidden: int = 256
    """Units of a feed-forward layer."""
    layers: int = 4
    """Layers of the model."""
    context: int = 128
    """Bytes in a window."""
    windows: int = 192
    """Windows to test on."""
    workers: int = 0
    """Seeds at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        if min(self.seeds, self.windows) < 1 or not 0 < self.rate <= 1:
            raise InputError(
                f"seeds={self.seeds}, windows={self.windows}, rate={self.rate}; one at least, and "
                "a rate up to 1"
            )
        self.host()

    def host(self) -> Host:
        """Its model, and how that is trained."""
        return Host(
            dim=self.dim,
            hidden=self.hidden,
            layers=self.layers,
            context=self.context,
            steps=self.steps,
        )


def read_bytes(data: Path | None, limit_mb: float) -> dict[str, Tensor]:
    """The bytes of a text, int64, of its splits "train", "valid" and "test"."""
    corpus = read_corpus(data, int(limit_mb * 1e6))
    return {
        name: torch.frombuffer(bytearray(getattr(corpus, name).text.encode()), dtype=torch.uint8)
        .long()
        .clone()
        for name in ("train", "valid", "test")
    }


def batches(ids: Tensor, host: Host, seed: int) -> Iterator[Tensor]:
    """Batches (B, L + 1) of windows at places that a seed draws, without end."""
    windows, step = Windows(ids, host.context), 0
    while True:
        yield windows.batch(step, seed, host.batch)
        step += 1


def tiling(ids: Tensor, host: Host, count: int) -> Tensor:
    """(N, L + 1): windows side by side, at most `count` of them, evenly over the text."""
    return Windows(ids, host.context).tiling(count)


class Clock:
    """Tells a reporter how steps go on, and stops when it says so. For `after` of training."""

    def __init__(self, reporter: Reporter, tokens: int) -> None:
        self.reporter = reporter
        self.tokens = tokens
        self.began = time.perf_counter()
        self.steps = 0

    def __call__(self, step: int, loss: float) -> None:
        self.steps += 1
        if self.steps % STRIDE == 0:
            pace = STRIDE * self.tokens / max(1e-9, time.perf_counter() - self.began)
            self.began = time.perf_counter()
            self.reporter.advance(loss, pace)
            if self.reporter.stop():
                raise Interrupted


def pretrain(
    host: Host, train: Tensor, seed: int, after: Callable[[int, float], None]
) -> LlamaForCausalLM:
    """A trained host, in evaluation mode."""
    torch.manual_seed(seed)
    model = host.model()
    language_steps(model, batches(train, host, seed), host.tuning(), after)
    return model.eval()


def language_steps(
    model: PreTrainedModel,
    stream: Iterator[Tensor],
    tuning: Tuning,
    after: Callable[[int, float], None],
) -> None:
    """Train all of a model on text."""
    parts = list(model.parameters())
    with training_only(model, parts):
        fit(parts, lambda step: next_token(model, next(stream)), tuning, after)


@torch.no_grad()
def scores(model: nn.Module, windows: Tensor, size: int = 32) -> dict[str, float]:
    """Bits per byte and the part of bytes told right, on windows (N, L + 1), in evaluation mode."""
    model.eval()
    nats, right = 0.0, 0
    for batch in windows.split(size):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        wanted = batch[:, 1:].flatten()
        nats += float(F.cross_entropy(logits, wanted, reduction="sum"))
        right += int((logits.argmax(1) == wanted).sum())
    count = windows[:, 1:].numel()
    return {"bits": nats / count / math.log(2), "accuracy": right / count}
