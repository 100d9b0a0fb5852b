"""Routers with a state that travels up the layers, beside plain ones and the paper's controls.

Source: Layerwise Recurrent Router for Mixture-of-Experts (RMoE), arXiv 2408.06793.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import nn

from polypath.diagnosis import balance, expert_similarity, gate_information, mean_entropy
from polypath.errors import InputError
from polypath.recipes import measures, text, where
from polypath.recipes.arms import Part, kept_text, trained
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.report import Claim, Outcome, judge
from polypath.routing import given, losses, routed_layers
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "RMoE (Qiu et al. 2024)"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    steps: int = 200
    """Optimiser steps of each model."""
    layers: int = 6
    """Layers of the decoder."""
    state: int = 32
    """Width of the routers' state."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state < 1:
            raise InputError(f"state={self.state}; at least 1 is needed")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"steps": 20},
    "gpu": GPU
    | {
        "steps": 1500,
        "context": 256,
        "dim": 256,
        "layers": 12,
        "heads": 8,
        "experts": 16,
        "hidden": 256,
        "state": 64,
        "learning_rate": 1e-3,
    },
}


def arms(config: Config) -> dict[str, Arm]:
    """The recurrent router, plain ones, and what is left of it when a part is taken away."""

    def recurrent(**options: Any) -> Arm:
        return Arm(config.top_k("recurrent", options={"state": config.state, **options}))

    return {
        "rmoe": recurrent(),
        "smoe": Arm(config.top_k()),
        "smoe-mlp": Arm(config.top_k(scorer="mlp")),
        "xmoe": Arm(config.top_k(scorer="cosine")),
        "not-passed": recurrent(passing="off"),
        "detached": recurrent(passing="detached"),
        "residual": recurrent(passing="off", residual=0.5),
        "shared-projection": recurrent(shared_projection=True),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed; judge the paper's claims."""
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(part) for part in own] for arm, own in parts.items()}
    table = measures.means(
        "What routers of different layers share",
        seen,
        "Mutual information of a token's gates at two layers, as the paper bins it, over all "
        "pairs of layers, in nats; by chance: with another token's gates; corrected: the "
        "difference. Entropy of the gate in nats. Inner balance: the highest over the second "
        "highest gate; outer balance: what the chosen have of the whole gate; medians over tokens. "
        "Likeness: mean cosine of all pairs of experts, 1/E when they are orthogonal. Pull of text "
        "and of balance: lengths of the routers' gradients from either loss alone, on training "
        "text.",
    )
    return text.conclude(config, run, parts, claims(parts, seen), tables=[table])


Measured = dict[str, float]


def measured(part: Part) -> Measured:
    """How a trained model routes the validation text, means over layers or pairs of layers."""
    model = trained(part)
    routes = list(where.validation_routes(part).values())
    generator = torch.Generator().manual_seed(part.seed)
    pairs = [gate_information(a, b, generator) for a, b in combinations(routes, 2)]
    balances = [balance(routing) for routing in routes]
    return {
        "information": fmean(pair.information for pair in pairs),
        "by chance": fmean(pair.control for pair in pairs),
        "corrected": fmean(pair.information - pair.control for pair in pairs),
        "entropy": fmean(mean_entropy(routing) for routing in routes),
        "inner balance": fmean(one.inner for one in balances),
        "outer balance": fmean(one.outer for one in balances),
        "likeness": fmean(
            expert_similarity(layer.experts) for layer in routed_layers(model).values()
        ),
        **pulls(part, model),
    }


def pulls(part: Part, model: nn.Module, batches: int = 4) -> Measured:
    """How strongly the text's loss and the balance loss pull at the routers, means over batches."""
    windows = kept_text(part.run.folder / "data").windows()
    layers = routed_layers(model).values()
    routers = list({id(p): p for layer in layers for p in layer.router.parameters()}.values())
    found: dict[str, list[float]] = {"pull of text": [], "pull of balance": []}
    model.train()
    for step in range(batches):
        ids = windows.batch(step, part.seed, part.batch_size).to(part.settings.device)
        with given(step=step):
            task = model(input_ids=ids, labels=ids, use_cache=False).loss
        auxiliary = sum(losses(model).values(), start=torch.zeros(()))
        for name, loss in zip(found, (task, auxiliary), strict=True):
            if not loss.requires_grad:  # no balance loss
                found[name].append(0.0)
                continue
            grads = torch.autograd.grad(loss, routers, retain_graph=True, allow_unused=True)
            lengths = [grad.norm() for grad in grads if grad is not None]
            found[name].append(float(torch.stack(lengths).norm()))
    model.eval()
    return {name: fmean(values) for name, values in found.items()}


def claims(parts: Parts, seen: Mapping[str, list[Measured]]) -> list[Claim]:
    """What the paper says of recurrence, seed by seed."""
    bits = bits_per_byte(parts)

    def values(arm: str, name: str, times: float = 1.0) -> list[float]:
        return [times * own[name] for own in seen[arm]]

    return [
        judge(
            "A recurrent router beats a linear one (bits per byte, difference)",
            f"{PAPER}, table 1",
            "smoe",
            bits["rmoe"],
            bits["smoe"],
        ),
        judge(
            "Passing the state on is what helps (bits per byte, difference)",
            f"{PAPER}, table of ablations",
            "not-passed",
            bits["rmoe"],
            bits["not-passed"],
        ),
        judge(
            "The gradient through the states is needed (bits per byte, difference)",
            f"{PAPER}, table of ablations",
            "detached",
            bits["rmoe"],
            bits["detached"],
        ),
        judge(
            "Layers share more than twice as much as with linear routers (corrected nats)",
            f"{PAPER}, cross-layer mutual information; corrected for chance here",
            "smoe, times 2",
            values("rmoe", "corrected"),
            values("smoe", "corrected", 2),
            better="higher",
        ),
        judge(
            "Layers share more than twice as much as when states are not passed (corrected nats)",
            f"{PAPER}, cross-layer mutual information; corrected for chance here",
            "not-passed, times 2",
            values("rmoe", "corrected"),
            values("not-passed", "corrected", 2),
            better="higher",
        ),
        judge(
            "Gates of the chosen are more even (inner balance, difference)",
            f"{PAPER}, table of balance",
            "smoe",
            values("rmoe", "inner balance"),
            values("smoe", "inner balance"),
        ),
        judge(
            "Gates are less sure (entropy in nats, difference)",
            f"{PAPER}, figure of gate entropy",
            "smoe",
            values("rmoe", "entropy"),
            values("smoe", "entropy"),
            better="higher",
        ),
        text.little_slower(parts, "rmoe", "smoe", 0.05, f"{PAPER}, table 1: 1.3 %"),
    ]
