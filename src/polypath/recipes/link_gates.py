"""Gates that are trained on what experts said of the links of one split, and what they find."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from polypath.files import replace_file
from polypath.graphs import mean_reciprocal_rank, ranks_among
from polypath.graphs.calibrate import PlattScaling
from polypath.graphs.link_moe import GateConfig, PairGate, ScoreMixture, blocks_of, pair_rows
from polypath.recipes.link_experts import HARD, KINDS, NEGATIVES, RANDOM, Study
from polypath.recipes.links import HITS, hit, measures
from polypath.recipes.trials import Facts
from polypath.routing import Routes, Routing, RoutingContext, record
from polypath.training.interrupt import Interrupted
from polypath.training.link_moe import fit_gate, validation_parts
from polypath.training.parts import Reporter

TAUGHT = 10
"""Of each link's hard negatives, how many a gate is trained on and chosen by."""
MEAN, GLOBAL, GATE, MLP = "mean of logits", "global ensemble", "Link-MoE", "MLP on heuristics"
HEAVY, ON_FEATURES = "Link-MoE, negatives count 10", "gate on features alone"
ON_STRUCTURE, ON_SCORES = "gate on heuristics alone", "gate on scores too"
OVER_PROBABILITIES = "Link-MoE over probabilities"
BEST, ORACLE = "best expert by validation", "best expert of each link"


@dataclass(frozen=True)
class Arm:
    """A mixture, and how it is trained.

    learnt: else all experts count the same. probabilities: of these, instead of logits. direct: no
    mixture, but the gate's own network to a logit.
    """

    gate: GateConfig
    negative_weight: float = 1.0
    learnt: bool = True
    probabilities: bool = False
    direct: bool = False


ARMS: Mapping[str, Arm] = {
    MEAN: Arm(GateConfig(()), learnt=False),
    GLOBAL: Arm(GateConfig(())),
    GATE: Arm(GateConfig()),
    HEAVY: Arm(GateConfig(), negative_weight=10.0),
    ON_FEATURES: Arm(GateConfig(("features",))),
    ON_STRUCTURE: Arm(GateConfig(("structure",))),
    ON_SCORES: Arm(GateConfig(("features", "structure", "scores"))),
    OVER_PROBABILITIES: Arm(GateConfig(), probabilities=True),
    MLP: Arm(GateConfig(("structure",)), direct=True),
}


class Direct(nn.Module):
    """A network like a gate's that gives the logit itself."""

    def __init__(self, features: int, structure: int, num_experts: int, gate: GateConfig) -> None:
        super().__init__()
        self.network = PairGate(blocks_of(features, structure, num_experts), 1, gate)

    def forward(self, rows: Tensor) -> Tensor:
        """(B, 1) from rows (B, D)."""
        return self.network(rows, RoutingContext())


@dataclass(frozen=True, eq=False)
class Rows:
    """What gates of one setting read: rows of positives and of negatives, (·, D).

    sizes: features, structure, experts. shape: of the negatives to test on. valid: experts' scores
    of all links to validate on, and of their negatives.
    """

    sizes: tuple[int, int, int]
    train: tuple[Tensor, Tensor]
    held: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    shape: torch.Size
    valid: tuple[Tensor, Tensor]

    def scores(self, expert: int) -> tuple[Tensor, Tensor]:
        """What an expert says of links to test (P,), and of their negatives, (M,) or (P, K)."""
        right, wrong = (rows[:, expert - self.sizes[2]].contiguous() for rows in self.test)
        return right, wrong.view(self.shape)

    def validation(self, expert: int) -> float:
        """The mean reciprocal rank that an expert gives links to validate on."""
        right, wrong = (scores[:, expert].contiguous() for scores in self.valid)
        if len(self.shape) == 2:
            wrong = wrong.view(len(right), -1)
        return mean_reciprocal_rank(ranks_among(right, wrong))


def rows_of(study: Study, setting: str, seed: int) -> Rows:
    """From what a split and its experts have left."""
    split, tensors = study.split(seed)
    x = study.source.read().x
    known = [study.scores(name, seed) for name in study.experts]

    def scores(part: str) -> Tensor:
        return torch.stack([own[part].flatten() for own in known], 1)

    def rows(part: str, at: Tensor | slice = slice(None)) -> Tensor:
        pairs, structure = tensors[part].flatten(1), tensors[f"structure.{part}"]
        return pair_rows(x, pairs[:, at], structure[at], scores(part)[at])

    valid, test = NEGATIVES[setting]
    (first, own), (rest, others) = validation_parts(split, study.training().share, seed)
    if setting == HARD:  # each link's own
        generator = torch.Generator().manual_seed(seed)
        taken = torch.randperm(study.hard, generator=generator)[:TAUGHT]
        own, others = ((at[:, None] * study.hard + taken).flatten() for at in (first, rest))
    features = 0 if x is None else x.shape[1]
    return Rows(
        (features, tensors["structure.valid"].shape[1], len(known)),
        (rows("valid", first), rows(valid, own)),
        (rows("valid", rest), rows(valid, others)),
        (rows("test"), rows(test)),
        tensors[test].shape[1:],
        (scores("valid"), scores(valid)),
    )


def on_gates(study: Study, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Trains every gate on what experts said, in both settings; see `in_setting`.

    shares: by kind of link, of the links to test.
    """
    began = time.perf_counter()
    kinds = study.split(seed)[1]["kinds"]
    facts: Facts = {"shares": by_kind(kinds.double().mean(1).tolist())}
    for setting in NEGATIVES:
        facts[setting] = in_setting(study, setting, kinds, seed, reporter)
    facts["seconds"] = time.perf_counter() - began
    ways = facts[RANDOM]["ways"]
    return facts, f"MRR {ways[GATE]['mrr']:.3f}, {ways[BEST]['mrr']:.3f} of the best expert"


def in_setting(study: Study, setting: str, kinds: Tensor, seed: int, reporter: Reporter) -> Facts:
    """What every expert and every arm finds of the links to test, and how the gate weighs experts.

    ways: see `found`. chosen: the expert that is best by validation. gates: by kind of link, the
    mean weight of each expert.
    """
    rows, experts = rows_of(study, setting, seed), list(study.experts)
    ways = {name: found(*rows.scores(place), kinds) for place, name in enumerate(experts)}
    chosen = max(range(len(experts)), key=rows.validation)
    ways |= {BEST: ways[experts[chosen]], ORACLE: oracle(rows, kinds)}
    weights = []
    for name in arms_on(rows):
        arm = ARMS[name]
        own, tries = as_probabilities(rows) if arm.probabilities else rows, []
        for start in range(study.gates if arm.learnt else 1):
            model = trained(arm, own, study, seed * study.gates + start)
            tries.append(measured(model, own, kinds))
            if name == GATE:
                routes = routed(model, own.test[0])
                weights.append(torch.stack([mean_weights(routes, kind) for kind in kinds]))
                if setting == RANDOM and seed == start == 0:
                    replace_file(study.routes, routes.save)
            reporter.skip(1)
            if reporter.stop():
                raise Interrupted
        ways[name] = averaged(tries)
    mean = torch.stack(weights).mean(0).tolist()
    gates = by_kind(dict(zip(experts, own, strict=True)) for own in mean)
    return {"ways": ways, "chosen": experts[chosen], "gates": gates}


def arms_on(rows: Rows) -> list[str]:
    """All, but that on features where nodes have none."""
    return [name for name in ARMS if rows.sizes[0] or name != ON_FEATURES]


def trained(arm: Arm, rows: Rows, study: Study, seed: int) -> nn.Module:
    """An arm's network on rows, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = (Direct if arm.direct else ScoreMixture)(*rows.sizes, arm.gate)
    if isinstance(model, ScoreMixture):
        model.fit_scales(*rows.train, calibrate=not arm.probabilities)
    else:
        model.network.standardise(torch.cat(rows.train))
    if arm.learnt:
        fit_gate(model, rows.train, rows.held, study.training(arm.negative_weight), seed)
    return model.eval()


def as_probabilities(rows: Rows) -> Rows:
    """The same with experts' probabilities in the place of their scores."""
    experts = rows.sizes[2]
    scaling = PlattScaling(experts)
    scaling.fit(*(part[:, -experts:] for part in rows.train))

    def changed(both: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        right, wrong = (
            torch.cat([part[:, :-experts], scaling(part[:, -experts:]).sigmoid()], 1)
            for part in both
        )
        return right, wrong

    parts = changed(rows.train), changed(rows.held), changed(rows.test)
    return replace(rows, train=parts[0], held=parts[1], test=parts[2])


@torch.no_grad()
def measured(model: nn.Module, rows: Rows, kinds: Tensor) -> Facts:
    """What a network on rows finds of the links to test."""
    right, wrong = (model(part)[:, 0] for part in rows.test)
    return found(right, wrong.view(rows.shape), kinds)


def found(right: Tensor, wrong: Tensor, kinds: Tensor) -> Facts:
    """`measures`, and as "kinds" the MRR of the links of each, NaN where there are none."""
    each = 1 / ranks_among(right, wrong)
    return measures(right, wrong) | {"kinds": by_kind(float(each[kind].mean()) for kind in kinds)}


def oracle(rows: Rows, kinds: Tensor) -> Facts:
    """The same where each link is ranked by the expert that ranks it best."""
    scores = [rows.scores(expert) for expert in range(rows.sizes[2])]
    each = 1 / torch.stack([ranks_among(*own) for own in scores]).amin(0)
    facts: Facts = {"mrr": float(each.mean())}
    for k in HITS:
        some = rows.shape[-1] > k
        hits = torch.stack([hit(*own, k) for own in scores]).any(0) if some else None
        facts[f"hits@{k}"] = None if hits is None else float(hits.double().mean())
    return facts | {"kinds": by_kind(float(each[kind].mean()) for kind in kinds)}


def routed(model: nn.Module, rows: Tensor) -> Routes:
    """How a mixture weighs experts, as the layer "gate"."""
    with record(nn.ModuleDict({"gate": model})) as routes, torch.no_grad():
        model(rows)
    return routes


def mean_weights(routes: Routes, kind: Tensor) -> Tensor:
    """(E,): of the pairs that a mask names; NaN where it names none."""
    own: Routing = routes["gate"][0][kind]
    return own.importance() / len(own) if len(own) else own.importance().fill_(torch.nan)


def by_kind(values: Iterable[Any]) -> dict[str, Any]:
    """By kind of link."""
    return dict(zip(KINDS, values, strict=True))


def averaged(tries: Sequence[Facts]) -> Facts:
    """The means of numbers by name, of names below names as well; None where they are."""
    first = tries[0]
    return {
        name: averaged([one[name] for one in tries])
        if isinstance(value, dict)
        else None
        if value is None
        else fmean(one[name] for one in tries)
        for name, value in first.items()
    }
