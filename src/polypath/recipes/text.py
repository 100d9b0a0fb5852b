"""Experiments on text: arms that are decoders with the same host, text and budget.

A recipe on this names its arms, the first of which is its system, and judges its claims.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, save_pretrained
from polypath.language.corpus import read_corpus
from polypath.language.options import READS
from polypath.recipes import arms, where
from polypath.recipes.arms import Part
from polypath.report import Claim, Outcome, judge
from polypath.report.metrics import curves, entropy_curves
from polypath.training import distribution
from polypath.training.loop import Settings
from polypath.training.run import Run, commit, machine
from polypath.training.text import Text

Parts = dict[str, list[Part]]

# The quick preset: small enough to see it work, too small to tell models apart.
QUICK: dict[str, Any] = {
    "seeds": 2,
    "steps": 30,
    "limit_mb": 1.0,
    "evaluate_every": 10,
    "validation_windows": 32,
    "layers": 3,
}

# What the larger setting for a GPU has in common; recipes add the sizes that are theirs.
GPU: dict[str, Any] = {
    "limit_mb": 8.0,
    "vocabulary": 4096,
    "steps": 3000,
    "batch_size": 64,
    "dim": 128,
    "layers": 8,
    "heads": 4,
    "learning_rate": 3e-3,
    "warmup": 100,
    "evaluate_every": 250,
}


@dataclass(frozen=True)
class TextConfig:
    """The text, the host and the budget, the same for all arms."""

    data: Path | None = None
    """A text file or a folder of them; the Python standard library's own source by default."""
    limit_mb: float = 4.0
    """Take about this many megabytes of the data."""
    tokenizer: Literal["bpe", "byte"] = "bpe"
    """A byte-level BPE trained on the data, or bytes."""
    vocabulary: int = 1024
    """Tokens of the BPE."""
    seeds: int = 3
    """How many times everything is trained, with seeds 0, 1, …"""
    steps: int = 240
    """Optimiser steps of each model."""
    batch_size: int = 16
    """Windows in a step, over all ranks."""
    accumulate: int = 1
    """Parts that a batch is split into, to save memory; does not change the result."""
    context: int = 128
    """Tokens in a window."""
    host: Literal["llama", "qwen3"] = "llama"
    """The decoder's family in transformers."""
    dim: int = 64
    """Width of the decoder."""
    layers: int = 4
    """Layers of the decoder."""
    heads: int = 2
    """Attention heads."""
    experts: int = 8
    """Experts in each layer."""
    k: int = 2
    """Experts that serve a token."""
    hidden: int = 64
    """Width of an expert; the dense models are k and `experts` times as wide."""
    balance: float = 0.01
    """Weight of the load-balance loss."""
    learning_rate: float = 8e-3
    """Peak learning rate of AdamW."""
    warmup: int = 20
    """Steps until the peak."""
    evaluate_every: int = 40
    """Steps between validations and checkpoints."""
    validation_windows: int = 128
    """Windows to validate on."""
    workers: int = 0
    """Models trained at once on a CPU; 0 for one on each core."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; a GPU where there is one by default."""
    shard_experts: bool = False
    """Under torchrun: spread experts over ranks, and send tokens to them."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "batch_size", "context", "evaluate_every", "heads"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if self.dim % (2 * self.heads):
            raise InputError(f"dim={self.dim} must be a multiple of 2 · heads = {2 * self.heads}")
        if self.batch_size % self.accumulate:
            raise InputError(
                f"batch_size={self.batch_size} must be a multiple of accumulate={self.accumulate}"
            )
        self.top_k()

    def top_k(self, router: str = "top-k", **changes: Any) -> RoutedLayers:
        """Routed layers of the configured sizes: the plain top-k model, but for what is named."""
        plain: dict[str, Any] = {
            "num_experts": self.experts,
            "k": self.k,
            "hidden": self.hidden,
            "losses": {"load_balance": self.balance} if self.balance else {},
        }
        if "k" not in READS[router]:
            del plain["k"]
        return RoutedLayers(router, **plain | changes)

    def settings(self, device: str) -> Settings:
        return Settings(
            steps=self.steps,
            accumulate=self.accumulate,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            evaluate_every=self.evaluate_every,
            device=device,
        )


@dataclass(frozen=True)
class Arm:
    """A model of an experiment.

    routed: its routed layers, None where it is dense.
    width: the width of the feed-forward layers of a dense one.
    around: from the model and a step to a context in which the step runs; importable by name.
    share: the part of the steps that it is trained for.
    """

    routed: RoutedLayers | None = None
    width: int = 0
    around: Callable[[nn.Module, int], AbstractContextManager[None]] | None = None
    share: float = 1.0


def build(config: TextConfig, arm: Arm, vocabulary: int) -> nn.Module:
    """The model of an arm, drawn from torch's generator."""
    kind, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[config.host]
    host = model(
        kind(
            vocab_size=vocabulary,
            hidden_size=config.dim,
            # What routed layers replace is drawn too: as wide as what a token meets.
            intermediate_size=arm.width or config.k * config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.heads,
            head_dim=config.dim // config.heads,
            max_position_embeddings=config.context,
            # transformers' 0.02 suits widths near 600; narrow models start too slowly with it.
            initializer_range=0.5 * config.dim**-0.5,
            tie_word_embeddings=True,
        )
    )
    return host if arm.routed is None else attach(host, arm.routed)


def train(config: TextConfig, run: Run, chosen: Mapping[str, Arm]) -> Parts:
    """Train every arm under every seed; the arms of a seed follow each other, for early pairs."""
    prepare(config, run)
    parts = [
        Part(
            arm=name,
            seed=seed,
            build=partial(build, config, arm),
            run=run,
            settings=replace(
                config.settings(run.device), steps=max(1, round(arm.share * config.steps))
            ),
            batch_size=config.batch_size,
            validation_windows=config.validation_windows,
            shard_experts=config.shard_experts,
            around=arm.around,
        )
        for seed in range(config.seeds)
        for name, arm in chosen.items()
    ]
    arms.train(parts, config.workers)
    return {name: [part for part in parts if part.arm == name] for name in chosen}


def prepare(config: TextConfig, run: Run) -> None:
    """Read, split and encode the text, once for all arms."""
    folder = run.folder / "data"
    if distribution.is_main() and not Text.kept(folder):
        corpus = read_corpus(config.data, int(config.limit_mb * 1e6))
        Text.prepare(corpus, config.tokenizer, config.vocabulary, config.context).save(folder)
    distribution.wait()


def conclude(
    config: TextConfig, run: Run, parts: Parts, claims: list[Claim], **more: list[Any]
) -> Outcome:
    """What came out, and where the tokens of the first arm went; its first model is saved.

    more: further `tables` and `figures`, shown before those of the routes.
    """
    main = next(iter(parts))
    if distribution.is_main():
        save_pretrained(arms.trained(parts[main][0]), run.folder / "model")
        arms.kept_text(run.folder / "data").tokenizer.save(run.folder / "model" / "tokenizer.json")
    figures, tables = where.figures(parts[main][0])
    metrics = run.metrics()
    entropy = entropy_curves(metrics, main)
    return Outcome(
        recipe=run.recipe,
        commit=commit(),
        machine=machine(),
        seeds=list(range(config.seeds)),
        seconds=sum(arms.final(part).seconds for every in parts.values() for part in every),
        tables=[arms.table(parts), *more.get("tables", []), *tables],
        claims=claims,
        figures=[
            curves(metrics, list(parts), "bits_per_byte", "Validation", "bits per byte"),
            curves(metrics, list(parts), "loss", "Training loss", "nats per token", split="train"),
            *([entropy] if entropy.series else []),  # a hash has none
            *more.get("figures", []),
            *figures,
        ],
    )


def bits_per_byte(parts: Parts) -> dict[str, list[float]]:
    """The last validation of every arm, by seed."""
    return {arm: [arms.final(part).bits_per_byte for part in own] for arm, own in parts.items()}


def pace(parts: Parts) -> dict[str, list[float]]:
    """Tokens per second in training of every arm, by seed."""
    return {arm: [arms.final(part).tokens_per_second for part in own] for arm, own in parts.items()}


def little_slower(
    parts: Parts, arm: str, plain: str, at_most: float, source: str, said: str = "Training"
) -> Claim:
    """Judge that a token takes an arm less than `at_most` longer than a plain one, seed by seed."""
    own = pace(parts)
    slower = [b / a - 1 for a, b in zip(own[arm], own[plain], strict=True)]
    return judge(
        f"{said} is less than {100 * at_most:g} % slower (time of a token, ratio - 1)",
        source,
        plain,
        slower,
        [0.0] * len(slower),
        threshold=at_most,
    )
