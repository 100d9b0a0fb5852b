"""AnalogSeeker in small: a network and a language model of bytes that are tuned, held or not."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from polypath.errors import InputError
from polypath.files import replace_file
from polypath.language import ByteTokenizer, Windows, read_corpus
from polypath.recipes.trials import Facts
from polypath.routing.files import read_tensors, write_tensors
from polypath.surgery.neighbourhood import (
    Constrained,
    NeighbourhoodConstraint,
    Reference,
    constrained_loss,
    frozen,
)
from polypath.training.interrupt import Interrupted
from polypath.training.optimisers import adamw, cosine_schedule
from polypath.training.parts import Reporter

INPUTS, HIDDEN, CLASSES, ROWS, TESTED, WRONG = 32, 128, 20, 128, 10_000, 0.2
SPREAD = 0.575
"""Of task A's centres: a network gets 86 % of it right, as in this project's run in NumPy."""
CONTEXT, WINDOWS, LOOKS, STRIDE = 64, 16, 256, 50
"""Bytes of a window, windows of a batch and of a look at a text, steps between reports."""

Data = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Held:
    """How tuning is held: by λ · KL, one way or the other, or by L2-SP.

    l2-sp: weight / 2 · ‖θ - θ₀‖² (Li et al. 2018).
    """

    by: Literal["reverse", "forward", "l2-sp"]
    weight: float


def points(centres: Tensor, count: int, generator: torch.Generator) -> Data:
    """(count, INPUTS) around centres (CLASSES, INPUTS) with unit noise, and their classes."""
    y = torch.randint(CLASSES, (count,), generator=generator)
    return centres[y] + torch.randn(count, INPUTS, generator=generator), y


def fit_network(
    shift: float, samples: int, arms: dict[str, Held], steps: int, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Train a network on task A, then tune it on samples of a task B, some labels of it wrong.

    shift: how far B's centres are from A's, in standard deviations of an input.
    By arm, and at the "start": accuracy on A, on B, and on samples of B to choose by ("valid").
    """
    began = time.perf_counter()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    a = SPREAD * torch.randn(CLASSES, INPUTS, generator=generator)
    b = a + shift * torch.randn(CLASSES, INPUTS, generator=generator)
    start = nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimiser = torch.optim.Adam(start.parameters(), 1e-3)
    for _ in range(steps):
        x, y = points(a, 2 * ROWS, generator)
        _advance(optimiser, F.cross_entropy(start(x), y))
    x, y = points(b, samples, generator)
    wrong = torch.rand(samples, generator=generator) < WRONG
    y = torch.where(wrong, torch.randint(CLASSES, y.shape, generator=generator), y)
    tests = {name: points(c, TESTED, generator) for name, c in (("A", a), ("B", b))}
    tests["valid"] = points(b, samples, generator)
    facts: Facts = {"start": _right(start, tests)}
    for name, held in arms.items():
        facts[name] = _right(tuned_network(start, (x, y), held, steps, seed), tests)
        reporter.advance(1 - facts[name]["B"], ROWS * steps / (time.perf_counter() - began))
        if reporter.stop():
            raise Interrupted
    facts["seconds"] = time.perf_counter() - began
    return facts, f"{facts['start']['B']:.1%} of B right at the start"


def tuned_network(start: nn.Module, data: Data, held: Held, steps: int, seed: int) -> nn.Module:
    """A copy of a network, tuned on batches that depend on the seed alone."""
    model: Any = frozen(start).requires_grad_(True)
    constraint = NeighbourhoodConstraint(
        task=lambda logits, batch: F.cross_entropy(logits, batch[1]),
        policy=lambda batch: model(batch[0]),
        reference=Reference(frozen(start), lambda network, batch: network(batch[0])),
        weight=held.weight,
        direction=held.by,  # type: ignore[arg-type]
    )
    optimiser = torch.optim.Adam(model.parameters(), 3e-4)
    order = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(len(data[1]), (ROWS,), generator=order)
        _advance(optimiser, constraint((data[0][rows], data[1][rows])).total)
    return model


def _advance(optimiser: torch.optim.Optimizer, loss: Tensor) -> None:
    loss.backward()
    optimiser.step()
    optimiser.zero_grad()


@torch.no_grad()
def _right(model: nn.Module, tests: dict[str, Data]) -> dict[str, float]:
    return {n: float((model(x).argmax(1) == y).double().mean()) for n, (x, y) in tests.items()}


@dataclass(frozen=True)
class Lesson:
    """What language models read, and for how long."""

    data: Path | None = None
    """General text, a file or a folder; the Python standard library's own source by default."""
    limit_mb: float = 4.0
    """Take about this many megabytes of it."""
    domain: Path | None = None
    """Domain text, a file or a folder; Python's language reference, as pydoc has it, by default."""
    domain_kb: float = 50.0
    """Kilobytes of it to tune on; as many again are needed to validate and to test on."""
    pretraining: int = 1000
    """Steps of a language model on general text."""
    epochs: int = 12
    """Epochs on domain text; enough to overfit."""

    def __post_init__(self) -> None:
        for name in ("domain_kb", "pretraining", "epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if self.limit_mb <= 0:
            raise InputError(f"limit_mb={self.limit_mb}; above 0 is right")

    def general(self) -> tuple[Windows, Tensor]:
        """General text to train on, and windows of it to look at."""
        corpus = read_corpus(self.data, int(self.limit_mb * 1e6))
        train, valid = (ByteTokenizer().encode(s.text) for s in (corpus.train, corpus.valid))
        name = "the general text"
        return Windows(train, CONTEXT, name), Windows(valid, CONTEXT, name).tiling(LOOKS)

    def special(self) -> tuple[Windows, Tensor, Tensor]:
        """Domain text to train on, and windows to validate and to test on; one after the other."""
        ids = ByteTokenizer().encode(domain_text(self.domain))
        size = int(500 * self.domain_kb)
        if len(ids) < 4 * size:
            raise InputError(
                f"{self.domain or 'the language reference'}: {len(ids)} bytes; domain_kb="
                f"{self.domain_kb:g} needs {4 * size}, half of them to validate and to test on"
            )
        train, valid, test, _ = ids.split([2 * size, size, size, len(ids) - 4 * size])
        read, *looks = (Windows(own, CONTEXT, "the domain's text") for own in (train, valid, test))
        return read, looks[0].tiling(LOOKS), looks[1].tiling(LOOKS)


def domain_text(path: Path | None) -> str:
    """A file or a folder, or else Python's own language reference, as pydoc has it.

    The reference is prose; its paragraphs that come again are left out, for they would leak.
    """
    if path is not None:
        corpus = read_corpus(path)
        return "".join(split.text for split in (corpus.train, corpus.valid, corpus.test))
    from pydoc_data.topics import topics

    every = (p for name in sorted(topics) for p in topics[name].strip("\n").split("\n\n"))
    return "\n\n".join(dict.fromkeys(every))


def byte_model() -> LlamaForCausalLM:
    """A decoder of 0.25 million parameters over bytes."""
    sizes = {"vocab_size": 256, "hidden_size": 96, "intermediate_size": 256}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"max_position_embeddings": CONTEXT + 1}
    return LlamaForCausalLM(LlamaConfig(**sizes, initializer_range=0.05, tie_word_embeddings=True))


def pretrain(lesson: Lesson, folder: Path, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Train the start of a seed on general text, keep it in the folder; see `first_step`."""
    began = time.perf_counter()
    (train, general), special = lesson.general(), lesson.special()
    torch.manual_seed(seed)
    model = byte_model()
    optimiser = adamw(model, 4e-3, 0.1)
    steps = lesson.pretraining
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 4e-3 * cosine_schedule(step, steps, min(50, steps))
        loss = _nats(model, train.batch(step, seed, WINDOWS))
        _advance(optimiser, loss)
        if (step + 1) % STRIDE == 0 or step + 1 == steps:
            _report(reporter, loss, step, began)
    folder.mkdir(parents=True, exist_ok=True)
    own = dict(model.named_parameters())
    replace_file(_kept(folder, seed), lambda path: write_tensors(path, own))
    facts = first_step(model, special[0].batch(0, seed, WINDOWS)) | {
        "domain": perplexity(model, special[2]),
        "general": perplexity(model, general),
        "seconds": time.perf_counter() - began,
    }
    return facts, f"perplexity {facts['general']:.2f}"


def _kept(folder: Path, seed: int) -> Path:
    return folder / f"model-{seed}.safetensors"


def _report(reporter: Reporter, loss: Tensor, step: int, began: float) -> None:
    pace = WINDOWS * CONTEXT * (step + 1) / (time.perf_counter() - began)
    reporter.advance(float(loss.detach()), pace)
    if reporter.stop():
        raise Interrupted


def first_step(model: LlamaForCausalLM, batch: Tensor) -> Facts:
    """At the start, with λ = 0.1: the KL, and how far it moves plain tuning's gradient, a ratio."""
    start, found = frozen(model), []
    for weight in (0.0, 0.1):
        model.zero_grad()
        held = _constrained(model, start, batch, Held("reverse", weight))
        held.total.backward()
        found.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    return {"kl": float(held.kl), "moved": float((found[1] - found[0]).norm() / found[0].norm())}


def _constrained(model: nn.Module, start: nn.Module, batch: Tensor, held: Held) -> Constrained:
    read = {"input_ids": batch, "labels": batch}
    return constrained_loss(model, start, read, held.weight, held.by, None)  # type: ignore[arg-type]


def _nats(model: Any, windows: Tensor) -> Tensor:
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Of a byte, over windows (N, CONTEXT + 1)."""
    return math.exp(sum(float(_nats(model, w)) * len(w) for w in windows.split(64)) / len(windows))


def distance(model: nn.Module, start: nn.Module) -> Tensor:
    """‖θ - θ₀‖²."""
    pairs = zip(model.parameters(), start.parameters(), strict=True)
    return torch.stack([(p - first).square().sum() for p, first in pairs]).sum()


def tune(
    lesson: Lesson, folder: Path, held: Held, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Tune the start of a seed on domain text for all epochs, at a constant rate.

    curve: perplexities of the domain's validation text and of general text after each epoch.
    last, best: of the domain's test text and of general text, after the last epoch and after the
    one that validates best, where early stopping would end.
    """
    began = time.perf_counter()
    general, (train, valid, test) = lesson.general()[1], lesson.special()
    model = byte_model()
    model.load_state_dict(read_tensors(_kept(folder, seed))[0], strict=False)  # tied: not the head
    start = frozen(model)
    optimiser = adamw(model, 1.5e-3, 0.0)
    curve: list[Facts] = []
    best: Facts = {}
    steps = max(1, int(1000 * lesson.domain_kb) // (WINDOWS * CONTEXT))
    for step in range(lesson.epochs * steps):
        batch = train.batch(step, seed, WINDOWS)
        if held.by == "l2-sp":
            loss = _nats(model, batch) + held.weight / 2 * distance(model, start)
        else:
            loss = _constrained(model, start, batch, held).total
        _advance(optimiser, loss)
        if (step + 1) % steps == 0:
            look = {"domain": perplexity(model, valid), "general": perplexity(model, general)}
            if all(look["domain"] < past["domain"] for past in curve):
                best = look | {"domain": perplexity(model, test), "epoch": len(curve) + 1}
            curve.append(look)
            _report(reporter, loss, step, began)
    last = curve[-1] | {"domain": perplexity(model, test)}
    facts = {"curve": curve, "last": last, "best": best, "seconds": time.perf_counter() - began}
    return facts, f"perplexity {last['domain']:.2f}, of general text {last['general']:.2f}"
