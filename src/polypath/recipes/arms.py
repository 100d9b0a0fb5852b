"""Arms of an experiment on text: several models, the same data and budget, over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

import torch
from torch import nn
from torch.nn import functional as F

from polypath.report import Table, estimate
from polypath.routing import Routes, record, routed_layers
from polypath.training import distribution
from polypath.training.checkpoint import load_state
from polypath.training.display import display
from polypath.training.loop import Batches, Settings, Training, Validation
from polypath.training.parts import Reporter, run_parts, workers_for
from polypath.training.run import Run
from polypath.training.text import Text


@dataclass(frozen=True)
class Part:
    """One arm under one seed.

    build: the vocabulary's size to a model, drawn from torch's generator; importable by name.
    around: from the model and a step to a context in which the step runs; importable by name.
    """

    arm: str
    seed: int
    build: Callable[[int], nn.Module]
    run: Run
    settings: Settings
    batch_size: int
    validation_windows: int
    shard_experts: bool = False
    around: Callable[[nn.Module, int], AbstractContextManager[None]] | None = None

    @property
    def name(self) -> str:
        return f"{self.arm} seed {self.seed}"

    def model(self) -> nn.Module:
        """The part's model as it is drawn, on its device."""
        torch.manual_seed(self.seed)
        text = kept_text(self.run.folder / "data")
        return self.build(text.tokenizer.vocab_size).to(self.settings.device)

    def training(self) -> Training:
        """The part as it starts, or as its checkpoint has it once `restore` is called."""
        text = kept_text(self.run.folder / "data")
        return Training(
            model=distribution.parallelise(self.model(), self.shard_experts),
            data=_Batches(text, self.seed, self.batch_size),
            validation=_validation(text, self.validation_windows, self.batch_size),
            settings=self.settings,
            run=self.run,
            arm=self.arm,
            seed=self.seed,
            around=self.around,
        )


@dataclass(frozen=True)
class _Batches(Batches):
    text: Text
    seed: int
    size: int

    def batch(self, step: int) -> torch.Tensor:
        rank, ranks = distribution.rank(), distribution.world()
        return self.text.windows().batch(step, self.seed, self.size, rank, ranks)


@cache
def kept_text(folder: Path) -> Text:
    """The run's text, read once in a process."""
    return Text.read(folder)


def _validation(text: Text, windows: int, batch_size: int) -> Validation:
    rows = text.validation(windows, distribution.rank(), distribution.world())
    everyone = text.validation(windows, 0, 1)[: len(rows) * distribution.world()]
    size = int(text.lengths[everyone[:, 1:]].sum())
    return Validation(rows.split(max(1, batch_size // distribution.world())), size)


def train(parts: Iterable[Part], workers: int) -> None:
    """Train every part to its end, side by side on a CPU; raises Interrupted when stopped."""
    named = {part.name: part for part in parts}
    first = next(iter(named.values()))
    count = workers_for(named, workers, first.settings.device)
    with display(len(named), first.settings.steps) as shown:
        run_parts(named, _train, shown, count)


def _train(part: Part, reporter: Reporter) -> str:
    training = part.training()
    training.fit(reporter)
    result = final(part)
    return f"{result.bits_per_byte:.3f} bits per byte, {result.tokens_per_second:,.0f} tokens/s"


@dataclass(frozen=True)
class Final:
    """What a finished part came to, on the validation text."""

    bits_per_byte: float
    tokens_per_second: float
    seconds: float


def final(part: Part) -> Final:
    """The last validation of a part, and its pace."""
    last = curve(part, "valid")[-1]
    _, facts = load_state(part.run.checkpoint(part.arm, part.seed))
    return Final(last["bits_per_byte"], facts["tokens"] / facts["seconds"], facts["seconds"])


def curve(part: Part, split: str) -> list[dict]:
    """The metrics of a part on a split, by step."""
    place = (part.arm, part.seed, split)
    lines = [m for m in part.run.metrics() if (m["arm"], m["seed"], m["split"]) == place]
    return sorted(lines, key=lambda line: line["step"])


def parameters(part: Part) -> tuple[int, float]:
    """How many parameters the part's model has, and how many of them a token meets on average.

    A token of the first validation batch meets as many experts as it chose, layer by layer.
    """
    with torch.device("meta"):
        model = part.build(kept_text(part.run.folder / "data").tokenizer.vocab_size)
    total = sum(parameter.numel() for parameter in model.parameters())
    met = curve(part, "valid")[-1].get("count", {})
    banks = {layer.experts: 0.0 for layer in routed_layers(model).values()}
    for name, layer in routed_layers(model).items():
        banks[layer.experts] += met[name]
    active = float(total)
    for experts, count in banks.items():  # a bank may serve several layers
        stacked = list(experts.parameters())
        active -= sum(p.numel() for p in stacked) * (1 - count / len(stacked[0]))
    return total, active


def trained(part: Part) -> nn.Module:
    """The finished model of a part, whole in this process, in evaluation mode."""
    model = part.model()
    tensors, _ = load_state(part.run.checkpoint(part.arm, part.seed))
    distribution.load_weights(model, tensors)
    return model.eval()


@torch.no_grad()
def routes_on(model: nn.Module, windows: torch.Tensor, batch_size: int = 32) -> Routes:
    """Where the tokens of windows (N, length) go, recorded on the CPU."""
    device = next(model.parameters()).device
    with record(model, device="cpu") as routes:
        for batch in windows.split(batch_size):
            model(input_ids=batch.to(device), use_cache=False)
    return routes


@torch.no_grad()
def bits_per_token(
    model: nn.Module, read: torch.Tensor, wanted: torch.Tensor, batch_size: int = 32
) -> float:
    """The loss of a model that reads windows (N, L) and is to give others (N, L) back."""
    device = next(model.parameters()).device
    nats = 0.0
    for inputs, targets in zip(read.split(batch_size), wanted.split(batch_size), strict=True):
        logits = model(input_ids=inputs.to(device), use_cache=False).logits.float().flatten(0, 1)
        nats += float(F.cross_entropy(logits, targets.to(device).flatten(), reduction="sum"))
    return nats / wanted.numel() / math.log(2)


def table(by_arm: dict[str, list[Part]]) -> Table:
    """The arms side by side: sizes, validation bits per byte with its interval, pace."""
    rows: list[list[str | float | None]] = []
    for arm, parts in by_arm.items():
        total, active = parameters(parts[0])
        finals = [final(part) for part in parts]
        mean, low, high = estimate([result.bits_per_byte for result in finals])
        interval = "" if low is None else f"{low:.3f} … {high:.3f}"
        pace = fmean(result.tokens_per_second for result in finals)
        rows.append([arm, total, round(active), mean, interval, round(pace)])
    return Table(
        "Models on the validation text",
        ["model", "parameters", "active", "bits per byte", "95 % interval", "tokens/s"],
        rows,
        note="Intervals are of the mean over seeds; differences between models are judged in "
        "pairs, seed by seed, which is sharper. Tokens per second of one model in training.",
    )
