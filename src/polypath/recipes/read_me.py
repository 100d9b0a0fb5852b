"""Experts for domains carved from a dense model, and one router ahead of all layers.

Source: Read-ME (Cai et al. 2024), arXiv 2410.19123.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language.tokens import Windows
from polypath.recipes.carving import (
    Half,
    PerLayer,
    at_random,
    bits,
    pooled,
    repeats,
    tied,
    told,
    tune_layers,
    usage,
)
from polypath.recipes.dense_hosts import (
    STRIDE,
    Clock,
    Host,
    HostConfig,
    language_steps,
    tiling,
)
from polypath.recipes.domains import Splits, domains
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, judge
from polypath.routing import routed_layers
from polypath.surgery.calibration import calibrate
from polypath.surgery.convert import convert
from polypath.surgery.readme import ReadMe
from polypath.surgery.tuning import fit, next_token, training_only, tune_experts, tune_router
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "surgery"
PAPER = "Read-ME (2024)"


@dataclass(frozen=True)
class Config(HostConfig):
    """The domains, the host that is trained first on all of them, and how it is refactored."""

    domains: Sequence[Path] = ()
    """Text files or folders, one a domain; by default Python source, its docstrings, arithmetic
    and Unicode's table of characters."""
    limit_mb: float = 0.6
    """Take about this many megabytes of each domain."""
    rounds: int = 4
    """Rounds of router and experts in turn; each is slower than the one before by 0.8."""
    router_steps: int = 20
    """Steps of the router in a round."""
    expert_steps: int = 30
    """Steps of all else in a round."""
    kept: float = 0.5
    """The part of the channels that an expert has."""
    router_width: int = 64
    """Width of the router ahead of the layers."""
    windows: int = 48
    """Windows of each domain to test on."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.rounds, self.router_steps, self.expert_steps) < 1 or not 0 < self.kept < 1:
            raise InputError(
                f"rounds={self.rounds}, router_steps={self.router_steps}, "
                f"expert_steps={self.expert_steps}, kept={self.kept}; one at least, and a part of 1"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 40, "rounds": 1, "router_steps": 10, "expert_steps": 10}
    | {"limit_mb": 0.2, "windows": 4},
    "gpu": {"dim": 512, "hidden": 2048, "layers": 8, "steps": 4000, "router_width": 512}
    | {"router_steps": 100, "expert_steps": 200, "rounds": 8, "limit_mb": 4.0},
}


def run(config: Config, run: Run) -> Outcome:
    """Train the hosts, refactor them, compare."""
    stages = 3 * config.rounds * (config.router_steps + config.expert_steps)
    more = 2 * config.rounds * config.expert_steps
    reports = (config.steps + stages + more) // STRIDE
    work = {"read-me": partial(trial, config)}
    facts = trials(work, config.seeds, reports, run.folder / "trials", config.workers)
    own = facts["read-me"]
    return conclude(run, facts, [table(own), routing_table(own)], claims(own))


@dataclass(frozen=True)
class Texts:
    """The domains' texts, and batches of them."""

    own: Mapping[str, Splits]
    host: Host

    def mixed(self, seed: int) -> Iterator[Tensor]:
        """Batches (B, L + 1) with as many windows of each domain."""
        each = max(1, self.host.batch // len(self.own))
        windows = [Windows(splits["train"], self.host.context) for splits in self.own.values()]
        step = 0
        while True:
            yield torch.cat([own.batch(step, seed, each) for own in windows])
            step += 1

    def test(self, count: int) -> dict[str, Tensor]:
        return {n: tiling(splits["test"], self.host, count) for n, splits in self.own.items()}

    def calibration(self) -> dict[str, list[Tensor]]:
        """16 windows of training text of each domain."""
        return {
            name: [tiling(splits["train"], self.host, 16)[:, :-1]]
            for name, splits in self.own.items()
        }


def trial(config: Config, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One host, everything that is made of it, and what each comes to on the domains' tests."""
    began, host = time.perf_counter(), config.host()
    texts = Texts(domains(config.domains, config.limit_mb), host)
    clock = Clock(reporter, host.batch * host.context)
    torch.manual_seed(seed)
    dense = host.model()
    language_steps(dense, texts.mixed(seed), host.tuning(), clock)
    dense.eval()
    test = texts.test(config.windows)
    seen = {name: calibrate(dense, own) for name, own in texts.calibration().items()}
    facts: Facts = {"dense": bits(dense, test)}
    longer = copy.deepcopy(dense)
    go_on(config, longer, texts, seed, clock)
    facts["dense, tuned"] = bits(longer, test)

    half = copy.deepcopy(dense)
    convert(half, Half(pooled(seen), config.kept))
    go_on(config, half, texts, seed, clock)
    facts["one of half width"] = bits(half, test)

    for name, known in (("Read-ME", seen), ("random masks", at_random(seen, seed))):
        model, method = copy.deepcopy(dense), ReadMe(known, config.kept, width=config.router_width)
        convert(model, method)
        alternate(config, model, dense, method, texts, seed, clock)
        facts[name] = bits(model, test)
        if name == "Read-ME":
            facts["with the domain told"] = told(model, test)
            facts["repeats"] = repeats(model, test)
            facts["routes"] = usage(model, test)

    layered, method = copy.deepcopy(dense), PerLayer(seen, config.kept)
    convert(layered, method)
    alternate(config, layered, dense, method, texts, seed, clock)
    facts["a router for each layer"] = bits(layered, test)
    facts["layers' repeats"], facts["tied"] = repeats(layered, test), tied(layered, test)
    facts["seconds"] = time.perf_counter() - began
    return facts, f"Read-ME {fmean(facts['Read-ME'].values()):.3f} bits per byte"


def go_on(
    config: Config,
    model: PreTrainedModel,
    texts: Texts,
    seed: int,
    clock: Callable[[int, float], None],
) -> None:
    """Tune a model without a router ahead for as many steps as the experts of the others."""
    steps = config.rounds * config.expert_steps
    tuning = config.host().tuning(steps, config.rate)
    language_steps(model, texts.mixed(seed + 1000), tuning, clock)


def alternate(
    config: Config,
    model: PreTrainedModel,
    dense: PreTrainedModel,
    method: ReadMe,
    texts: Texts,
    seed: int,
    clock: Callable[[int, float], None],
) -> None:
    """Rounds of the router's stage and that of all else, ever slower."""
    host, stream = config.host(), texts.mixed(seed + 1000)
    ahead = not isinstance(method, PerLayer)
    for turn in range(config.rounds):
        slower = config.rate * 0.8**turn
        route = replace(host.tuning(config.router_steps, 0.8**turn), warmup=5)
        if ahead:
            tune_router(model, dense, method.masks, stream, route, clock)
            tune_experts(model, stream, host.tuning(config.expert_steps, slower), clock)
            continue
        tune_layers(model, dense, method.masks, stream, route, clock)
        routers = {id(p) for own in routed_layers(model).values() for p in own.router.parameters()}
        parts = [p for p in model.parameters() if id(p) not in routers]
        with training_only(model, parts):
            tuning = host.tuning(config.expert_steps, slower)
            fit(parts, lambda step: next_token(model, next(stream)), tuning, clock)


ARMS = (
    "dense",
    "dense, tuned",
    "Read-ME",
    "with the domain told",
    "one of half width",
    "random masks",
    "a router for each layer",
)


def table(facts: list[Facts]) -> Table:
    """Bits per byte on each domain, means over seeds."""
    names = list(facts[0]["dense"])
    rows: list[list[Any]] = []
    for arm in ARMS:
        own = [fmean(one[arm][name] for one in facts) for name in names]
        rows.append([arm, *own, fmean(own)])
    return Table(
        "Bits per byte of each domain",
        ["model", *names, "mean"],
        rows,
        note="On the test texts, means over seeds. All but the dense model are tuned for as many "
        "steps. With the domain told: Read-ME's experts, each domain served by its own.",
    )


def routing_table(facts: list[Facts]) -> Table:
    """Where each domain's bytes go."""
    names = list(facts[0]["dense"])
    rows: list[list[Any]] = []
    for place, name in enumerate(names):
        mean = [fmean(one["routes"][place][e] for one in facts) for e in range(len(names))]
        rows.append([name, *mean])
    return Table(
        "Where the router ahead sends each domain",
        ["domain", *(f"to {name}" for name in names)],
        rows,
        note="Parts of the bytes of the test texts, means over seeds.",
    )


def claims(facts: list[Facts]) -> list[Claim]:
    """What the paper says, seed by seed."""
    names = list(facts[0]["dense"])

    def mean(arm: str) -> list[float]:
        return [fmean(one[arm].values()) for one in facts]

    none = [0.0] * len(facts)
    return [
        *(
            judge(
                f"{name}: better than one model of half width (bits per byte, difference)",
                f"{PAPER}, table of perplexities",
                "one of half width",
                [one["Read-ME"][name] for one in facts],
                [one["one of half width"][name] for one in facts],
            )
            for name in names
        ),
        judge(
            "Masks of domains are better than masks at random (bits per byte, difference)",
            f"{PAPER}, section 3",
            "random masks",
            mean("Read-ME"),
            mean("random masks"),
        ),
        judge(
            "The router comes near to being told the domain (bits per byte, below 0.05 worse)",
            f"{PAPER}, section 4",
            "with the domain told",
            mean("Read-ME"),
            mean("with the domain told"),
            threshold=0.05,
        ),
        judge(
            "One router is as good as one for each layer (bits per byte, below 0.02 worse)",
            f"{PAPER}, section 3.1",
            "a router for each layer",
            mean("Read-ME"),
            mean("a router for each layer"),
            threshold=0.02,
        ),
        judge(
            "Neighbouring bytes go the same way more often (part of bytes, difference)",
            f"{PAPER}, 2921 of 4096 tokens",
            "a router for each layer",
            [one["repeats"] for one in facts],
            [one["layers' repeats"] for one in facts],
            better="higher",
        ),
        judge(
            "Routers of layers say much of the next one's choice (mutual information, above 0.3)",
            f"{PAPER}, section 2",
            "independent",
            [one["tied"] for one in facts],
            none,
            better="higher",
            threshold=0.3,
        ),
    ]
