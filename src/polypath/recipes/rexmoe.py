"""Layers that share their experts with their neighbours, beside layers that keep them.

Source: ReXMoE: Reusing Experts with Minimal Overhead in Mixture-of-Experts, arXiv 2510.17483.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from polypath.diagnosis import gate_mass, mean_entropy, share_of, underused, violations
from polypath.errors import InputError
from polypath.recipes import measures, text, where
from polypath.recipes.arms import Part, curve, trained
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.report import Claim, Outcome, judge
from polypath.report.metrics import curves
from polypath.routing import MoE, Routing, routed_layers
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "ReXMoE (2025)"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    group: int = 4
    """Neighbouring layers that share their experts."""
    scaling_start: float = 0.2
    """The part of training after which candidates become more."""
    scaling_end: float = 0.6
    """The part of training after which all experts are candidates."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.group <= self.layers:
            raise InputError(f"group={self.group} of layers={self.layers}; 2 ≤ group ≤ layers")
        if not 0 <= self.scaling_start <= self.scaling_end <= 1:
            raise InputError(
                f"scaling_start={self.scaling_start}, scaling_end={self.scaling_end}; "
                "0 ≤ start ≤ end ≤ 1 is needed"
            )

    @property
    def scaling(self) -> dict[str, int]:
        """The schedule in steps."""
        parts = {"start": self.scaling_start, "end": self.scaling_end}
        return {name: round(part * self.steps) for name, part in parts.items()}


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"steps": 20, "group": 3},
    "gpu": GPU,
}


def arms(config: Config) -> dict[str, Arm]:
    """Reuse with progressive scaling, what is left without either, and what both could come to.

    All with the softmax over all experts that the paper prints, whose kept weights stay as they
    are.
    """

    def plain(**values: Any) -> Arm:
        return Arm(config.top_k(gate="softmax", **values))

    def reuse(group: int, **options: Any) -> Arm:
        options = {"group": group, **config.scaling, **options}
        return Arm(config.top_k("reuse", gate="softmax", options=options))

    pairs, few = config.group // 2, max(config.k, config.experts // config.group)
    chosen = {
        "rexmoe": reuse(config.group),
        "smoe": plain(),
        "reuse-only": reuse(config.group, growth="none"),
        "local-first": reuse(config.group, local_first=True),
        "expert-dropout": reuse(1, least=few),
        "distinct-experts": plain(num_experts=config.experts * config.group),
    }
    if pairs > 1:
        chosen["rexmoe-half"] = reuse(pairs)
        chosen["reuse-only-half"] = reuse(pairs, growth="none")
    if config.layers > config.group:
        chosen["rexmoe-all"] = reuse(config.layers)
    return chosen


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed; judge the paper's claims."""
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(part, config.experts) for part in own] for arm, own in parts.items()}
    table = measures.means(
        "How pools are used",
        seen,
        "On the validation text, means over layers and seeds. Spread: standard deviation of "
        "(load - mean load) / mean load over the experts of a pool, all its layers taken together. "
        "Under-used: experts below a tenth of the mean load. Elsewhere: choices of experts whose "
        "place in the pool is another layer's. Gate mass: the sum of a token's weights. Entropy of "
        "the gate in nats.",
    )
    mass = curves(
        run.metrics(),
        list(parts),
        "mass",
        "Kept gate",
        "share",
        split="train",
        note="The sum of a token's weights in training, mean over layers: it shrinks as candidates "
        "become more, for what is not chosen is not made up for.",
    )
    return text.conclude(
        config, run, parts, claims(parts, seen, config), tables=[table], figures=[mass]
    )


Measured = dict[str, float]


def measured(part: Part, own: int) -> Measured:
    """How a trained model uses its pools; a layer has `own` experts of its pool itself."""
    layers = list(routed_layers(trained(part)).values())
    routes = list(where.validation_routes(part).values())
    pools: dict[Any, list[tuple[MoE, Routing]]] = {}
    for layer, routing in zip(layers, routes, strict=True):
        pools.setdefault(layer.experts, []).append((layer, routing))
    shared = [[routing for _, routing in pool] for pool in pools.values()]
    elsewhere = [
        1 - share_of(routing, range(place * own, (place + 1) * own)) if len(pool) > 1 else 0.0
        for pool in shared
        for place, routing in enumerate(pool)
    ]
    return {
        "spread": fmean(float(violations(pool).std(correction=0)) for pool in shared),
        "under-used": fmean(underused(pool) for pool in shared),
        "elsewhere": fmean(elsewhere),
        "gate mass": fmean(gate_mass(routing) for routing in routes),
        "entropy": fmean(mean_entropy(routing) for routing in routes),
    }


def claims(parts: Parts, seen: Mapping[str, list[Measured]], config: Config) -> list[Claim]:
    """What the paper says of reuse and scaling, and what its reviewers asked, seed by seed."""
    bits = bits_per_byte(parts)

    def better(arm: str, than: str, claim: str, source: str) -> Claim:
        return judge(f"{claim} (bits per byte, difference)", source, than, bits[arm], bits[than])

    early = {arm: [_at(part, config.scaling["start"]) for part in parts[arm]] for arm in bits}
    spread = {arm: [values["spread"] for values in own] for arm, own in seen.items()}
    return [
        better("rexmoe", "smoe", "Reuse with scaling beats plain layers", f"{PAPER}, table 2"),
        better("rexmoe", "reuse-only", "Scaling is what helps", f"{PAPER}, table of components"),
        better("reuse-only", "smoe", "Reuse alone helps a little", f"{PAPER}, table of components"),
        judge(
            "While few may be chosen, the model is behind (bits per byte, difference)",
            f"{PAPER}, training curves",
            "reuse-only",
            early["rexmoe"],
            early["reuse-only"],
            better="higher",
        ),
        judge(
            "Loads of a larger pool are less even (spread, difference)",
            f"{PAPER}, figure of load violations",
            "smoe",
            spread["rexmoe"],
            spread["smoe"],
            better="higher",
        ),
        better(
            "rexmoe",
            "expert-dropout",
            "It is more than expert dropout in plain layers",
            "asked by reviewers, left open",
        ),
        better(
            "distinct-experts",
            "rexmoe",
            "As many distinct experts in each layer are better still",
            "asked by reviewers, left open",
        ),
        text.little_slower(parts, "rexmoe", "smoe", 0.10, "this project's aim"),
    ]


def _at(part: Part, step: int) -> float:
    """Bits per byte at the last validation until a step, or at the first."""
    found = curve(part, "valid")
    return ([line for line in found if line["step"] <= step] or found)[-1]["bits_per_byte"]
