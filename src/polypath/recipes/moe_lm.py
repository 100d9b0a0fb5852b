"""Train a routed language model beside dense ones of equal active and of equal total size.

Three decoders see the same text, batch by batch: one with routed feed-forward layers, one dense
with as many parameters as a token meets in the routed one, one dense with as many as it has in all.
Sources: Switch Transformers (Fedus et al. 2021), OLMoE (Muennighoff et al. 2024).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from polypath.language import RoutedLayers
from polypath.recipes import text, where
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.report import Claim, Outcome, judge
from polypath.training.run import Run

DOMAIN = "language"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    router: Literal["top-k", "expert-choice", "hash", "soft"] = "top-k"
    """Who chooses; expert-choice looks ahead in the text and is here to compare only."""
    scorer: Literal["linear", "cosine", "noisy"] = "linear"
    """How the router scores."""
    gate: Literal["softmax-chosen", "softmax", "sigmoid"] = "softmax-chosen"
    """How scores become weights, for top-k."""
    bias_rate: float = 0.0
    """Rate of a selection bias that balances without a loss; 0 for none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.routed()

    def routed(self) -> RoutedLayers:
        """The routed layers that the options describe."""
        changes: dict[str, Any] = {} if self.router == "top-k" else {"losses": {}}
        return self.top_k(
            self.router,
            scorer=self.scorer,
            gate=self.gate,
            bias_rate=self.bias_rate or None,
            **changes,
        )


PRESETS = {
    "quick": QUICK,
    "gpu": GPU
    | {
        "steps": 2000,
        "context": 512,
        "dim": 512,
        "heads": 8,
        "experts": 32,
        "k": 4,
        "hidden": 384,
        "learning_rate": 1e-3,
        "evaluate_every": 200,
    },
}


def arms(config: Config) -> dict[str, Arm]:
    """The routed model, and dense ones as wide as what a token meets of it, and as all of it."""
    return {
        "routed": Arm(config.routed()),
        "dense-active": Arm(width=config.k * config.hidden),
        "dense-total": Arm(width=config.experts * config.hidden),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed; compare, and look at where the tokens went."""
    parts = text.train(config, run, arms(config))
    return text.conclude(config, run, parts, claims(parts))


def claims(parts: Parts) -> list[Claim]:
    """What papers say of routed models, held against these runs, seed by seed."""
    bits, pace = bits_per_byte(parts), text.pace(parts)
    information = [where.kind_information(part) for part in parts["routed"]]
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
