"""Rows of the router tied to their experts by a loss, beside plain top-k and other ties.

On a regression where it is known who should serve whom, and on text.
Source: Coupling Experts and Routers in Mixture-of-Experts via an Auxiliary Loss, arXiv 2512.23447.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Any

from polypath.diagnosis import layer_couplings
from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.recipes import measures, specialists, text
from polypath.recipes.arms import Part, trained
from polypath.recipes.text import GPU, QUICK, Arm, Parts, TextConfig, bits_per_byte
from polypath.recipes.trials import Facts, trials
from polypath.report import Claim, Outcome, Table, judge
from polypath.report.figures import Curves
from polypath.report.statistics import estimate, series
from polypath.training.run import Run

DOMAIN = "language"
PAPER = "ERC loss (2025)"


@dataclass(frozen=True)
class Config(TextConfig):
    """What is trained, on what, and for how long."""

    specialist_steps: int = 2000
    """Steps of each layer on the regression for specialists."""
    specialist_seeds: int = 5
    """Draws of that regression."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("specialist_steps", "specialist_seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)}; at least 1 is needed")


PRESETS: dict[str, dict[str, Any]] = {
    "quick": QUICK | {"specialist_steps": 200, "specialist_seeds": 2},
    "gpu": GPU
    | {
        "context": 256,
        "dim": 256,
        "heads": 8,
        "experts": 32,
        "k": 4,
        "hidden": 128,
        "learning_rate": 2e-3,
    },
}


def tied(plain: RoutedLayers) -> dict[str, RoutedLayers]:
    """The loss, its parts taken away, and its rivals; all with the gate of OLMoE."""

    def under(**losses: Any) -> RoutedLayers:
        return _changed(plain, losses={**(plain.losses or {}), **losses})

    return {
        "erc": under(coupling=1.0),
        "smoe": plain,
        "no-noise": under(coupling={"weight": 1.0, "noise": False}),
        "stricter": under(coupling={"weight": 1.0, "alpha": 0.5}),
        "orthogonal": under(orthogonality=0.01),
        "autonomous": _changed(plain, router="autonomous"),
    }


def _changed(plain: RoutedLayers, **values: Any) -> RoutedLayers:
    return RoutedLayers(**{**plain.to_json(), **values})


def arms(config: Config) -> dict[str, Arm]:
    """On text."""
    return {name: Arm(own) for name, own in tied(config.top_k(gate="softmax")).items()}


def students(config: Config) -> dict[str, RoutedLayers]:
    """On the regression: the same, and plain layers that nothing balances."""
    plain = RoutedLayers(num_experts=specialists.CLUSTERS, gate="softmax")
    return {**tied(plain), "unbalanced": _changed(plain, losses={})}


def run(config: Config, run: Run) -> Outcome:
    """Train every arm under every seed, on both; judge the paper's claims."""
    seeds, steps = config.specialist_seeds, config.specialist_steps
    work = {arm: partial(specialists.fit, own, steps) for arm, own in students(config).items()}
    reports = -(-steps // specialists.STRIDE)
    facts = trials(work, seeds, reports, run.folder / "specialists", config.workers)
    parts = text.train(config, run, arms(config))
    seen = {arm: [measured(part) for part in own] for arm, own in parts.items()}
    tables = [_specialists_table(facts), _text_table(seen)]
    judged = [*claims_on_specialists(facts), *claims_on_text(parts, seen)]
    return text.conclude(config, run, parts, judged, tables=tables, figures=[_curves(facts)])


Measured = dict[str, float]


def measured(part: Part) -> Measured:
    """How rows and experts of a trained model hold together; empty where there are no rows."""
    layers = list(layer_couplings(trained(part)).values())
    if not layers:
        return {}
    return {
        "α*": max(layer.strength for layer in layers),
        "loss at 1": fmean(layer.loss() for layer in layers),
        "ε": fmean(float(layer.bound.mean()) for layer in layers),
        "row": fmean(float(layer.rows.mean()) for layer in layers),
        "gate": fmean(float(layer.gates.mean()) for layer in layers),
    }


def _text_table(seen: Mapping[str, list[Measured]]) -> Table:
    return measures.means(
        "Rows and experts, on text",
        {arm: own for arm, own in seen.items() if own[0]},
        "α*: the least strictness without loss, of the worst layer. Loss at 1: without noise, mean "
        "over layers, as the rest. ε: how far apart rows lie. Row and gate: lengths of rows and of "
        "experts' gate projections. Means over seeds.",
    )


def _specialists_table(facts: Mapping[str, list[Facts]]) -> Table:
    names = {
        "error": "test error",
        "strength": "α*",
        "bound": "ε",
        "coupled": "best first",
        "regret": "regret",
        "purity": "purity",
        "spread": "load spread",
        "step milliseconds": "ms a step",
    }
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        values = [[one[name] for one in own] for name in names]
        rows.append([arm, *(None if None in v else estimate(v).mean for v in values)])
    return Table(
        "Specialists",
        ["model", *names.values()],
        rows,
        note="Eight clusters with a teacher each, one layer of eight experts; test points, means "
        "over seeds. Error: mean squared. Best first: points whose first expert is the one that "
        "would serve them best alone; regret: by how much it is worse. Purity: points whose "
        "cluster is their expert's main one. Load spread: coefficient of variation.",
    )


def _curves(facts: Mapping[str, list[Facts]]) -> Curves:
    lines = []
    for arm, own in facts.items():
        if own[0]["strength"] is not None:
            steps = [step for step, _, _ in own[0]["curve"]]
            lines.append(series(arm, steps, [[one for _, _, one in f["curve"]] for f in own]))
    note = "1 or less: every row excites its own expert most."
    return Curves("Coupling α* on specialists", "step", "α*", lines, note=note)


def claims_on_specialists(facts: Mapping[str, list[Facts]]) -> list[Claim]:
    """Seed by seed, each a draw of clusters and teachers."""

    def values(arm: str, name: str) -> list[float]:
        return [own[name] for own in facts[arm]]

    def compared(claim: str, source: str, arm: str, than: str, name: str, **how: Any) -> Claim:
        return judge(
            f"Specialists: {claim}", source, than, values(arm, name), values(than, name), **how
        )

    strength = {arm: values(arm, "strength") for arm in ("erc", "smoe")}
    none = [0.0] * len(strength["erc"])
    pairs = zip(
        values("erc", "step milliseconds"), values("smoe", "step milliseconds"), strict=True
    )
    return [
        judge(
            "Specialists: with the loss rows excite their own experts most (α*, at most 1.05)",
            f"{PAPER}, table 3",
            "1.05",
            strength["erc"],
            none,
            threshold=1.05,
        ),
        judge(
            "Specialists: without it they do not (α*, at least 1.3)",
            f"{PAPER}, table 2",
            "1.3",
            strength["smoe"],
            none,
            better="higher",
            threshold=1.3,
        ),
        compared(
            "points meet the expert that serves them best more often (share, difference)",
            f"{PAPER}, section 3",
            "erc",
            "smoe",
            "coupled",
            better="higher",
        ),
        compared(
            "noise is what does it (share, difference)",
            f"{PAPER}, ablations",
            "erc",
            "no-noise",
            "coupled",
            better="higher",
        ),
        compared("the error is lower (difference)", f"{PAPER}, table 1", "erc", "smoe", "error"),
        compared(
            "loads stay as even (coefficient of variation, difference)",
            f"{PAPER}, load-balance loss",
            "erc",
            "smoe",
            "spread",
            threshold=0.05,
        ),
        compared(
            "the stricter, the farther apart the rows (ε, difference)",
            f"{PAPER}, figure of ε",
            "stricter",
            "erc",
            "bound",
            better="higher",
        ),
        judge(
            "Specialists: a step takes less than 5 % longer (time, ratio - 1)",
            f"{PAPER}, cost: 0.2 to 0.8 %",
            "smoe",
            [ours / plain - 1 for ours, plain in pairs],
            none,
            threshold=0.05,
        ),
    ]


def claims_on_text(parts: Parts, seen: Mapping[str, list[Measured]]) -> list[Claim]:
    """Seed by seed, at equal steps."""
    bits = bits_per_byte(parts)

    def better(than: str, claim: str, source: str) -> Claim:
        return judge(f"{claim} (bits per byte, difference)", source, than, bits["erc"], bits[than])

    def strength(arm: str, claim: str, source: str, limit: float, **how: Any) -> Claim:
        own: Sequence[float] = [values["α*"] for values in seen[arm]]
        told = f"{claim} (α* of the worst layer, against {limit})"
        return judge(told, source, str(limit), own, [0.0] * len(own), threshold=limit, **how)

    return [
        better("smoe", "The loss betters plain layers", f"{PAPER}, table 1"),
        better("no-noise", "Noise is what helps", f"{PAPER}, ablations"),
        better("orthogonal", "It does more than orthogonal rows", f"{PAPER}, ablations"),
        better("autonomous", "It does more than autonomous experts", f"{PAPER}, figure at 3B"),
        strength("erc", "Every layer ends coupled", f"{PAPER}, table 3", 1.05),
        strength("smoe", "Plain layers do not", f"{PAPER}, table 2: up to 5", 1.3, better="higher"),
        text.little_slower(parts, "erc", "smoe", 0.05, f"{PAPER}, cost: 0.2 to 0.8 %"),
    ]
