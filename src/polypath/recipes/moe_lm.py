"""Train a routed language model beside dense ones of equal active and of equal total size.

Three decoders see the same text, batch by batch: one with routed feed-forward layers, one dense
with as many parameters as a token meets in the routed one, one dense with as many as it has in all.
Sources: Switch Transformers (Fedus et al. 2021), OLMoE (Muennighoff et al. 2024).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, save_pretrained
from polypath.language.corpus import read_corpus
from polypath.recipes import arms, where
from polypath.recipes.arms import Part
from polypath.report import Claim, Outcome, judge
from polypath.report.metrics import curves, entropy_curves
from polypath.training import distribution
from polypath.training.loop import Settings
from polypath.training.run import Run, commit, machine
from polypath.training.text import Text

DOMAIN = "language"

ARMS = ("routed", "dense-active", "dense-total")


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and for how long."""

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
    router: Literal["top-k", "expert-choice", "hash", "soft"] = "top-k"
    """Who chooses; expert-choice looks ahead in the text and is here to compare only."""
    scorer: Literal["linear", "cosine", "noisy"] = "linear"
    """How the router scores."""
    gate: Literal["softmax-chosen", "softmax", "sigmoid"] = "softmax-chosen"
    """How scores become weights, for top-k."""
    experts: int = 8
    """Experts in each layer."""
    k: int = 2
    """Experts that serve a token."""
    hidden: int = 64
    """Width of an expert; the dense models are k and `experts` times as wide."""
    balance: float = 0.01
    """Weight of the load-balance loss."""
    bias_rate: float = 0.0
    """Rate of a selection bias that balances without a loss; 0 for none."""
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
        self.routed()

    def routed(self) -> RoutedLayers:
        """The routed layers that the options describe."""
        top_k = self.router == "top-k"
        return RoutedLayers(
            router=self.router,
            num_experts=self.experts,
            k=self.k,
            hidden=self.hidden,
            scorer=self.scorer,
            gate=self.gate,
            bias_rate=self.bias_rate or None,
            losses={"load_balance": self.balance} if top_k and self.balance else {},
        )

    def settings(self, device: str) -> Settings:
        return Settings(
            steps=self.steps,
            accumulate=self.accumulate,
            learning_rate=self.learning_rate,
            warmup=self.warmup,
            evaluate_every=self.evaluate_every,
            device=device,
        )


PRESETS = {
    "quick": {
        "seeds": 2,
        "steps": 30,
        "limit_mb": 1.0,
        "evaluate_every": 10,
        "validation_windows": 32,
        "layers": 3,
    },
    "gpu": {
        "limit_mb": 8.0,
        "vocabulary": 4096,
        "steps": 2000,
        "batch_size": 64,
        "context": 512,
        "dim": 512,
        "layers": 8,
        "heads": 8,
        "experts": 32,
        "k": 4,
        "hidden": 384,
        "learning_rate": 1e-3,
        "warmup": 100,
        "evaluate_every": 200,
    },
}


def build(config: Config, arm: str, vocabulary: int) -> nn.Module:
    """The model of an arm, drawn from torch's generator."""
    wide = {"routed": config.k, "dense-active": config.k, "dense-total": config.experts}[arm]
    kind, model = {
        "llama": (LlamaConfig, LlamaForCausalLM),
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    }[config.host]
    host = model(
        kind(
            vocab_size=vocabulary,
            hidden_size=config.dim,
            intermediate_size=wide * config.hidden,
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
    return attach(host, config.routed()) if arm == "routed" else host


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed; compare, and look at where the tokens went."""
    prepare(config, run)
    everything = list(parts(config, run))
    arms.train(everything, config.workers)
    return conclude(config, run, everything)


def prepare(config: Config, run: Run) -> None:
    """Read, split and encode the text, once for all arms."""
    folder = run.folder / "data"
    if distribution.is_main() and not Text.kept(folder):
        corpus = read_corpus(config.data, int(config.limit_mb * 1e6))
        Text.prepare(corpus, config.tokenizer, config.vocabulary, config.context).save(folder)
    distribution.wait()


def parts(config: Config, run: Run) -> Iterable[Part]:
    """Every arm under every seed; arms of a seed follow each other, so that pairs fill up early."""
    for seed in range(config.seeds):
        for arm in ARMS:
            yield Part(
                arm=arm,
                seed=seed,
                build=partial(build, config, arm),
                run=run,
                settings=config.settings(run.device),
                batch_size=config.batch_size,
                validation_windows=config.validation_windows,
                shard_experts=config.shard_experts,
            )


def conclude(config: Config, run: Run, everything: list[Part]) -> Outcome:
    """Judge the claims and show where the tokens of the routed model went."""
    by_arm = {arm: [part for part in everything if part.arm == arm] for arm in ARMS}
    experts_per_token = config.experts if config.router == "soft" else config.k
    if distribution.is_main():
        save_pretrained(arms.trained(by_arm["routed"][0]), run.folder / "model")
    figures, tables = where.figures(by_arm["routed"][0])
    metrics = run.metrics()
    entropy = entropy_curves(metrics, "routed")
    return Outcome(
        recipe=run.recipe,
        commit=commit(),
        machine=machine(),
        seeds=list(range(config.seeds)),
        seconds=sum(arms.final(part).seconds for part in everything),
        tables=[arms.table(by_arm, experts_per_token), *tables],
        claims=claims(by_arm),
        figures=[
            curves(metrics, ARMS, "bits_per_byte", "Validation", "bits per byte"),
            curves(metrics, ARMS, "loss", "Training loss", "nats per token", split="train"),
            *([entropy] if entropy.series else []),  # a hash has none
            *figures,
        ],
    )


def claims(by_arm: dict[str, list[Part]]) -> list[Claim]:
    """What papers say of routed models, held against these runs, seed by seed."""
    bits = {a: [arms.final(part).bits_per_byte for part in parts] for a, parts in by_arm.items()}
    pace = {
        a: [arms.final(part).tokens_per_second for part in parts] for a, parts in by_arm.items()
    }
    information = [where.kind_information(part) for part in by_arm["routed"]]
    return [
        judge(
            "Routed beats dense at equal active parameters (bits per byte, difference)",
            "Switch Transformers (Fedus et al. 2021), section 3; OLMoE (2024), section 4.1",
            "dense-active",
            bits["routed"],
            bits["dense-active"],
        ),
        judge(
            "Dense of equal total parameters is better still (bits per byte, difference to routed)",
            "Unified scaling laws for routed language models (Clark et al. 2022), section 5",
            "routed",
            bits["dense-total"],
            bits["routed"],
        ),
        judge(
            "Routed trains faster than dense of equal total parameters (tokens/s, ratio - 1)",
            "Switch Transformers (Fedus et al. 2021), section 3.1",
            "dense-total",
            [
                ours / theirs - 1
                for ours, theirs in zip(pace["routed"], pace["dense-total"], strict=True)
            ],
            [0.0] * len(pace["routed"]),
            better="higher",
        ),
        judge(
            "Experts are chosen by kind of token (normalised mutual information, above shuffled)",
            "OpenMoE (Xue et al. 2024), section 4: context-independent specialisation",
            "kinds of tokens shuffled",
            [found for found, _ in information],
            [control for _, control in information],
            better="higher",
        ),
    ]
