"""Experts of a routed model merged by what its routers did, then written small, then recovered.

Source: MC-SMoE (Li et al. 2023), arXiv 2310.01334.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.recipes.dense_hosts import (
    STRIDE,
    Clock,
    HostConfig,
    batches,
    read_bytes,
    scores,
    tiling,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.routing import losses, record, routed_layers
from polypath.surgery.banks import stacks
from polypath.surgery.calibration import Calibration, calibrate
from polypath.surgery.compress import shed, split_experts
from polypath.surgery.grouping import stable_rank
from polypath.surgery.merge import Merge, merge, merge_to_native
from polypath.surgery.recovery import Recovery, recover
from polypath.surgery.report import Size
from polypath.surgery.tuning import fit, next_token, training_only
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "surgery"
PAPER = "MC-SMoE (2024)"


@dataclass(frozen=True)
class Config(HostConfig):
    """The routed host that is trained first, how far it is shrunk and how it recovers."""

    data: Path | None = None
    """A text file or a folder of them; the Python standard library's own source by default."""
    recovery: int = 60
    """Steps in which what was made of the host is taught by it."""
    experts: int = 16
    """Experts in each layer, one of which serves a byte."""
    kept: int = 4
    """Experts that a layer keeps, on average; the first layer keeps all, as they are."""
    hidden: int = 64
    """Width of an expert."""
    rank: int = 8
    """Rank of compressed matrices of merged experts."""
    rows: float = 0.1
    """The part of the rows that these keep beside it."""
    calibration: int = 256
    """Windows on which routers are watched."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.recovery, self.calibration, self.rank) < 1 or not 0 < self.rows <= 1:
            raise InputError(
                f"recovery={self.recovery}, calibration={self.calibration}, rank={self.rank}, "
                f"rows={self.rows}; one at least, and a part up to 1"
            )
        if not 1 <= self.kept < self.experts or self.layers < 2:
            raise InputError(
                f"kept={self.kept} of experts={self.experts} in layers={self.layers}; "
                "1 ≤ kept < experts and two layers at least are needed"
            )

    def small(self) -> tuple[int, float]:
        """Rank and rows of all experts that take the bytes which merged ones take with theirs."""
        share = self.kept / self.experts
        return max(1, round(self.rank * share)), self.rows * share


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 60, "recovery": 10, "limit_mb": 0.5, "windows": 16}
    | {"calibration": 16},
    "gpu": {"dim": 512, "hidden": 512, "experts": 32, "kept": 8, "layers": 8, "rank": 32}
    | {"steps": 4000, "recovery": 1000},
}


def arms(config: Config) -> dict[str, Merge]:
    """How experts are merged."""
    method = Merge(config.kept, excluded=(0,))
    return {
        "M-SMoE": method,
        "uniform averages": replace(method, weighting="uniform"),
        "redirect only": replace(method, weighting="dominant"),
        "random groups": replace(method, similarity="random"),
        "no alignment": replace(method, align=False),
        "same in each layer": replace(method, layers="uniform"),
    }


def run(config: Config, run: Run) -> Outcome:
    """Train the hosts, merge, compress, recover, compare."""
    recoveries = len(arms(config)) + 4
    reports = (config.steps + recoveries * config.recovery) // STRIDE
    work = {"mc-smoe": partial(trial, config)}
    facts = trials(work, config.seeds, reports, run.folder / "trials", config.workers)
    own = facts["mc-smoe"]
    return conclude(run, facts, [table(own)], claims(own))


def trial(config: Config, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One host, everything that is made of it, and what each comes to on the test text."""
    began, host = time.perf_counter(), config.host()
    text = read_bytes(config.data, config.limit_mb)
    clock = Clock(reporter, host.batch * host.context)
    full = trained(config, seed, text["train"], clock)
    test = tiling(text["test"], host, config.windows)
    read = tiling(text["train"], host, config.calibration)[:, :-1]
    seen = calibrate(full, read.split(32))
    whole = {**scores(full, test), "parameters": Size.of(full).parameters}
    facts: Facts = {"full": whole, "stable rank before": ranks(full)}
    recovered = partial(_recovered, config, full, text["train"], test, seed, clock)

    for name, config_of in arms(config).items():
        model = copy.deepcopy(full)
        merge(model, seen, config_of)
        if name == "M-SMoE":
            facts["stable rank after"] = ranks(model)
            facts["same routes"] = same_routes(full, model, test[:4])
            merged = copy.deepcopy(model)
            facts["no distillation"] = recovered(copy.deepcopy(model), weight=0.0)
        facts[name] = recovered(model)
    facts["pruned"] = recovered(_pruned(full, seen, config))
    split_experts(merged, config.rank, excluded=(0,))
    facts["MC-SMoE"] = recovered(merged, kept=config.rows)
    rank, rows = config.small()
    alone = copy.deepcopy(full)
    split_experts(alone, rank, excluded=(0,))
    facts["compressed alone"] = recovered(alone, kept=rows)
    facts["seconds"] = time.perf_counter() - began
    return facts, f"M-SMoE {facts['M-SMoE']['bits']:.3f} bits per byte"


def trained(
    config: Config, seed: int, train: Tensor, after: Callable[[int, float], None]
) -> PreTrainedModel:
    """A host whose layers send each byte to one expert, in evaluation mode."""
    host = config.host()
    torch.manual_seed(seed)
    routed = RoutedLayers(
        num_experts=config.experts, k=1, hidden=config.hidden, kind="relu", gate="softmax"
    )
    model = attach(host.model(), routed)
    stream = batches(train, host, seed)

    def loss(step: int) -> Tensor:
        return next_token(model, next(stream)) + sum(losses(model).values())

    parts = list(model.parameters())
    with training_only(model, parts):
        fit(parts, loss, host.tuning(), after)
    return model.eval()


def _pruned(full: PreTrainedModel, seen: Calibration, config: Config) -> PreTrainedModel:
    """The most used experts of each layer as they are; bytes of the others choose anew."""
    model = copy.deepcopy(full)
    return merge_to_native(model, seen, Merge(config.kept, weighting="dominant", align=False))[0]


def _recovered(
    config: Config,
    full: PreTrainedModel,
    train: Tensor,
    test: Tensor,
    seed: int,
    clock: Callable[[int, float], None],
    model: PreTrainedModel,
    kept: float = 1.0,
    weight: float = 0.2,
) -> Facts:
    """Scores before and after a model is taught by the full one."""
    host = config.host()
    before = scores(model, test)
    recovery = Recovery(
        steps=config.recovery,
        learning_rate=host.learning_rate * config.rate,
        warmup=min(16, config.recovery // 5 + 1),
        weight=weight,
        kept=kept,
    )
    stream = batches(train, host, seed + 1000)
    recover(model, full, stream, _logits, _loss, recovery, clock)
    shed(model)
    after = scores(model, test)
    size = Size.of(model).parameters
    return {**after, "start": before["bits"], "accurate": before["accuracy"], "parameters": size}


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    return model(input_ids=batch[:, :-1], use_cache=False).logits


def _loss(logits: Tensor, batch: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def ranks(model: PreTrainedModel) -> float:
    """The mean stable rank of the inner matrices of all layers' experts but the first layer's."""
    found = []
    for layer in list(routed_layers(model).values())[1:]:
        bank: Any = getattr(layer.experts, "bank", layer.experts)
        inner = stacks(bank)[0]
        assert inner is not None
        found += [stable_rank(own) for own in inner]
    return fmean(found)


@torch.no_grad()
def same_routes(full: PreTrainedModel, merged: PreTrainedModel, windows: Tensor) -> float:
    """The part of choices of the first merged layer that are those of the full model.

    Its input is the full model's, for the layer before it keeps all experts.
    """
    found = []
    for model in (full, merged):
        with record(model) as routes:
            model(input_ids=windows[:, :-1], use_cache=False)
        found.append(list(routes.joined().values())[1].experts)
    return float((found[0] == found[1]).double().mean())


def table(facts: list[Facts]) -> Table:
    """Every model, means over seeds."""
    rows: list[list[Any]] = []
    for name, first in facts[0].items():
        if isinstance(first, Mapping):
            mean, low, high = estimate([one[name]["bits"] for one in facts])
            wide = "" if low is None or high is None else f"{low:.3f} … {high:.3f}"
            started = "start" in first
            rows.append(
                [
                    name,
                    round(fmean(one[name]["parameters"] for one in facts)),
                    fmean(one[name]["start"] for one in facts) if started else None,
                    100 * fmean(one[name]["accurate"] for one in facts) if started else None,
                    mean,
                    wide,
                    100 * fmean(one[name]["accuracy"] for one in facts),
                ]
            )
    return Table(
        "A routed model, and what became of it",
        [
            "model",
            "parameters",
            "bits before recovery",
            "% right before",
            "bits per byte",
            "95 % interval",
            "% right",
        ],
        rows,
        note="On the test text, means over seeds. Before: as merged, pruned or split into low rank "
        "and rows, all of which are still there. Pruned: bytes whose expert is gone choose anew.",
    )


def claims(facts: list[Facts]) -> list[Claim]:
    """What the paper says, seed by seed."""

    def of(arm: str, what: str = "bits") -> list[float]:
        return [one[arm][what] for one in facts]

    def points(arm: str, what: str = "accuracy") -> list[float]:
        return [100 * one[arm][what] for one in facts]

    def ahead(arm: str, said: str, source: str, what: str = "bits") -> Claim:
        return judge(
            f"{said} (bits per byte, difference)", source, arm, of("M-SMoE", what), of(arm, what)
        )

    none = [0.0] * len(facts)
    ablation = f"{PAPER}, ablations"
    return [
        judge(
            "Weighing by usage beats uniform averages before recovery by 5 points (% right)",
            ablation,
            "uniform averages",
            points("M-SMoE", "accurate"),
            points("uniform averages", "accurate"),
            better="higher",
            threshold=5.0,
        ),
        ahead("uniform averages", "It stays ahead after recovery", ablation),
        judge(
            "After recovery it is within 4 points of the full model (% right, difference)",
            f"{PAPER}, table 2",
            "full",
            points("M-SMoE"),
            points("full"),
            better="higher",
            threshold=-4.0,
        ),
        ahead("redirect only", "Averages beat the most used expert alone", "control"),
        ahead("random groups", "Grouping by scores beats random groups", ablation),
        ahead("no alignment", "Aligning hidden units helps", ablation),
        ahead("same in each layer", "One budget for all layers helps", ablation),
        ahead("pruned", "Merging beats pruning", f"{PAPER}, table 2"),
        ahead("no distillation", "The full model's logits help recovery", ablation),
        judge(
            "Merged and compressed beats compressed alone at equal bytes (bits per byte)",
            f"{PAPER}, compress only",
            "compressed alone",
            of("MC-SMoE"),
            of("compressed alone"),
        ),
        judge(
            "Merging lowers the stable rank of experts (relative change)",
            f"{PAPER}, figure of stable ranks",
            "before",
            [one["stable rank after"] / one["stable rank before"] - 1 for one in facts],
            none,
        ),
        judge(
            "Routers choose as before at the same input (share of choices, above 0.999)",
            f"{PAPER}, section 3.2",
            "full",
            [one["same routes"] for one in facts],
            none,
            better="higher",
            threshold=0.999,
        ),
    ]
