"""Routers alone trained on, towards what like tasks do that went well; on skills and on images.

Source: RoMA, Routing Manifold Alignment, arXiv 2511.07419.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from polypath.errors import InputError
from polypath.recipes.skills import Case, Imaged, Problem, collate, imaged, skilled
from polypath.recipes.trials import Facts, Work, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.routing import MoE
from polypath.surgery import changed, fingerprints
from polypath.surgery.align import (
    AlignConfig,
    Manifold,
    Penalty,
    align,
    oracle,
    routers,
    tune,
)
from polypath.surgery.neighbours import (
    Look,
    Neighbours,
    Vectors,
    agreement,
    answers,
    batches,
    chosen_layers,
    look,
)
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "clusters"
PAPER = "RoMA (2025)"
WEIGHTS = (1.0, 5.0, 20.0)
"""The λ that each arm chooses from, on tasks that are neither trained on nor tested."""
SIZE = 512


@dataclass(frozen=True)
class Config:
    """What is aligned, and for how long."""

    seeds: int = 10
    """Draws of skills and tasks, and of images and classes."""
    steps: int = 300
    """Steps of each router on skills, on all 300 samples at once."""
    image_steps: int = 200
    """Steps of the routers of a classifier of images, on 64 of them."""
    epochs: int = 60
    """Of the classifier itself, before its routers are aligned."""
    tested: int = 2000
    """Samples of known tasks, and of new ones, that are tested."""
    nuisance: float = 2.5
    """How strongly the router of skills hears noise, beside 1 for what it knows."""
    worse: float = 6.0
    """The same of a much worse router."""
    refresh: int = 10
    """Steps between looks at neighbours, where these are refreshed."""
    data: Path | None = None
    """Folder of other images in MNIST's format; the bundled digits by default."""
    workers: int = 0
    """Trials at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name in ("seeds", "steps", "image_steps", "epochs", "tested", "refresh"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if not 0 <= self.nuisance <= self.worse:
            raise InputError(
                f"nuisance={self.nuisance}, worse={self.worse}; 0 or more, and no less, are right"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 60, "image_steps": 20, "epochs": 20, "tested": 500}
}


@dataclass(frozen=True)
class Arm:
    """What is added to the loss of routers. weights: the λ to choose from; none to train nothing.

    successful, refresh: of AlignConfig. refresh is on or off here.
    """

    weights: tuple[float, ...] = WEIGHTS
    penalty: Literal["neighbours", "random", "squares", "entropy"] = "neighbours"
    successful: bool = True
    refresh: bool = False


ARMS = {
    "base": Arm(()),
    "router tuning": Arm((0.0,)),
    "RoMA": Arm(),
    "RoMA, refreshed": Arm(refresh=True),
    "random neighbours": Arm(penalty="random"),
    "no success filter": Arm(successful=False),
    "L2": Arm(penalty="squares"),
    "entropy": Arm(penalty="entropy"),
}
WORSE = ("base", "router tuning", "RoMA", "RoMA, refreshed")
IMAGES = tuple(name for name in ARMS if name not in ("L2", "entropy"))


def random_neighbours(right: Tensor, k: int, seed: int) -> Neighbours:
    """k successful samples for each, drawn at random; all count the same."""
    order = torch.Generator().manual_seed(seed)
    able = right.nonzero()[:, 0]
    drawn = able[torch.randint(len(able), (len(right), k), generator=order)]
    return Neighbours(drawn, torch.full(drawn.shape, 1 / k, dtype=torch.float64), 1.0)


def entropies(layers: Mapping[str, MoE]) -> Penalty:
    """A penalty on how undecided routers are at samples' last inputs, nats."""

    @contextmanager
    def around(step: int, samples: Tensor, places: Tensor) -> Iterator[Callable[[], Tensor]]:
        yield lambda: torch.stack([_entropy(layer, places) for layer in layers.values()]).sum()

    return around


def _entropy(layer: MoE, places: Tensor) -> Tensor:
    assert layer.last is not None
    logs = layer.last.scores[places].log_softmax(-1)
    return -(logs.exp() * logs).sum(-1).mean()


def penalty(model: nn.Module, seen: Look, arm: Arm, seed: int) -> Penalty:
    """What an arm that is a control adds to the loss, given what the base model does."""
    layers = chosen_layers(model, AlignConfig().layers)
    every = torch.ones_like(seen.right)
    if arm.penalty == "random":
        table = random_neighbours(seen.right, AlignConfig().neighbours, seed)
        return Manifold(layers, table.means(seen.vectors), every)
    if arm.penalty == "squares":  # the squared distance from nothing
        nothing: Vectors = {name: torch.zeros_like(own) for name, own in seen.vectors.items()}
        return Manifold(layers, nothing, every)
    return entropies(layers)


def seen_by(model: nn.Module, cases: Sequence[Case]) -> Look:
    """What a model makes of cases."""
    return look(model, chosen_layers(model, AlignConfig().layers), batches(cases, SIZE, collate))


def tuned(problem: Problem, arm: Arm, settings: AlignConfig) -> nn.Module:
    """A copy of the problem's model, its routers trained as an arm does."""
    model = deepcopy(problem.model)
    if arm.penalty == "neighbours":
        align(model, problem.train, settings, collate=collate)
    else:
        term = penalty(model, seen_by(model, problem.train), arm, settings.seed)
        tune(model, routers(model), problem.train, settings, term, collate)
    return model


def fit(
    make: Callable[[int], Problem],
    arm: Arm,
    settings: AlignConfig,
    seed: int,
    reporter: Reporter,
) -> tuple[Facts, str]:
    """Train with each λ, choose on validation tasks, test the chosen one; see `measured`."""
    began = time.perf_counter()
    problem = make(seed)
    best: tuple[float, float | None, nn.Module] = (-1.0, None, problem.model)
    for weight in arm.weights:
        own = replace(settings, weight=weight, seed=seed, successful=arm.successful)
        own = own if arm.refresh else replace(own, refresh=None)
        model = tuned(problem, arm, own)
        right = _share(seen_by(model, problem.validation).right)
        if right > best[0]:
            best = (right, weight, model)
        reporter.advance(1 - right, 0.0)
        if reporter.stop():
            raise Interrupted
    reporter.skip(len(WEIGHTS) - len(arm.weights))
    facts = measured(problem, best[2]) | {"λ": best[1]}
    return facts | {"seconds": time.perf_counter() - began}, f"{facts['unseen']:.1%} of new tasks"


def _share(right: Tensor) -> float:
    return float(right.double().mean())


def measured(problem: Problem, model: nn.Module) -> Facts:
    """What a tuned model does beside the problem's own.

    train, seen, unseen: shares that are answered right. agreement: of routing and embeddings on
    samples of new tasks. moved: tensors beside routers that differ. work: floating-point operations
    of an answer, over those before; parameters likewise.
    """
    looks = {name: seen_by(model, getattr(problem, name)) for name in ("train", "seen", "unseen")}
    names = changed(fingerprints(problem.model), fingerprints(model))
    before, after = (_work(own, problem.unseen) for own in (problem.model, model))
    sizes = [sum(p.numel() for p in own.parameters()) for own in (problem.model, model)]
    return {
        **{name: _share(own.right) for name, own in looks.items()},
        "agreement": agreement(looks["unseen"].joined, stacked(problem.unseen)),
        "moved": sum(".router." not in name for name in names),
        "work": after / before,
        "parameters": sizes[1] / sizes[0],
    }


def stacked(cases: Sequence[Case]) -> Tensor:
    """(n, p)."""
    return torch.stack([case.embedding for case in cases])


@torch.no_grad()
def _work(model: nn.Module, cases: Sequence[Case]) -> int:
    with FlopCounterMode(display=False) as counter:
        answers(model, collate(cases[:SIZE]))
    return counter.get_total_flops()


def diagnose(make: Callable[[int], Problem], seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """What the best routing of each sample would get right; it reads the answers that it is after.

    Of the base model, so it is no method. ideal seen and unseen: where the right experts serve.
    """
    began = time.perf_counter()
    problem = make(seed)
    found = {}
    for name in ("seen", "unseen"):
        cases = getattr(problem, name)
        best = oracle(problem.model, cases, size=SIZE, collate=collate)
        found[name] = _share(best.right)
        near = agreement(best.joined, stacked(cases))
    facts = {**found, "agreement": near, "ideal": problem.ideal}
    reporter.advance(1 - found["unseen"], 0.0)
    reporter.skip(len(WEIGHTS) - 1)
    return facts | {"seconds": time.perf_counter() - began}, f"{found['unseen']:.1%} of new tasks"


def run(config: Config, run: Run) -> Outcome:
    """Tune every arm's routers under every seed, on three problems; judge the paper's claims."""
    steps = config.image_steps
    skills = AlignConfig(learning_rate=0.02, steps=config.steps, batch=300, refresh=config.refresh)
    images = AlignConfig(learning_rate=0.01, steps=steps, batch=64, refresh=config.refresh)
    sizes = Imaged(config.data, config.epochs, 40, 600, config.tested)
    problems: dict[str, tuple[Callable[[int], Problem], AlignConfig, Sequence[str]]] = {
        "skills": (partial(skilled, config.nuisance, config.tested), skills, list(ARMS)),
        "worse": (partial(skilled, config.worse, config.tested), skills, WORSE),
        "images": (partial(imaged, sizes), images, IMAGES),
    }
    work: dict[str, Work] = {}
    for name, (make, settings, arms) in problems.items():
        for arm in arms:
            work[f"{name}, {arm}"] = partial(fit, make, ARMS[arm], settings)
        work[f"{name}, oracle"] = partial(diagnose, make)
    every = trials(work, config.seeds, len(WEIGHTS), run.folder / "tuning", config.workers)
    facts: dict[str, dict[str, list[Facts]]] = {name: {} for name in problems}
    for told, own in every.items():
        name, arm = told.split(", ", 1)
        facts[name][arm] = own
    tables = [_table(TITLES[name], own) for name, own in facts.items()]
    return conclude(run, every, tables, claims(facts, config.seeds))


TITLES = {
    "skills": "Skills: a router that hears noise",
    "worse": "A much worse router: skills",
    "images": "Images: a classifier that saw few",
}


def _table(title: str, facts: Mapping[str, list[Facts]]) -> Table:
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        chosen = [one["λ"] for one in own if one.get("λ") is not None]
        told = [
            estimate([one[name] for one in own]).mean for name in ("seen", "unseen", "agreement")
        ]
        rows.append([arm, *told, fmean(chosen) if chosen and arm != "router tuning" else None])
        if arm == "oracle" and own[0]["ideal"]:
            known = [fmean(one["ideal"][i] for one in own) for i in (0, 1)]
            rows.append(["right experts", *known, None, None])
    return Table(
        title,
        ["model", "known tasks", "new tasks", "agreement", "λ"],
        rows,
        note="Shares of test samples that are answered right, means over seeds; λ in the mean, "
        "each chosen on other tasks. Agreement: of samples' nearest in routing and in embeddings, "
        "on new tasks. Oracle and right experts read the answers or skills of test samples: no "
        "methods, but bounds.",
    )


MAIN, ABLATION, DIAGNOSIS = (
    f"{PAPER}, {part}" for part in ("main table", "ablations", "diagnosis")
)
PILOT = "this project's pilot"
COMPARED = [
    ("skills", "RoMA", "router tuning", "unseen", "RoMA betters router tuning", MAIN),
    ("skills", "RoMA", "router tuning", "seen", "it does so where tasks are known", MAIN),
    ("skills", "router tuning", "base", "unseen", "router tuning betters the base", MAIN),
    ("skills", "RoMA", "base", "unseen", "RoMA betters the base", MAIN),
    ("skills", "RoMA", "no success filter", "unseen", "neighbours have to be successful", MAIN),
    ("skills", "RoMA", "L2", "unseen", "RoMA betters an L2 penalty", ABLATION),
    ("skills", "RoMA", "entropy", "unseen", "RoMA betters an entropy penalty", ABLATION),
    ("skills", "oracle", "base", "agreement", "the best routing is more as embeddings", DIAGNOSIS),
    ("skills", "RoMA", "base", "agreement", "after RoMA routing is more as embeddings", DIAGNOSIS),
    ("worse", "router tuning", "RoMA", "unseen", "fixed neighbours lose to router tuning", PILOT),
    ("worse", "RoMA, refreshed", "router tuning", "unseen", "refreshed neighbours win", PILOT),
    ("worse", "RoMA, refreshed", "RoMA", "unseen", "refreshed are better than fixed ones", PILOT),
    ("images", "RoMA", "router tuning", "unseen", "RoMA betters router tuning", MAIN),
    ("images", "RoMA", "base", "unseen", "RoMA betters the base", MAIN),
    ("images", "RoMA", "random neighbours", "unseen", "RoMA betters random ones", ABLATION),
    ("images", "RoMA", "no success filter", "unseen", "neighbours have to be successful", MAIN),
    ("images", "RoMA", "base", "agreement", "after RoMA routing is more as embeddings", DIAGNOSIS),
]
"""Problem, the arm that is to be better, the one beside it, what is measured, claim, source."""
MEASURES = {
    "unseen": "share of new tasks right, difference",
    "seen": "share of known tasks right, difference",
    "agreement": "agreement on new tasks, difference",
}
KEPT = {
    "moved": ("Nothing but routers changes (other tensors that differ, none)", 0),
    "work": ("Inference costs what it did (floating-point operations, ratio - 1, none)", 1),
    "parameters": ("It has as many parameters (ratio - 1, none)", 1),
}


def claims(facts: Mapping[str, Mapping[str, list[Facts]]], seeds: int) -> list[Claim]:
    """What the paper says, and what is known of where it ends, seed by seed."""
    none = [0.0] * seeds

    def values(problem: str, arm: str, name: str) -> list[float]:
        return [one[name] for one in facts[problem][arm]]

    def compared(
        problem: str, arm: str, than: str, name: str, claim: str, source: str, threshold: float = 0
    ) -> Claim:
        beyond = f", beyond {threshold}" if threshold else ""
        told = f"{TITLES[problem].split(':')[0]}: {claim} ({MEASURES[name]}{beyond})"
        ours, theirs = values(problem, arm, name), values(problem, than, name)
        way: Literal["higher", "lower"] = "lower" if threshold < 0 else "higher"
        return judge(told, source, than, ours, theirs, way, threshold)

    def farthest(name: str, expected: float) -> list[float]:
        every = [own for by in facts.values() for arm, own in by.items() if arm != "oracle"]
        return [max(abs(own[seed][name] - expected) for own in every) for seed in range(seeds)]

    tuning = ("skills", "random neighbours", "router tuning", "unseen")
    gap = ("skills", "oracle", "base", "unseen")
    return [
        *(compared(*row) for row in COMPARED),
        compared(*tuning, "random neighbours are far worse than none", ABLATION, -0.05),
        compared(*gap, "the best routing is 10 points better", DIAGNOSIS, 0.1),
        *(
            judge(claim, PAPER, "base", farthest(name, expected), none, threshold=1e-9)
            for name, (claim, expected) in KEPT.items()
        ),
    ]
