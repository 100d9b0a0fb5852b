"""Dense layers copied and cut into fine experts that start as what they were, then tuned.

Source: Dynamic-DINO (Lu et al. 2025), arXiv 2507.17436; on decoders of text and a small network
here. The detector itself, transformers' Grounding DINO, is converted in the tests.
"""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.recipes import multi_skill
from polypath.recipes.dense_hosts import (
    STRIDE,
    Clock,
    HostConfig,
    batches,
    pretrain,
    read_bytes,
    scores,
    tiling,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Curves, Outcome, Table, estimate, judge
from polypath.report.statistics import series
from polypath.surgery.calibration import RoutingSums, calibrate
from polypath.surgery.convert import convert
from polypath.surgery.granular import Granular
from polypath.surgery.tuning import fit, next_token, training_only, tune_granular
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "surgery"
PAPER = "Dynamic-DINO (2025)"


@dataclass(frozen=True)
class Config(HostConfig):
    """The hosts that are trained first, and how long what is made of them is tuned."""

    data: Path | None = None
    """A text file or a folder of them; the Python standard library's own source by default."""
    steps: int = 400
    """Steps of the dense language model."""
    tuning: int = 120
    """Steps of each converted model, and of the dense one that goes on."""
    hidden: int = 128
    """Units of a feed-forward layer."""
    skill_steps: int = 1000
    """Steps of the small network of eight skills."""
    skill_tuning: int = 1500
    """Steps of tuning it in each form."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.tuning, self.skill_steps, self.skill_tuning) < 1 or self.hidden % 4:
            raise InputError(
                f"tuning={self.tuning}, skill_steps={self.skill_steps}, "
                f"skill_tuning={self.skill_tuning}, hidden={self.hidden}; a step at least, and a "
                "multiple of 4 slices are needed"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 50, "tuning": 20, "limit_mb": 0.5, "windows": 16}
    | {"skill_steps": 100, "skill_tuning": 100},
    "gpu": {"dim": 512, "hidden": 2048, "layers": 8, "steps": 4000, "tuning": 1000},
}

ARMS = {
    "4 copies in 2": Granular(4, 2),
    "2 copies in 2": Granular(2, 2),
    "4 copies whole": Granular(4, 1),
}
"""Forms of the language model's layers; a byte meets as much in each."""


def run(config: Config, run: Run) -> Outcome:
    """Train the hosts, convert and tune, compare."""
    reports = (config.steps + (1 + len(ARMS)) * config.tuning) // STRIDE
    text = trials(
        {"text": partial(trial, config)},
        config.seeds,
        reports,
        run.folder / "text",
        config.workers,
    )["text"]
    forms = len(multi_skill.variants()) + 3
    reports = (config.skill_steps + forms * config.skill_tuning) // multi_skill.STRIDE
    work = partial(multi_skill.trial, config.skill_steps, config.skill_tuning)
    skills = trials(
        {"skills": work}, config.seeds + 1, reports, run.folder / "skills", config.workers
    )["skills"]
    return conclude(
        run,
        {"text": text, "skills": skills},
        [text_table(text), skill_table(skills), partner_table(text)],
        [*text_claims(text), *skill_claims(skills)],
        figures(skills),
    )


def trial(config: Config, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One language model, and what tuning makes of it in each form."""
    began, host = time.perf_counter(), config.host()
    text = read_bytes(config.data, config.limit_mb)
    clock = Clock(reporter, host.batch * host.context)
    dense = pretrain(host, text["train"], seed, clock)
    test = tiling(text["test"], host, config.windows)
    facts: Facts = {"dense": scores(dense, test)}
    tuning = host.tuning(config.tuning, config.rate)
    longer, stream = copy.deepcopy(dense), batches(text["train"], host, seed + 1000)
    parts = [p for layer in longer.model.layers for p in layer.mlp.parameters()]
    with training_only(longer, [*parts, longer.lm_head.weight]):
        parts.append(longer.lm_head.weight)
        fit(parts, lambda step: next_token(longer, next(stream)), tuning, clock)
    facts["dense, tuned"] = scores(longer, test)
    for name, method in ARMS.items():
        model = copy.deepcopy(dense)
        convert(model, replace(method, seed=seed))
        moved = difference(dense, model, test[:8])
        stream = batches(text["train"], host, seed + 1000)
        loss = partial(_next_loss, model, stream)
        tune_granular(model, loss, tuning, [model.lm_head.weight], clock)
        facts[name] = {**scores(model, test), "moved at the start": moved}
        if name == "4 copies in 2":
            seen = calibrate(model, test[:32, :-1].split(16))
            facts["partners"] = [partners(own) for own in seen.routed.values()]
    facts["seconds"] = time.perf_counter() - began
    return facts, f"{facts['4 copies in 2']['bits']:.3f} bits per byte"


def _next_loss(model: PreTrainedModel, stream: Any, step: int) -> Tensor:
    return next_token(model, next(stream))


@torch.no_grad()
def difference(dense: PreTrainedModel, model: PreTrainedModel, windows: Tensor) -> float:
    """How far logits are apart, relative to the largest."""
    before = dense(input_ids=windows[:, :-1]).logits
    after = model.eval()(input_ids=windows[:, :-1]).logits
    return float((after - before).abs().max() / before.abs().max())


def partners(seen: RoutingSums) -> dict[str, float]:
    """Who is chosen beside an expert, in the mean over experts that are used.

    entropy: of its partners, 1 when even. partners: how many have 80 % of what it shares.
    """
    shares = seen.together.double()
    used = shares.sum(1) > 0
    shares = shares[used] / shares[used].sum(1, keepdim=True)
    entropy = torch.special.entr(shares).sum(1) / math.log(max(2, shares.shape[1] - 1))
    ordered = shares.sort(dim=1, descending=True).values.cumsum(1)
    most = (ordered < 0.8).sum(1) + 1
    return {"entropy": float(entropy.mean()), "partners": float(most.double().mean())}


def text_table(facts: list[Facts]) -> Table:
    """The language models, means over seeds."""
    rows: list[list[Any]] = []
    for name in ("dense", "dense, tuned", *ARMS):
        mean, low, high = estimate([one[name]["bits"] for one in facts])
        wide = "" if low is None or high is None else f"{low:.3f} … {high:.3f}"
        first = facts[0][name].get("moved at the start")
        moved = None if first is None else max(one[name]["moved at the start"] for one in facts)
        rows.append([name, mean, wide, moved])
    return Table(
        "A dense language model, and its layers as fine experts",
        ["model", "bits per byte", "95 % interval", "moved at the start"],
        rows,
        note="On the test text, means over seeds, after as many steps of the feed-forward layers "
        "and the head, all else frozen. Moved: how far logits are from the dense model's before "
        "tuning, relative to the largest; the largest of all seeds.",
    )


def partner_table(facts: list[Facts]) -> Table:
    """Who is chosen beside whom, by layer."""
    rows: list[list[Any]] = []
    for layer in range(len(facts[0]["partners"])):
        own = [one["partners"][layer] for one in facts]
        rows.append(
            [f"layer {layer}", *(fmean(p[w] for p in own) for w in ("entropy", "partners"))]
        )
    return Table(
        "Experts that are chosen together, 4 copies in 2",
        ["layer", "entropy of partners", "hold 80 %"],
        rows,
        note="Of eight experts, two of which serve a byte. Entropy: 1 when all others are partners "
        "alike. Hold 80 %: how many partners have 80 % of what an expert shares. Means over seeds.",
    )


def skill_table(facts: list[Facts]) -> Table:
    """The small network in all forms, means over seeds."""
    rows: list[list[Any]] = []
    for name, first in facts[0].items():
        if isinstance(first, dict):
            rows.append(
                [name, *(100 * fmean(one[name][w] for one in facts) for w in ("start", "right"))]
            )
    return Table(
        "A small network of eight skills",
        ["network", "% right at the start", "% right after tuning"],
        rows,
        note="Means over seeds, all tuned for as many steps. Rows apart: the router's rows are "
        "drawn for slices, not for copies. Fresh: experts from nothing.",
    )


def figures(facts: list[Facts]) -> list[Curves]:
    """How the small network learns in each form."""
    names = [
        name for name, first in facts[0].items() if isinstance(first, dict) and "curve" in first
    ]
    lines = [
        series(
            name,
            [step for step, _ in facts[0][name]["curve"]],
            [[value for _, value in one[name]["curve"]] for one in facts],
        )
        for name in names
    ]
    note = "Bands: 95 % intervals of the mean over seeds."
    return [Curves("Eight skills: tuning", "step", "part right", lines, note)]


def text_claims(facts: list[Facts]) -> list[Claim]:
    """What the paper says, on text, seed by seed."""

    def of(arm: str) -> list[float]:
        return [one[arm]["bits"] for one in facts]

    def entropies(layer: int) -> list[float]:
        return [one["partners"][layer]["entropy"] for one in facts]

    return [
        judge(
            "Text: it starts as the dense model (logits, relative difference, below 1e-5)",
            f"{PAPER}, initialisation",
            "dense",
            [one["4 copies in 2"]["moved at the start"] for one in facts],
            [0.0] * len(facts),
            threshold=1e-5,
        ),
        judge(
            "Text: better than dense tuned as long, at equal active cost (bits per byte)",
            f"{PAPER}, main table",
            "dense, tuned",
            of("4 copies in 2"),
            of("dense, tuned"),
        ),
        judge(
            "Text: more copies help (bits per byte, difference)",
            f"{PAPER}, ablation",
            "2 copies in 2",
            of("4 copies in 2"),
            of("2 copies in 2"),
        ),
        judge(
            "Text: fine experts beat whole copies (bits per byte, difference)",
            f"{PAPER}, granularity",
            "4 copies whole",
            of("4 copies in 2"),
            of("4 copies whole"),
        ),
        judge(
            "Text: partners are more fixed in the last layer (entropy, difference to the first)",
            f"{PAPER}, analysis",
            "first layer",
            entropies(-1),
            entropies(0),
        ),
    ]


def skill_claims(facts: list[Facts]) -> list[Claim]:
    """What the paper says, on the small network, seed by seed."""

    def of(arm: str, what: str = "right") -> list[float]:
        return [100 * one[arm][what] for one in facts]

    def higher(said: str, ours: str, theirs: str, source: str, what: str = "right") -> Claim:
        return judge(
            f"Skills: {said} (% right, difference)",
            source,
            theirs,
            of(ours, what),
            of(theirs, what),
            better="higher",
        )

    main, ablation = f"{PAPER}, main table", f"{PAPER}, ablation"
    return [
        higher("better than dense tuned as long", "4 copies in 2", "dense, tuned", main),
        higher("more copies help", "4 copies in 2", "2 copies in 2", ablation),
        higher("fine experts beat whole copies", "4 copies in 2", "4 copies whole", ablation),
        higher(
            "the start is better than rows apart", "4 copies in 2", "rows apart", ablation, "start"
        ),
        higher("after tuning too", "4 copies in 2", "rows apart", ablation),
        higher("copies beat fresh experts", "4 copies in 2", "fresh experts", ablation),
        judge(
            "Skills: copies part (distance of slices of one position, relative, above 0.1)",
            "from the method itself",
            "the start",
            [one["moved"] for one in facts],
            [0.0] * len(facts),
            better="higher",
            threshold=0.1,
        ),
    ]
