"""Tuning held near its start by a KL: what it learns, what it keeps, and questions without leaks.

On a small network and on a language model of bytes, beside L2-SP and early stopping.
Source: AnalogSeeker: An Open-source Foundation Language Model for Analog Circuit Design, arXiv
2508.10409.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from polypath.errors import InputError
from polypath.recipes.neighbours import (
    STRIDE,
    Held,
    Lesson,
    domain_text,
    fit_network,
    pretrain,
    tune,
)
from polypath.recipes.trials import Facts, Work, conclude, trials
from polypath.report import Claim, Outcome, Table, judge
from polypath.report.figures import Curves
from polypath.report.statistics import series
from polypath.surgery.distiller import (
    SHARES,
    Book,
    Distilled,
    KnowledgeDistiller,
    domain_tree,
    learning_nodes,
    shared_nodes,
    split_by_node,
    template_check,
    template_questions,
    template_solution,
    write_records,
)
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "AnalogSeeker (2025)"
HERE, CONTROL = "this project's run in NumPy", "this project's experiment"

NETWORK_WEIGHTS, NEAR = (0.1, 0.3, 1.0), (0.1, 0.3)
WEIGHTS, PULLS = (0.0, 0.03, 0.1, 0.3, 1.0), (0.001, 0.01, 0.1)
"""λ of networks, those of them that may be chosen; λ and strengths of L2-SP of language models."""

SHIFTS = {"0.8, 300 samples": (0.8, 300), "0.8, 1000": (0.8, 1000), "0.6, 600": (0.6, 600)}
MAIN = "0.8, 300 samples"
BANDS = "Bands: 95 % intervals of the mean over seeds."


@dataclass(frozen=True)
class Config(Lesson):
    """What is trained, on what, and for how long."""

    seeds: int = 5
    """Networks of each kind, with seeds 0, 1, …, and splits of the questions."""
    text_seeds: int = 3
    """Language models of each kind."""
    steps: int = 1500
    """Steps of a network on task A, and again on task B."""
    workers: int = 0
    """Models trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("seeds", "text_seeds", "steps"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 200, "text_seeds": 2, "limit_mb": 1.0}
    | {"domain_kb": 20.0, "pretraining": 60, "epochs": 2}
}


def networks() -> dict[str, dict[str, Held]]:
    """By shift, how its networks are held; forward KL for the first alone."""
    plain = {"λ = 0": Held("reverse", 0.0)}
    reverse = {f"reverse, λ = {w:g}": Held("reverse", w) for w in NETWORK_WEIGHTS}
    forward = {f"forward, λ = {w:g}": Held("forward", w) for w in NETWORK_WEIGHTS}
    return {shift: plain | reverse | (forward if shift == MAIN else {}) for shift in SHIFTS}


def models() -> dict[str, Held]:
    """How language models are held."""
    kl = {f"λ = {w:g}": Held("reverse", w) for w in WEIGHTS}
    return kl | {f"L2-SP, {w:g}": Held("l2-sp", w) for w in PULLS}


def run(config: Config, run: Run) -> Outcome:
    """Tune networks and language models under every seed, make questions, judge the claims."""
    config.special()  # a text that will not do is refused before anything is trained
    lesson = Lesson(**{f.name: getattr(config, f.name) for f in fields(Lesson)})
    kept, arms = run.folder / "starts", networks()
    fits = {n: partial(fit_network, *SHIFTS[n], own, config.steps) for n, own in arms.items()}
    first = {"start": partial(pretrain, lesson, kept)}
    tunes = {arm: partial(tune, lesson, kept, held) for arm, held in models().items()}

    def every(work: Mapping[str, Work], seeds: int, reports: int, name: str) -> dict[str, Any]:
        return trials(work, seeds, reports, run.folder / name, config.workers)

    fitted = every(fits, config.seeds, len(arms[MAIN]), "networks")
    started = every(first, config.text_seeds, -(-config.pretraining // STRIDE), "starts")
    tuned = every(tunes, config.text_seeds, config.epochs, "tuned")
    start, network = started["start"], fitted[MAIN]
    made = questions(config.domain)
    write_records(run.folder / "questions.jsonl", made.records)
    leaks = [leaking(made, seed) for seed in range(config.seeds)]
    return conclude(
        run,
        fitted | started | tuned,
        [_network_table(fitted), _text_table(start, tuned), _question_table(made, leaks)],
        [*network_claims(network), *text_claims(start, tuned), leak_claim(leaks)],
        [*_text_figures(start, tuned), _network_figure(network)],
    )


def questions(domain: Path | None) -> Distilled:
    """Records that agents of templates make of the domain's text; they stand in for the paper's."""
    nodes = learning_nodes(domain_tree([Book("domain", "text", domain_text(domain))]))
    return KnowledgeDistiller(template_questions, template_solution, template_check)(nodes)


def leaking(made: Distilled, seed: int) -> dict[str, int]:
    """How many nodes are in more than one split, drawn by node or, as one should not, by record."""
    order = torch.randperm(len(made.records), generator=torch.Generator().manual_seed(seed))
    ends = [round(part * len(order)) for part in accumulate(SHARES.values())]
    parts = [[made.records[i] for i in own] for own in order.tensor_split(ends[:-1])]
    splits = {
        "by node": split_by_node(made.records, seed=seed),
        "by record": dict(zip(SHARES, parts, strict=True)),
    }
    return {name: len(shared_nodes(own)) for name, own in splits.items()}


def at(own: Sequence[Facts], part: str, name: str) -> list[float]:
    """One number of every seed."""
    return [one[part][name] for one in own]


def network_claims(own: list[Facts]) -> list[Claim]:
    """What was seen in NumPy of both directions; λ is chosen seed by seed, on validation."""
    chosen = [max(NEAR, key=partial(_validated, one)) for one in own]
    ways = ("reverse", "forward")
    picked = {
        way: [one[f"{way}, λ = {w:g}"] for one, w in zip(own, chosen, strict=True)] for way in ways
    } | {"λ = 0": [one["λ = 0"] for one in own]}

    def said(text: str, arm: str, than: str, task: str, least: float = 0.0) -> Claim:
        ours, theirs = ([one[task] for one in picked[name]] for name in (arm, than))
        return judge(f"Network: {text}", HERE, than, ours, theirs, "higher", least)

    return [
        said("it betters the new task (accuracy on B, by 0.01)", "reverse", "λ = 0", "B", 0.01),
        said("it keeps more of the old task (on A, by 0.02)", "reverse", "λ = 0", "A", 0.02),
        said("reverse KL is better than forward (accuracy on B)", "reverse", "forward", "B"),
        said("forward KL is worse than none (accuracy on B)", "λ = 0", "forward", "B"),
    ]


def _validated(facts: Facts, weight: float) -> float:
    return facts[f"reverse, λ = {weight:g}"]["valid"]


def best_of(tuned: Mapping[str, list[Facts]], kind: str) -> list[Facts]:
    """Of the arms of a kind that are held at all, each seed's best on the validation text."""
    arms = [own for arm, own in tuned.items() if arm.startswith(kind) and arm != "λ = 0"]
    return [min(seed, key=_last_validation) for seed in zip(*arms, strict=True)]


def _last_validation(facts: Facts) -> float:
    return facts["curve"][-1]["domain"]


def text_claims(start: list[Facts], tuned: Mapping[str, list[Facts]]) -> list[Claim]:
    """How a language model that is held ends, beside λ = 0 and its rivals, seed by seed."""
    plain, none, early = tuned["λ = 0"], [0.0] * len(start), "early stopping"
    arms = {"λ = 0": (plain, "last"), early: (plain, "best"), "λ = 0.1": (tuned["λ = 0.1"], "last")}
    arms |= {kind: (best_of(tuned, kind), "last") for kind in ("λ", "L2-SP")}
    domain, general = (
        {arm: at(own, part, name) for arm, (own, part) in arms.items()}
        for name in ("domain", "general")
    )
    before = [one["general"] for one in start]
    risen = zip(general["λ = 0.1"], general["λ = 0"], before, strict=True)
    moved = [one["moved"] for one in start]
    share = [(ours - first) / (theirs - first) for ours, theirs, first in risen]

    def less(text: str, arm: str, than: str, of: Mapping[str, list[float]]) -> Claim:
        return judge(f"Text: {text}", CONTROL, than, of[arm], of[than])

    starts = "Text: it starts as plain tuning (change of the gradient, a ratio below 1e-4)"
    halves = "Text: it halves what general text loses (rise of perplexity, a ratio below 0.5)"
    return [
        judge(starts, "from the method itself", "λ = 0", moved, none, threshold=1e-4),
        less("it ends better on the domain (perplexity)", "λ = 0.1", "λ = 0", domain),
        judge(halves, CONTROL, "λ = 0", share, none, threshold=0.5),
        less("it does better than stopping early (perplexity)", "λ = 0.1", early, domain),
        less("and on general text (perplexity)", "λ = 0.1", early, general),
        less("the best λ does better than L2-SP (perplexity)", "λ", "L2-SP", domain),
        less("and on general text (perplexity)", "λ", "L2-SP", general),
    ]


def leak_claim(leaks: list[dict[str, int]]) -> Claim:
    """Node-safe splits beside those that are not."""
    by_node, by_record = ([own[how] for own in leaks] for how in ("by node", "by record"))
    text = "Questions: split by node, those of a node stay together (nodes in two splits)"
    return judge(text, "leak control", "by record", by_node, by_record)


def _network_table(fitted: Mapping[str, list[Facts]]) -> Table:
    rows: list[list[Any]] = []
    for shift, own in fitted.items():
        for arm in (name for name in own[0] if name != "seconds"):
            rows.append([shift, arm, *(fmean(at(own, arm, task)) for task in ("B", "A"))])
    return Table(
        "A network that is tuned to a task of which a fifth of the labels is wrong",
        ["B moved by", "held", "B", "A"],
        rows,
        note="Accuracy on new samples of the new task and of the old one, means over seeds.",
    )


def _text_table(start: list[Facts], tuned: Mapping[str, list[Facts]]) -> Table:
    def mean(own: list[Facts], where: str, *names: str) -> list[Any]:
        return [fmean(at(own, where, name)) for name in names]

    first = [fmean(one[name] for one in start) for name in ("domain", "general")]
    rows: list[list[Any]] = [["before", *first, None, None, None]]
    for arm, own in tuned.items():
        best = mean(own, "best", "domain", "general", "epoch")
        rows.append([arm, *mean(own, "last", "domain", "general"), *best])
    return Table(
        "A language model that is tuned on a small text",
        ["held", "domain", "general", "stopped early: domain", "general, then", "epoch"],
        rows,
        note="Perplexity of a byte, of the domain's test text and of general text, after the last "
        "epoch, and after the one that validates best on the domain. Means over seeds.",
    )


def _question_table(made: Distilled, leaks: list[dict[str, int]]) -> Table:
    rows: list[list[Any]] = [["records kept", len(made.records)]]
    rows += [[f"rejected: {reason}", count] for reason, count in sorted(made.rejected.items())]
    rows.append(["nodes with records", len({one.node for one in made.records})])
    rows += [[f"{n}, by node", len(own)] for n, own in split_by_node(made.records).items()]
    rows += [[f"in two splits, {how}", fmean(own[how] for own in leaks)] for how in leaks[0]]
    note = "Made by agents of templates, which stand in for language models."
    return Table("Questions on the domain's text", ["records and nodes", "count"], rows, note)


def _text_figures(start: list[Facts], tuned: Mapping[str, list[Facts]]) -> list[Curves]:
    """Perplexities against λ, and over epochs."""
    held, pull = [tuned[f"λ = {w:g}"] for w in WEIGHTS], best_of(tuned, "L2-SP")
    figures = []
    for name, text in (("domain", "the domain's test text"), ("general", "general text")):
        runs = {"last epoch": [at(own, "last", name) for own in held]}
        runs["stopped early"] = [at(own, "best", name) for own in held]
        runs["best L2-SP"] = [at(pull, "last", name)] * len(WEIGHTS)
        runs["before"] = [[one[name] for one in start]] * len(WEIGHTS)
        lines = [series(n, WEIGHTS, [*zip(*own, strict=True)]) for n, own in runs.items()]
        figures.append(Curves(f"Perplexity of {text}", "λ", "perplexity", lines, BANDS))
    epochs = range(1, 1 + len(held[0][0]["curve"]))
    lines = [
        series(arm, epochs, [[look["domain"] for look in one["curve"]] for one in own])
        for arm, own in tuned.items()
    ]
    return [*figures, Curves("The domain's validation text", "epoch", "perplexity", lines, BANDS)]


def _network_figure(own: list[Facts]) -> Curves:
    weights = (0.0, *NETWORK_WEIGHTS)
    lines = []
    for way in ("reverse", "forward"):
        names = ["λ = 0", *(f"{way}, λ = {w:g}" for w in NETWORK_WEIGHTS)]
        for task in ("B", "A"):
            runs = [[one[name][task] for name in names] for one in own]
            lines.append(series(f"{way}, {task}", weights, runs))
    return Curves("Accuracy on the new task B and the old A", "λ", "accuracy", lines, BANDS)
