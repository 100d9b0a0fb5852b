"""Tables and figures of networks that run algorithms, beside the compiled ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from polypath.diagnosis.faithfulness import gaps
from polypath.recipes.node_reports import BANDS, spread
from polypath.recipes.trials import Facts
from polypath.report import Table
from polypath.report.figures import Curves, Figure, HeatMap, HeatMaps
from polypath.report.statistics import series

EXACT, HINTS, SILENT, PLAIN, WARM, LONGER = (
    "compiled",
    "with hints",
    "without hints",
    "without LayerNorm",
    "from compiled",
    "trained longer",
)


def of(facts: Sequence[Facts], name: str, feedback: str = "soft") -> list[float]:
    """A measure by seed; NaN where there is none."""
    found = [one["feedback"][feedback][name] for one in facts]
    return [math.nan if value is None else value for value in found]


def networks_table(facts: Mapping[str, list[Facts]], size: int) -> Table:
    """What is right, and how alike attention is, on the largest graphs."""
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        exact = facts[f"{algorithm_of(arm)}, {EXACT}"]
        apart = [
            gaps(*values)
            for values in zip(
                of(exact, "output"), of(own, "output"), of(own, "overlap"), strict=True
            )
        ]
        rows.append(
            [
                arm,
                spread(of(own, "output")),
                *(_mean(of(own, name)) for name in ("joint", "followed")),
                spread(of(own, "overlap")),
                *(_mean(of(own, name)) for name in ("credited", "cosine", "argmax")),
                fmean(each.trainability for each in apart),
                fmean(each.mechanism for each in apart),
            ]
        )
    columns = ["right", "steps", "followed", "attention", "credited", "cosine", "arg-max"]
    return Table(
        f"Graphs of {size} nodes",
        ["network", *columns, "trainability gap", "mechanistic gap"],
        rows,
        note="Right: predecessors, with the 95 % interval. Steps: those in which all hints of all "
        "nodes are right. Followed: the part of the steps before the first that is not. Attention: "
        "1 - total variation from the compiled network's, the best head of a layer; credited: with "
        "choices of the same effect as one. Gaps: compiled less trained accuracy; accuracy "
        "less attention. Means over seeds.",
    )


def hints_table(facts: Mapping[str, list[Facts]]) -> Table:
    """What is right of every hint, under both kinds of feedback."""
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        feedback = own[0]["feedback"]
        for name in ["predecessor", *feedback["soft"]["hints"]]:
            row: list[Any] = [arm, name]
            for mode in ("soft", "hard", "single"):
                known = [one["feedback"][mode] for one in own] if mode in feedback else []
                values = [
                    one["output"] if name == "predecessor" else one["hints"][name] for one in known
                ]
                row.append(_mean(values))
            rows.append(row)
    return Table(
        "Hints under soft and hard feedback",
        ["network", "hint", "soft", "hard", "single precision"],
        rows,
        note="Shares of steps and nodes; of the active node, of steps; distances within 0.05. "
        "Trained networks run in single precision; the compiled one in double, in the last column "
        "in single. Means over seeds.",
    )


def states_table(facts: Mapping[str, list[Facts]]) -> Table:
    """What hidden states hold of the compiled network's registers."""
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        names = [name.removeprefix("probe ") for name in own[0]["states"] if "probe " in name]
        for place, name in enumerate(names):
            values = (
                _mean([one["states"][f"{kind} {name}"] for one in own])
                for kind in ("probe", "chance")
            )
            aligned = _mean([one["states"]["CKA"] for one in own]) if place == 0 else None
            rows.append([arm, name, *values, aligned])
    return Table(
        "What hidden states hold",
        ["network", "register", "probe", "chance", "CKA"],
        rows,
        note="Linear probes on graphs that they were not fitted on: accuracy of flags, R² of "
        "distances and of the parent's position. Chance: of a constant. CKA: linear, with the "
        "compiled registers. Means over seeds.",
    )


def drift_table(facts: Mapping[str, list[Facts]]) -> Table:
    """What becomes of compiled weights that are trained."""
    rows: list[list[Any]] = []
    for arm, own in facts.items():
        if arm.endswith(WARM):
            curves = [one["curve"] for one in own]
            rows.append(
                [
                    arm,
                    fmean(curve[0]["accuracy"] for curve in curves),
                    fmean(min(look["accuracy"] for look in curve) for curve in curves),
                    fmean(curve[-1]["accuracy"] for curve in curves),
                    fmean(curve[-1]["overlap"] for curve in curves),
                    fmean(curve[-1]["drift"] for curve in curves),
                ]
            )
    return Table(
        "Compiled weights in training",
        ["network", "right at first", "lowest", "at last", "attention", "drift"],
        rows,
        note="On watched graphs, in single precision. Drift: ‖θ - θ₀‖ / ‖θ₀‖; compiled weights are "
        "large, so little of it may matter much. Means over seeds.",
    )


def figures(facts: Mapping[str, list[Facts]]) -> list[Figure]:
    """By algorithm: accuracy by size, attention by step, losses, attention while training."""
    found: list[Figure] = []
    for algorithm in dict.fromkeys(map(algorithm_of, facts)):
        own = {arm: each for arm, each in facts.items() if algorithm_of(arm) == algorithm}
        trained = {arm: each for arm, each in own.items() if each[0]["losses"]}
        found += [
            _sizes(algorithm, own),
            _steps(algorithm, own),
            _losses(algorithm, trained),
            _watched(algorithm, trained, "accuracy", "share of right predecessors"),
            _watched(algorithm, trained, "overlap", "1 - total variation"),
        ]
    maps = {}
    for arm, each in facts.items():
        if arm.endswith(HINTS):
            for name, kind in ((arm, "network"), (f"{algorithm_of(arm)}, {EXACT}", "compiled")):
                maps[name] = _map(name, each[0]["shown"][kind])
    return [*found, HeatMaps("Attention in the second step on one graph", "network", maps)]


def algorithm_of(arm: str) -> str:
    """Of an arm's name."""
    return arm.split(",")[0]


def _mean(values: Sequence[float]) -> float | None:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else None


def _sizes(algorithm: str, facts: Mapping[str, list[Facts]]) -> Curves:
    lines = []
    for arm, own in facts.items():
        sizes = [float(size) for size in own[0]["sizes"]]
        lines.append(series(arm, sizes, [list(one["sizes"].values()) for one in own]))
    return Curves(
        f"Accuracy by size: {algorithm}", "nodes", "share of right predecessors", lines, BANDS
    )


def _steps(algorithm: str, facts: Mapping[str, list[Facts]]) -> Curves:
    lines = []
    for arm, own in facts.items():
        length = min(len(one["steps"]) for one in own)
        runs = [
            [math.nan if value is None else value for value in one["steps"][:length]] for one in own
        ]
        lines.append(series(arm, [float(t + 1) for t in range(length)], runs))
    return Curves(
        f"Attention by step of the algorithm: {algorithm}",
        "step",
        "1 - total variation",
        lines,
        f"From the compiled network's, the best head of a layer. {BANDS}",
    )


def _losses(algorithm: str, facts: Mapping[str, list[Facts]]) -> Curves:
    lines = [
        series(
            arm,
            [step for step, _ in own[0]["losses"]],
            [[loss for _, loss in one["losses"]] for one in own],
        )
        for arm, own in facts.items()
    ]
    return Curves(f"Loss: {algorithm}", "optimiser step", "output and hints, nats", lines, BANDS)


def _watched(algorithm: str, facts: Mapping[str, list[Facts]], name: str, y: str) -> Curves:
    lines = [
        series(
            arm,
            [look["step"] for look in own[0]["curve"]],
            [[look[name] for look in one["curve"]] for one in own],
        )
        for arm, own in facts.items()
    ]
    title = {"accuracy": "Accuracy while training", "overlap": "Attention while training"}[name]
    return Curves(f"{title}: {algorithm}", "optimiser step", y, lines, BANDS)


def _map(name: str, values: list[list[float]]) -> HeatMap:
    names = [str(node) for node in range(len(values))]
    return HeatMap(f"Attention of {name}", names, names, values, "sender", "receiver")
