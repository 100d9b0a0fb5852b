"""A dense model's layers split into experts, their routers taught by the layer that they were.

Source: FactorLLM (Zhao et al. 2024), arXiv 2408.11855.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.recipes.dense_hosts import (
    STRIDE,
    Clock,
    HostConfig,
    batches,
    language_steps,
    pretrain,
    read_bytes,
    scores,
    tiling,
)
from polypath.recipes.trials import Facts, conclude, trials
from polypath.report import Claim, Outcome, Table, estimate, judge
from polypath.routing import HardGate, MoE, Routing, RoutingContext, record, routed_layers
from polypath.surgery.convert import convert
from polypath.surgery.factorllm import FactorLLM, PriorApproximate, prior_label
from polypath.surgery.slices import outputs
from polypath.surgery.tuning import FactorLoss, teachers_of, tune_factored
from polypath.training.parts import Reporter
from polypath.training.run import Run

DOMAIN = "surgery"
PAPER = "FactorLLM (2024)"
EXPERTS, ACTIVE = 4, (2, 1)


@dataclass(frozen=True)
class Config(HostConfig):
    """The host that is trained first, and how long what is made of it is tuned."""

    data: Path | None = None
    """A text file or a folder of them; the Python standard library's own source by default."""
    steps: int = 500
    """Steps of the dense model."""
    tuning: int = 100
    """Steps of each converted model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tuning < 1 or self.hidden % EXPERTS:
            raise InputError(
                f"tuning={self.tuning}, hidden={self.hidden}; a step at least, and a multiple of "
                f"{EXPERTS} experts are needed"
            )


PRESETS: dict[str, dict[str, Any]] = {
    "quick": {"seeds": 2, "steps": 60, "tuning": 20, "limit_mb": 0.5, "windows": 16},
    "gpu": {"dim": 512, "hidden": 2048, "layers": 8, "steps": 4000, "tuning": 1000},
}

ARMS: dict[str, FactorLoss] = {
    "random routers": FactorLoss(route=0.0, balance=0.0),
    "straight-through": FactorLoss(route=0.0, balance=0.01),
    "PA": FactorLoss(),
    "PA, subsets": FactorLoss(label="subset"),
}
"""How routers are taught; all are tuned for as many steps."""


def run(config: Config, run: Run) -> Outcome:
    """Train the hosts, convert and tune, compare."""
    reports = (config.steps + (1 + len(ACTIVE) * len(ARMS)) * config.tuning) // STRIDE
    work = {"factorllm": partial(trial, config)}
    facts = trials(work, config.seeds, reports, run.folder / "trials", config.workers)
    return conclude(run, facts, [table(facts["factorllm"])], claims(facts["factorllm"]))


def trial(config: Config, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """One host, everything that is made of it, and what each comes to on the test text."""
    began, host = time.perf_counter(), config.host()
    text = read_bytes(config.data, config.limit_mb)
    clock = Clock(reporter, host.batch * host.context)
    dense = pretrain(host, text["train"], seed, clock)
    test = tiling(text["test"], host, config.windows)
    facts: Facts = {"dense": scores(dense, test)}
    longer = copy.deepcopy(dense)
    stream = batches(text["train"], host, seed + 1000)
    language_steps(longer, stream, host.tuning(config.tuning, config.rate), clock)
    facts["dense, tuned"] = scores(longer, test)
    for k in ACTIVE:
        for arm, loss in ARMS.items():
            facts[f"{arm}, k = {k}"] = converted(config, dense, k, arm, loss, text, seed, clock)
    facts["exact"] = exact(dense, test[:8])
    facts["seconds"] = time.perf_counter() - began
    return facts, f"PA {facts['PA, k = 2']['bits']:.3f} bits per byte"


def converted(
    config: Config,
    dense: PreTrainedModel,
    k: int,
    arm: str,
    loss: FactorLoss,
    text: Mapping[str, Tensor],
    seed: int,
    clock: Callable[[int, float], None],
) -> Facts:
    """One way to teach the routers: scores at the start, after tuning, and with the label's."""
    host = config.host()
    test = tiling(text["test"], host, config.windows)
    model = copy.deepcopy(dense)
    teachers, kind = teachers_of(model)
    convert(model, FactorLLM(EXPERTS, k, seed=seed))
    if arm == "straight-through":
        for layer in routed_layers(model).values():
            layer.router.gate = HardGate(float(EXPERTS // k), through=True)
    start = scores(model, test)
    stream = batches(text["train"], host, seed + 1000)
    tuning = host.tuning(config.tuning, config.rate)
    tune_factored(model, teachers, kind, stream, tuning, loss, clock)
    teach = {f"model.layers.{i}.mlp": weights for i, weights in teachers.items()}
    label = PriorApproximate(teach, kind, k, loss.label)
    facts = scores(model, test)
    facts["start"] = start["bits"]
    facts["agreement"] = agreement(model, label, test[:16])
    facts["label's choice"] = labelled(model, label, test)
    return facts


@torch.no_grad()
def agreement(model: PreTrainedModel, label: PriorApproximate, windows: Tensor) -> float:
    """The part of the label's experts that routers choose too, over layers and things."""
    shares: list[float] = []

    def compare(name: str) -> Any:
        def hook(layer: Any, args: tuple, y: Any) -> None:
            rows = args[0].flatten(0, -2)
            wanted = _label(label, name, layer, rows)
            chosen = layer.last.experts
            shares.append(float(wanted.gather(1, chosen).mean()))

        return hook

    handles = [
        layer.register_forward_hook(compare(name)) for name, layer in routed_layers(model).items()
    ]
    model(input_ids=windows[:, :-1], use_cache=False)
    for handle in handles:
        handle.remove()
    return fmean(shares)


def _label(label: PriorApproximate, name: str, layer: Any, rows: Tensor) -> Tensor:
    every = outputs(layer.experts.weights(), label.kind, rows)
    teacher = outputs(label.teachers[name], label.kind, rows)[:, 0]
    return prior_label(every, teacher, label.k, label.label)


def labelled(model: PreTrainedModel, label: PriorApproximate, windows: Tensor) -> float:
    """Bits per byte when the label itself chooses; no way to run a model, for it runs all."""
    layers = routed_layers(model)
    names = {id(layer): name for name, layer in layers.items()}

    def choose(layer: MoE, rows: Tensor, context: RoutingContext) -> Routing:
        wanted = _label(label, names[id(layer)], layer, rows)
        experts = wanted.topk(label.k, dim=1).indices
        weights = torch.full(experts.shape, float(EXPERTS // label.k))
        return Routing(wanted.float(), experts, weights)

    for layer in layers.values():
        layer.override = choose
    found = scores(model, windows)["bits"]
    for layer in layers.values():
        layer.override = None
    return found


@torch.no_grad()
def exact(dense: PreTrainedModel, windows: Tensor) -> float:
    """How far logits move when all experts serve, relative to the largest."""
    model = copy.deepcopy(dense)
    convert(model, FactorLLM(EXPERTS, EXPERTS, "random"))
    before = dense(input_ids=windows[:, :-1]).logits
    with record(model):
        after = model(input_ids=windows[:, :-1]).logits
    return float((after - before).abs().max() / before.abs().max())


def table(facts: list[Facts]) -> Table:
    """Every model, means over seeds."""
    rows: list[list[Any]] = []
    for name, first in facts[0].items():
        if isinstance(first, dict):
            mean, low, high = estimate([one[name]["bits"] for one in facts])
            wide = "" if low is None or high is None else f"{low:.3f} … {high:.3f}"
            rows.append(
                [
                    name,
                    mean,
                    wide,
                    fmean(one[name]["accuracy"] / one["dense"]["accuracy"] for one in facts),
                    *(
                        fmean(one[name][column] for one in facts) if column in first else None
                        for column in ("start", "agreement", "label's choice")
                    ),
                    *_cost(name),
                ]
            )
    columns = ["model", "bits per byte", "95 % interval", "of dense accuracy", "at the start"]
    columns += ["agrees with label", "label chooses", "feed-forward work"]
    return Table(
        "A dense model, and what became of it",
        columns,
        rows,
        note="On the test text, means over seeds. Of dense accuracy: bytes told right, over those "
        "of the dense model. Label chooses: bits per byte when the k experts nearest to the dense "
        "layer serve, which would need all of them. Work: multiply-adds, over those of the dense "
        "feed-forward layer, the router's left out.",
    )


def _cost(name: str) -> list[float]:
    return [1.0 if "k =" not in name else int(name[-1]) / EXPERTS]


def claims(facts: list[Facts]) -> list[Claim]:
    """What the paper says, seed by seed."""

    def of(arm: str, what: str = "bits") -> list[float]:
        return [one[arm][what] for one in facts]

    def kept(arm: str) -> list[float]:
        return [one[arm]["accuracy"] / one["dense"]["accuracy"] for one in facts]

    none = [0.0] * len(facts)
    judged = [
        judge(
            "The split is exact: with all experts logits are the dense model's (relative, < 1e-5)",
            f"{PAPER}, section 3",
            "dense",
            [one["exact"] for one in facts],
            none,
            threshold=1e-5,
        )
    ]
    for k in ACTIVE:
        judged += [
            judge(
                f"k = {k}: taught routers beat random ones (bits per byte, difference)",
                f"{PAPER}, ablation",
                "random routers",
                of(f"PA, k = {k}"),
                of(f"random routers, k = {k}"),
            ),
            judge(
                f"k = {k}: they beat routers that the task alone teaches (bits per byte)",
                "this project's control",
                "straight-through",
                of(f"PA, k = {k}"),
                of(f"straight-through, k = {k}"),
            ),
            judge(
                f"k = {k}: a label for whole subsets is better (bits per byte, difference)",
                "released code, unused",
                "PA",
                of(f"PA, subsets, k = {k}"),
                of(f"PA, k = {k}"),
            ),
            judge(
                f"k = {k}: above 85 % of the dense model's quality (accuracy, ratio)",
                f"{PAPER}, abstract",
                "dense",
                kept(f"PA, k = {k}"),
                none,
                better="higher",
                threshold=0.85,
            ),
            judge(
                f"k = {k}: routers choose as the label does (share, above chance {k / EXPERTS:g})",
                f"{PAPER}, section 3",
                "chance",
                of(f"PA, k = {k}", "agreement"),
                none,
                better="higher",
                threshold=k / EXPERTS,
            ),
        ]
    return [
        *judged,
        judge(
            "Two experts are better than one (bits per byte, difference)",
            f"{PAPER}, ablation",
            "k = 1",
            of("PA, k = 2"),
            of("PA, k = 1"),
        ),
    ]
