"""Unlearning in one expert beside unlearning in all, on points of domains and on text.

Source: UOE / SEUF, Unlearning One Expert Is Enough for Mixture-of-Experts LLMs, arXiv 2411.18797.
"""

from __future__ import annotations

import ast
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.language.corpus import SHARES, Document, read_corpus
from polypath.recipes.forgetting import (
    CHANCE,
    LOW,
    SOURCES,
    STRIDE,
    Reading,
    at,
    on_domains,
    on_text,
    ways_of_text,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.report.figures import Curves
from polypath.report.statistics import series
from polypath.training import distribution
from polypath.training.checkpoint import save_state
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "UOE / SEUF (2024)"


@dataclass(frozen=True)
class Config:
    """What is learnt and forgotten, and for how long."""

    seeds: int = 5
    """Draws of the domains, each with every way to forget one."""
    text_seeds: int = 4
    """Language models, each with every way to forget a source."""
    data: Sequence[Path] = ()
    """Two texts, the one to forget and the one to retain, each a file or a folder; the docstrings
    and the code of the Python standard library by default."""
    limit_mb: float = 4.0
    """Take about this many megabytes of each text, or of the library's source."""
    domain_training: int = 1500
    """Optimiser steps in which a classifier learns all domains."""
    domain_steps: int = 300
    """At most so many steps to forget one."""
    text_training: int = 400
    """Optimiser steps in which a language model learns both sources."""
    text_steps: int = 200
    """At most so many steps to forget one, at each learning rate."""
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3)
    """Learning rates that every way on text chooses from, on validation text."""
    dim: int = 64
    """Width of the language model."""
    layers: int = 3
    """Layers of the language model, of eight experts each."""
    context: int = 128
    """Bytes in a window."""
    windows: int = 12
    """Windows of each source to validate on; twice as many are to test on."""
    workers: int = 0
    """Models trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        counts = ("seeds", "text_seeds", "domain_training", "domain_steps", "text_training")
        for name in (*counts, "text_steps", "layers", "context", "windows"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if self.dim < 4 or self.dim % 4:
            raise InputError(f"dim={self.dim}; a multiple of 4 is right")
        if not self.rates or not all(0 < rate < math.inf for rate in self.rates):
            raise InputError(f"rates={list(self.rates)}; one positive number or more is right")
        if len(self.data) not in (0, 2):
            raise InputError(
                f"data names {len(self.data)} texts; two are right, to forget and to retain"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "text_seeds": 2,
        "limit_mb": 1.0,
        "domain_training": 200,
        "domain_steps": 30,
        "text_training": 30,
        "text_steps": 8,
        "rates": (2e-3,),
        "windows": 4,
    }
}


def run(config: Config, run: Run) -> Outcome:
    """Learn, forget in every way under every seed; judge the paper's claims."""
    task = Reading(
        run.folder / "texts.safetensors",
        config.text_training,
        config.text_steps,
        config.rates,
        config.dim,
        config.layers,
        config.context,
        config.windows,
    )
    prepare(config, task.path)
    domains = {"domains": partial(on_domains, config.domain_training, config.domain_steps)}
    text = {"text": partial(on_text, task)}
    reports = [-(-steps // STRIDE) for steps in (config.domain_training, config.text_training)]
    reports[1] += (len(config.rates) + 1) * len(ways_of_text(1, 0.0))
    folder, workers = run.folder / "forgetting", config.workers
    facts = {
        **trials(domains, config.seeds, reports[0], folder, workers),
        **trials(text, config.text_seeds, reports[1], folder, workers),
    }
    tables = [
        domains_table(facts["domains"]),
        moved_table("Choices while a domain is forgotten", facts["domains"]),
        text_table(facts["text"], names(config)),
        moved_table("Choices while a source is forgotten", facts["text"]),
    ]
    judged = [*claims_on_domains(facts["domains"]), *claims_on_text(facts["text"])]
    return conclude(run, facts, tables, judged, figures(facts["domains"], facts["text"]))


def names(config: Config) -> list[str]:
    """What the source to forget and the one to retain are called."""
    return [path.name for path in config.data] or ["docstrings", "code"]


def prepare(config: Config, path: Path) -> None:
    """Keep both sources as bytes, once for all models."""
    if distribution.is_main() and not path.exists():
        save_state(path, texts(config.data, int(config.limit_mb * 1e6)), {})
    distribution.wait()


def texts(data: Sequence[Path], limit: int) -> dict[str, Tensor]:
    """uint8 bytes by source and split, as "forget.train"."""
    corpora = [read_corpus(path, limit) for path in data] or [read_corpus()]
    found: dict[str, Tensor] = {}
    for split, share in SHARES.items():
        both: Sequence[str] = [getattr(corpus, split).text for corpus in corpora]
        if not data:
            both = apart(getattr(corpora[0], split).documents, int(share * limit))
        for source, text in zip(SOURCES, both, strict=True):
            name = f"{source}.{split}"
            found[name] = torch.frombuffer(
                bytearray(text.encode(errors="replace")), dtype=torch.uint8
            )
    return found


def apart(documents: Sequence[Document], limit: int) -> tuple[str, str]:
    """The docstrings of Python source, and its code without them and without comments.

    limit: take so many documents that they have this many characters or more, where there are. What
    cannot be parsed is left out.
    """
    found, code, taken = _Docstrings(), [], 0
    for document in documents:
        if taken >= limit:
            break
        with warnings.catch_warnings(), suppress(SyntaxError):
            warnings.simplefilter("ignore")  # of escapes that newer Pythons do not like
            code.append(ast.unparse(found.visit(ast.parse(document.text))))
            taken += len(document.text)
    return "\n\n".join(found.taken) + "\n", "\n\n".join(code) + "\n"


class _Docstrings(ast.NodeTransformer):
    """Takes docstrings out."""

    def __init__(self) -> None:
        self.taken: list[str] = []

    def _take(self, node: Any) -> Any:
        self.generic_visit(node)
        if (text := ast.get_docstring(node)) is not None:
            self.taken.append(text)
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _take


def of_way(facts: Sequence[Facts], way: str, name: str) -> list[float]:
    """A fact of a way by seed; NaN where a seed has none."""
    found = [one["ways"][way][name] for one in facts]
    return [math.nan if value is None else value for value in found]


def gates(facts: Sequence[Facts], way: str, which: int) -> list[float]:
    """The targets' mean gate by seed, before (0) or after (1)."""
    return [one["ways"][way]["gates"][which] for one in facts]


def _kept(way: str, facts: list[Facts]) -> list[Any]:
    """The mean of what is retained with its interval, and the steps that it took."""
    mean, low, high = estimate(of_way(facts, way, "retain"))
    told = "" if low is None else f"{low:.3f} … {high:.3f}"
    return [mean, told, fmean(of_way(facts, way, "steps"))]


def domains_table(facts: list[Facts]) -> Table:
    """The specification's table."""
    before = [fmean(one["pretrained"][i] for one in facts) for i in (0, 1)]
    rows: list[list[Any]] = [["before", *before, "", None]]
    for way in facts[0]["ways"]:
        rows.append([way, fmean(of_way(facts, way, "forget")), *_kept(way, facts)])
    return Table(
        "One of eight domains forgotten",
        ["way", "forgotten", "others", "95 % interval", "steps"],
        rows,
        note=f"Test accuracy where that on forgotten validation points first fell to {CHANCE} + "
        "0.01, or after all steps. By gradient ascent, with one learning rate. Means over seeds.",
    )


def text_table(facts: list[Facts], sources: Sequence[str]) -> Table:
    """One source forgotten, at equal loss on it."""
    forget, retain = sources
    before = [fmean(one["pretrained"][i] for one in facts) for i in (0, 1)]
    rows: list[list[Any]] = []
    for way in facts[0]["ways"]:
        perplexity = estimate([2**bits for bits in of_way(facts, way, "retain")]).mean
        rates = "/".join(f"{rate:g}" for rate in sorted(set(of_way(facts, way, "rate"))))
        rows.append([way, *_kept(way, facts), perplexity, rates])
    return Table(
        f"{forget} forgotten, {retain} retained",
        ["way", "bits per byte", "95 % interval", "steps", "perplexity", "learning rates"],
        rows,
        note=f"Test loss of {retain} where that of {forget} has risen from {before[0]:.3f} bits a "
        f"byte to {facts[0]['goal']:.3f}, the entropy of single bytes; it was {before[1]:.3f} "
        "before. Empty where a seed did not get there. Learning rates are chosen on validation "
        "text, from equally many for every way. Perplexity of a byte. Means over seeds.",
    )


def moved_table(title: str, facts: list[Facts]) -> Table:
    """What was trained, and what became of choices."""
    rows: list[list[Any]] = []
    for way in facts[0]["ways"]:
        share, kept = (fmean(of_way(facts, way, name)) for name in ("share", "overlap"))
        rows.append([way, share, kept, *(fmean(gates(facts, way, i)) for i in (0, 1))])
    return Table(
        title,
        ["way", "trained", "overlap", "gate before", "after"],
        rows,
        note="Trained: share of all parameters. Overlap: of the experts that forgotten things "
        "chose before, those that they still choose. Gate: affinity of the experts that were aimed "
        "at, for what is forgotten. Means over seeds.",
    )


def figures(domains: list[Facts], text: list[Facts]) -> list[Curves]:
    """Utility against forgetting, of every way, on either."""
    levels = [0.7 - 0.02 * n for n in range(23)]
    start, goal = max(one["pretrained"][0] for one in text), text[0]["goal"]
    bits = [start + (goal - start) * n / 20 for n in range(21)]
    return [
        Curves(
            "Other domains while one is forgotten",
            "accuracy on the forgotten domain",
            "accuracy on the others",
            [_line(way, domains, levels, levels, 1.0) for way in domains[0]["ways"]],
            "Validation points. Bands: 95 % intervals of the mean over seeds.",
        ),
        Curves(
            "The retained source while the other is forgotten",
            "loss of the forgotten source, bits a byte",
            "loss of the retained one, bits a byte",
            [_line(way, text, bits, [-bit for bit in bits], -1.0) for way in text[0]["ways"]],
            "Test text. Bands: 95 % intervals of the mean over seeds.",
        ),
    ]


def _line(way: str, facts: list[Facts], x: list[float], levels: list[float], sign: float) -> Any:
    every = [[at(one["ways"][way]["curve"], level) for level in levels] for one in facts]
    return series(way, x, [[math.nan if v is None else sign * v for v in one] for one in every])


def claims_on_domains(facts: list[Facts]) -> list[Claim]:
    """What the paper says of one expert and of its anchor, seed by seed."""
    none = [0.0] * len(facts)
    kept = {way: of_way(facts, way, "retain") for way in facts[0]["ways"]}
    lower = [max(kept[way][i] for way in kept if way.startswith(LOW)) for i in range(len(facts))]
    every = "all experts and routers"

    def keeps(way: str, said: str, source: str, than: str, **how: Any) -> Claim:
        what = f"Domains: {said} (accuracy on the others at equal forgetting, difference)"
        return judge(what, f"{PAPER}, {source}", than, kept[way], kept[than], "higher", **how)

    return [
        keeps("uoe", "one expert keeps 5 points more", "table 2", every, threshold=0.05),
        keeps("anchor by mean", "so it does as released", "table 2", every, threshold=0.05),
        keeps("uoe", "one expert keeps more at all", "table 2", every),
        keeps("uoe", "the anchor keeps more", "table of α: 0.5 points", "no anchor"),
        judge(
            "Domains: any expert of low affinity keeps less (the best of three, difference)",
            f"{PAPER}, table of ranks",
            "uoe",
            lower,
            kept["uoe"],
        ),
        judge(
            "Domains: choices stay more than where all is trained (overlap, difference)",
            f"{PAPER}, figure of expert selection",
            every,
            of_way(facts, "uoe", "overlap"),
            of_way(facts, every, "overlap"),
            better="higher",
        ),
        *_claims_on_targets("Domains", facts),
        judge(
            "Domains: less than a tenth is trained (share of parameters)",
            f"{PAPER}: 0.06 % of large models",
            "0.1",
            of_way(facts, "uoe", "share"),
            none,
            threshold=0.1,
        ),
    ]


def _claims_on_targets(where: str, facts: list[Facts]) -> list[Claim]:
    """What the anchor does to the target's gate, and whether affinities can be told from a part."""
    none = [0.0] * len(facts)
    after = {way: gates(facts, way, 1) for way in ("uoe", "no anchor")}
    return [
        judge(
            f"{where}: the anchor raises the target's gate (mean gate, after - before)",
            f"{PAPER}, equation 3",
            "before",
            after["uoe"],
            gates(facts, "uoe", 0),
            better="higher",
        ),
        judge(
            f"{where}: it ends higher than without the anchor (mean gate, difference)",
            f"{PAPER}, equation 3",
            "no anchor",
            after["uoe"],
            after["no anchor"],
            better="higher",
        ),
        judge(
            f"{where}: two halves engage the same experts (share of the two highest, above 0.85)",
            f"{PAPER}: 0.94 of a subset",
            "0.85",
            [one["agreement"] for one in facts],
            none,
            better="higher",
            threshold=0.85,
        ),
    ]


def claims_on_text(facts: list[Facts]) -> list[Claim]:
    """Whether that keeps a second source of text, seed by seed."""

    def keeps(way: str, said: str, than: str) -> Claim:
        return judge(
            f"Text: {said} (bits per byte of the retained source at equal forgetting, difference)",
            f"{PAPER}, table 2",
            than,
            of_way(facts, way, "retain"),
            of_way(facts, than, "retain"),
        )

    return [
        keeps("uoe", "ascent in one expert keeps more than in all parameters", "ga"),
        keeps("uoe", "it keeps more than in an expert of low affinity", LOW),
        keeps("gdiff in one expert", "so it does with a retain loss", "gdiff"),
        keeps("npo in one expert", "and with NPO", "npo"),
        *_claims_on_targets("Text", facts),
    ]
