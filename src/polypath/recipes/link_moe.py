"""A gate over link predictors beside each of them, their mean and the best: which pair asks whom.

Source: Mixture of Link Predictors on Graphs (Ma et al. 2024), arXiv 2402.08583.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from polypath.errors import InputError
from polypath.recipes.link_experts import KINDS, NEGATIVES, Study, on_expert, on_split
from polypath.recipes.link_gates import (
    ARMS,
    BEST,
    GATE,
    GLOBAL,
    MEAN,
    MLP,
    ON_FEATURES,
    ORACLE,
    TAUGHT,
    on_gates,
)
from polypath.recipes.links import EXPERTS, HITS, experts_on, source, system
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.report.figures import HeatMap, HeatMaps
from polypath.training.run import Run

DOMAIN = "graphs"
PAPER = "Link-MoE (2024)"
ON_PRODUCTS = ("cosine", "mlp")
"""Experts that know features alone."""
SHOWN = tuple(k for k in HITS if k in (10, 100))
"""K of Hits@K that are shown."""


@dataclass(frozen=True)
class Config:
    """Which link predictors are mixed, on which graph."""

    seeds: int = 5
    """Splits of the links, with every expert and every gate on each."""
    data: Path | None = None
    """A file of edges, two names a line, instead of a data set."""
    data_set: str | None = None
    """cora, citeseer, pubmed, or imports (modules of the Python standard library, with the
    words of their names); by default Cora where data_dir has it, else imports."""
    data_dir: Path | None = None
    """A folder of public data sets; the one that POLYPATH_DATA names by default."""
    experts: Sequence[str] = EXPERTS
    """Link predictors that are mixed, as compare-links has them; cosine is left out where nodes
    have no features."""
    retrained: Sequence[str] = ("gcn", "ncn")
    """Those of them that are trained once more, on the links too that gates are trained on."""
    epochs: int = 40
    """Times that a network sees every link; the best by validation is kept."""
    hard: int = 50
    """Hard negatives of each link to validate on and to test on, an even number."""
    gates: int = 2
    """Times that each gate begins anew; what these measure is averaged."""
    gate_epochs: int = 300
    """Times, at most, that a gate sees what it is trained on."""
    workers: int = 0
    """Experts trained at once; 0 for one on each core."""

    def __post_init__(self) -> None:
        for name in ("seeds", "epochs", "gates", "gate_epochs"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")
        if self.hard <= TAUGHT or self.hard % 2:
            raise InputError(f"hard={self.hard}; an even number above {TAUGHT} is right")
        for name in (*self.experts, *self.retrained):
            system(name)
        if len(set(self.experts)) < max(len(self.experts), 2):
            raise InputError(f"experts={' '.join(self.experts)!r}: two or more, each named once")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "seeds": 2,
        "data_set": "imports",
        "retrained": ("ncn",),
        "epochs": 10,
        "hard": 20,
        "gates": 1,
        "gate_epochs": 40,
    }
}


def run(config: Config, run: Run) -> Outcome:
    """Train experts, then gates on what these say, under every seed; judge the paper's claims.

    routes.safetensors has how the first gate weighs experts for the links to test, as layer "gate".
    """
    kept = source(config.data, config.data_set, config.data_dir, run.folder)
    study = Study(
        kept,
        run.folder / "scores",
        run.folder / "routes.safetensors",
        experts_on(config.experts, kept.read().x),
        config.epochs,
        config.hard,
        config.gates,
        config.gate_epochs,
    )
    study.folder.mkdir(exist_ok=True)
    folder, seeds, workers = run.folder / "links", config.seeds, config.workers
    splits = trials({"splits": partial(on_split, study)}, seeds, 1, folder, workers)
    work = {name: partial(on_expert, study, name, False) for name in study.experts}
    work |= {again(name): partial(on_expert, study, name, True) for name in config.retrained}
    experts = trials(work, seeds, config.epochs, folder, workers)
    fits = len(NEGATIVES) * sum(config.gates if arm.learnt else 1 for arm in ARMS.values())
    gates = trials({"gates": partial(on_gates, study)}, seeds, fits, folder, workers)["gates"]
    retrained = {again(name): experts[again(name)] for name in config.retrained}
    return conclude(
        run,
        splits | experts | {"gates": gates},
        [
            *(table(setting, gates, retrained) for setting in NEGATIVES),
            *(gates_table(setting, gates) for setting in NEGATIVES),
            costs_table({name: experts[name] for name in work}),
        ],
        [
            claim
            for setting in NEGATIVES
            for claim in claims(setting, gates, study.experts, retrained)
        ],
        [figure(gates)],
    )


def again(name: str) -> str:
    """What an expert is called that is trained on the gate's links too."""
    return f"{name}, trained on the gate's links too"


def ranks(setting: str, gates: Sequence[Facts], way: str) -> list[float]:
    """The mean reciprocal rank of a way, by seed."""
    return [one[setting]["ways"][way]["mrr"] for one in gates]


def table(setting: str, gates: list[Facts], retrained: Mapping[str, list[Facts]]) -> Table:
    """What every expert and every mixture finds among the negatives of one setting."""
    ways = {
        name: [one[setting]["ways"][name] for one in gates] for name in gates[0][setting]["ways"]
    }
    ways |= {name: [one["measures"][setting] for one in own] for name, own in retrained.items()}
    rows: list[list[Any]] = []
    for name, own in ways.items():
        mean, low, high = estimate([one["mrr"] for one in own])
        row: list[Any] = [name, mean, "" if low is None else f"{low:.3f} … {high:.3f}"]
        row += [mean_of([one[f"hits@{k}"] for one in own]) for k in SHOWN]
        row += [mean_of([one.get("kinds", {}).get(kind) for one in own]) for kind in KINDS]
        rows.append(row)
    shares = ", ".join(
        f"{kind} {fmean(one['shares'][kind] for one in gates):.0%}" for kind in KINDS
    )
    chosen = ", ".join(sorted({one[setting]["chosen"] for one in gates}))
    return Table(
        f"Links to test among {setting}",
        ["way", "MRR", "95 % interval", *(f"Hits@{k}" for k in SHOWN), *KINDS],
        rows,
        note=f"By kind of link, the MRR; of the links are {shares}. CN: shared neighbours; SP: "
        f"edges of a shortest path. The best expert by validation is {chosen}. The best expert of "
        "each link is an oracle, whose hits are those of any expert. Means over splits.",
    )


def mean_of(values: Sequence[float | None]) -> float | None:
    """None where one is missing."""
    known = [value for value in values if value is not None]
    return fmean(known) if len(known) == len(values) else None


def gates_table(setting: str, gates: list[Facts]) -> Table:
    """How the gate weighs experts, by kind of link."""
    weights = gate_weights(setting, gates)
    return Table(
        f"Gates by kind of link, among {setting}",
        ["links", *next(iter(weights.values()))],
        [[kind, *own.values()] for kind, own in weights.items()],
        note="Mean weights of experts for links to test, over splits and gates.",
    )


def gate_weights(setting: str, gates: list[Facts]) -> dict[str, dict[str, float | None]]:
    """By kind of link and expert."""
    every = [one[setting]["gates"] for one in gates]
    return {
        kind: {name: estimate([one[kind][name] for one in every]).mean for name in every[0][kind]}
        for kind in KINDS
    }


def figure(gates: list[Facts]) -> HeatMaps:
    """The same as colours."""
    maps = {}
    for setting in NEGATIVES:
        weights = gate_weights(setting, gates)
        names = list(next(iter(weights.values())))
        values = [list(own.values()) for own in weights.values()]
        maps[setting] = HeatMap(setting, KINDS, names, values, "expert", "kind of link")
    return HeatMaps("Gates by kind of link", "negatives", maps, "Every row sums to 1.")


def costs_table(experts: Mapping[str, list[Facts]]) -> Table:
    """What experts cost."""
    return Table(
        "Experts",
        ["expert", "seconds", "parameters"],
        [
            [name, fmean(one["seconds"] for one in own), own[0]["parameters"]]
            for name, own in experts.items()
        ],
        note="Of training and of scoring all pairs, in one process.",
    )


def claims(
    setting: str,
    gates: list[Facts],
    experts: Sequence[str],
    retrained: Mapping[str, list[Facts]],
) -> list[Claim]:
    """What the paper, and the specification's experiment, say in one setting, split by split."""
    ours = ranks(setting, gates, GATE)

    def better(what: str, where: str, than: str) -> Claim:
        return judge(
            f"{setting}: {what} (MRR, difference)",
            f"{PAPER}, {where}",
            than,
            ours,
            ranks(setting, gates, than),
            "higher",
        )

    found = [
        better("the gate ranks links higher than the mean of its experts", "ensembles", MEAN),
        better("and than weights that are the same for all pairs", "ensembles", GLOBAL),
        better("and than the best expert by validation", "abstract: 18.7 % on Pubmed", BEST),
        better("and than a network on the gate's heuristics alone", "ensembles", MLP),
    ]
    if ON_FEATURES in gates[0][setting]["ways"]:
        found.append(better("and than a gate on features alone", "inputs of the gate", ON_FEATURES))
    for name, own in retrained.items():
        found.append(
            judge(
                f"{setting}: and than {name} (MRR, difference)",
                "this project's question: the gate's links as more data for a baseline",
                name,
                ours,
                [one["measures"][setting]["mrr"] for one in own],
                "higher",
            )
        )
    found.append(complementary(setting, gates, experts))
    for name in ON_PRODUCTS:
        if name in experts:
            found.append(leaning(setting, gates, name))
    return found


def complementary(setting: str, gates: list[Facts], experts: Sequence[str]) -> Claim:
    """Whether experts find different links."""
    ways = [one[setting]["ways"] for one in gates]
    single = [max(own[name]["hits@10"] for name in experts) for own in ways]
    return judge(
        f"{setting}: what any expert finds exceeds the best single one by 5 points "
        "(Hits@10, difference)",
        f"{PAPER}, overlap of what experts find",
        "the best expert by test links",
        [own[ORACLE]["hits@10"] for own in ways],
        single,
        "higher",
        0.05,
    )


def leaning(setting: str, gates: list[Facts], expert: str) -> Claim:
    """Whether the gate turns to features where structure tells nothing."""
    weights = [one[setting]["gates"] for one in gates]
    none, many = KINDS[0], KINDS[2]
    return judge(
        f"{setting}: {expert} weighs more for links without a shared neighbour than for those with "
        "two or more (mean gate, difference)",
        f"{PAPER}, weights by pair",
        many,
        [one[none][expert] for one in weights],
        [one[many][expert] for one in weights],
        "higher",
    )
