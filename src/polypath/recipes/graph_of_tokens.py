"""Decisions averaged over a graph of tokens, beside plain top-k and plainer ways to smooth.

Source: Improving Routing in Sparse Mixture of Experts with Graph of Tokens, arXiv 2505.00792.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from polypath.diagnosis import imbalance, mean_entropy
from polypath.diagnosis.fluctuation import NOISE
from polypath.errors import InputError
from polypath.recipes import measures, text
from polypath.recipes.arms import Part, bits_per_token, curve, kept_text
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.report import Claim, Outcome, judge
from polypath.routing import routed_layers
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "Graph of Tokens (2025)"
SWAPPED = 0.05
"""The part of a text's tokens that are taken for each other, to see who can bear it."""


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    layers: int = 2
    """Layers of the decoder."""
    heads: int = 4
    """Attention heads."""
    temperature: float = 1.0
    """Of the similarity between tokens."""
    sigma: float = 1.0
    """The noise of attention's output, in lengths of it."""
    frozen: float = 2 / 3
    """The part of training after which the control's routers stay as they are."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or self.sigma <= 0 or not 0 <= self.frozen <= 1:
            raise InputError(
                f"temperature={self.temperature}, sigma={self.sigma}, frozen={self.frozen}; "
                "two positive numbers and a part from 0 to 1 are needed"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"layers": 2, "steps": 20},
    "gpu": GPU
    | {
        "context": 256,
        "dim": 256,
        "layers": 6,
        "heads": 8,
        "hidden": 256,
        "learning_rate": 2e-3,
    },
}


@contextmanager
def frozen_routers(model: nn.Module, step: int, after: int) -> Iterator[None]:
    """A step from `after` on leaves the routers as they are."""
    yield
    if step >= after:
        for layer in routed_layers(model).values():
            for parameter in layer.router.parameters():
                parameter.grad = None


def arms(config: Config) -> dict[str, Arm]:
    """Both graphs, plain top-k, what others do against fluctuation, and graphs without a reason."""

    def similar(temperature: float | None) -> Arm:
        return Arm(config.top_k("similarity", options={"temperature": temperature}))

    def attending(sigma: float | None, heads: str = "surest") -> Arm:
        return Arm(config.top_k("attention", options={"sigma": sigma, "heads": heads}))

    plain = config.top_k()
    calm = config.top_k(losses={**(plain.losses or {}), "router_z": 1e-3})
    late = partial(frozen_routers, after=round(config.frozen * config.steps))
    return {
        "similarity": similar(config.temperature),
        "attention": attending(config.sigma),
        "posterior": attending(config.sigma, "all"),
        "smoe": Arm(plain),
        "z-loss": Arm(calm),
        "frozen": Arm(plain, around=late),
        "uniform": similar(None),
        "raw-attention": attending(None),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed; judge the paper's claims and what it leaves open."""
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(part) for part in own] for arm, own in parts.items()}
    table = measures.means(
        "How steady they route",
        seen,
        "Means over layers and seeds. Fluctuation: tokens whose heaviest expert changed between "
        "the last two validations. Unsteady: under noise on what routers see, "
        f"{100 * NOISE:g} % of its length. Entropy of the decision in nats. Imbalance: "
        "what the busiest expert has above the mean load; who sends all to one does not fluctuate. "
        "Swapped: "
        f"bits per token that are lost when {100 * SWAPPED:g} % of the tokens read are swapped.",
    )
    return text.conclude(
        config,
        run,
        parts,
        claims(parts, seen),
        tables=[table],
        figures=measures.curves(run.metrics(), list(parts)),
    )


Measured = dict[str, float]


def measured(part: Part) -> Measured:
    """How steady a trained model routes, means over layers."""
    seen = measures.Seen.of(part)
    changed = curve(part, "valid")[-1].get("fluctuation", {})
    routes = list(seen.routes.values())
    return {
        "fluctuation": fmean(changed.values()) if changed else float("nan"),
        "unsteady": measures.unsteady(seen),
        "entropy": fmean(mean_entropy(routing) for routing in routes),
        "imbalance": fmean(imbalance(routing) for routing in routes),
        "swapped": swapped_loss(part, seen.model),
    }


def swapped_loss(part: Part, model: nn.Module) -> float:
    """Bits per token that a model loses on the validation text when what it reads is swapped."""
    windows = kept_text(part.run.folder / "data").validation(part.validation_windows)
    read, wanted = windows[:, :-1], windows[:, 1:]
    attacked = bits_per_token(model, swap(read, SWAPPED, part.seed), wanted)
    return attacked - bits_per_token(model, read, wanted)


def swap(tokens: Tensor, share: float, seed: int) -> Tensor:
    """The same tokens, a share of which have changed places with each other."""
    generator = torch.Generator().manual_seed(seed)
    flat = tokens.flatten().clone()
    places = torch.randperm(len(flat), generator=generator)[: round(share * len(flat))]
    flat[places] = flat[places.roll(1)]
    return flat.view(tokens.shape)


def claims(parts: Parts, seen: Mapping[str, list[Measured]]) -> list[Claim]:
    """What the paper says of both graphs, and what its reviewers asked, seed by seed."""
    bits = bits_per_byte(parts)

    def values(arm: str, name: str, times: float = 1.0) -> list[float]:
        return [times * own[name] for own in seen[arm]]

    def compared(claim: str, source: str, arm: str, than: str, name: str) -> Claim:
        return judge(claim, source, than, values(arm, name), values(than, name))

    asked = "asked by reviewers, left open"
    judged = []
    for arm, control in (("similarity", "uniform"), ("attention", "raw-attention")):
        said = arm.capitalize()
        worse = [ours / plain - 1 for ours, plain in zip(bits[arm], bits["smoe"], strict=True)]
        judged += [
            judge(
                f"{said}: experts of tokens change less in late training (share, against 80 %)",
                f"{PAPER}, figure of fluctuation",
                "smoe, times 0.8",
                values(arm, "fluctuation"),
                values("smoe", "fluctuation", 0.8),
            ),
            compared(
                f"{said}: and under noise (share, difference)",
                f"{PAPER}, argument",
                arm,
                "smoe",
                "unsteady",
            ),
            judge(
                f"{said}: no worse than plain layers (bits per byte, ratio - 1, below 0.5 %)",
                f"{PAPER}, WikiText-103",
                "smoe",
                worse,
                [0.0] * len(worse),
                threshold=0.005,
            ),
            compared(
                f"{said}: swapped tokens cost less (bits per token, difference)",
                f"{PAPER}, attacked text",
                arm,
                "smoe",
                "swapped",
            ),
            compared(
                f"{said}: decisions are surer (entropy in nats, difference)",
                f"{PAPER}, figure of entropy",
                arm,
                "smoe",
                "entropy",
            ),
            judge(
                f"{said}: better than {control} (bits per byte, difference)",
                asked,
                control,
                bits[arm],
                bits[control],
            ),
            compared(
                f"{said}: steadier than a router that is frozen late (share, difference)",
                asked,
                arm,
                "frozen",
                "fluctuation",
            ),
            text.little_slower(parts, arm, "smoe", 0.25, "this project's aim", f"{said}: training"),
        ]
    return judged
