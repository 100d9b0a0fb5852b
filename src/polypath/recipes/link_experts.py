"""One split of a graph's links, and what each expert that is trained on it says of the others."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import (
    Adjacency,
    LinkSplit,
    hard_negatives,
    shared_neighbours,
    shortest_path,
    split_links,
)
from polypath.graphs.pair_features import pair_features
from polypath.recipes.links import (
    TEST,
    VALID,
    Links,
    Source,
    measures,
    parameters,
    scores_of,
    system,
)
from polypath.recipes.trials import Facts
from polypath.training.checkpoint import load_state, save_state
from polypath.training.link_moe import GateTraining, validation_parts
from polypath.training.links import LinkTask
from polypath.training.parts import Reporter

RANDOM, HARD = "random negatives", "hard negatives"
NEGATIVES = {RANDOM: ("valid_negatives", "test_negatives"), HARD: ("hard_valid", "hard_test")}
"""By setting, the negatives of links to validate on and to test on."""
FEWEST = 10
"""Links to test have to be more."""
PARTS = ("train", "valid", "test", "valid_negatives", "test_negatives")
PAIRS = (*PARTS[1:], *NEGATIVES[HARD])
BINS = {"CN": (0, 1, 2), "SP": (2, 3, 4)}
"""Kinds of links, by shared neighbours and by the shortest path; the last or more."""
KINDS = [f"{name}{' ≥' if n == own[-1] else ''} {n}" for name, own in BINS.items() for n in own]


@dataclass(frozen=True)
class Study:
    """A graph, and what is trained on each of its splits.

    folder: where splits and experts leave what gates read. hard: negatives of each link. gates: how
    many times each gate begins anew; what these measure is averaged. routes: where the first gate
    of the first split leaves its routing of the links to test.
    """

    source: Source
    folder: Path
    routes: Path
    experts: Sequence[str]
    epochs: int
    hard: int
    gates: int
    gate_epochs: int

    def training(self, negative_weight: float = 1.0) -> GateTraining:
        return GateTraining(self.gate_epochs, negative_weight=negative_weight)

    def split(self, seed: int) -> tuple[LinkSplit, dict[str, Tensor]]:
        """A split, and by name: all pairs, their structure, the kinds of links to test."""
        tensors, facts = load_state(self.folder / f"split-{seed}.safetensors")
        return LinkSplit(facts["nodes"], *(tensors[name] for name in PARTS)), tensors

    def scores(self, expert: str, seed: int) -> dict[str, Tensor]:
        """What an expert says of the pairs of each part."""
        return load_state(self.folder / f"{expert}-{seed}.safetensors")[0]


def on_split(study: Study, seed: int, reporter: Reporter) -> tuple[Facts, str]:
    """Draws a split and hard negatives; keeps them with what the training graph says of them.

    Raises InputError for few links.
    """
    began = time.perf_counter()
    graph = study.source.read()
    whole, generator = Adjacency.of(graph), torch.Generator().manual_seed(seed)
    split = split_links(whole, generator, VALID, TEST)
    count = split.test.shape[1]
    if count <= FEWEST:
        raise InputError(f"{count} links to test; more than {FEWEST} are needed, for Hits@10")
    tensors = {name: getattr(split, name) for name in PARTS}
    for name in ("valid", "test"):
        tensors[f"hard_{name}"] = hard_negatives(
            split.graph, tensors[name], study.hard, generator, whole, graph.x
        )
    pairs = [tensors[name].flatten(1) for name in PAIRS]
    structure = pair_features(split.graph, torch.cat(pairs, 1))  # at once, as nodes come again
    for name, own in zip(PAIRS, structure.split([one.shape[1] for one in pairs]), strict=True):
        tensors[f"structure.{name}"] = own
    far = shared_neighbours(split.graph, split.test), shortest_path(split.graph, split.test)
    tensors["kinds"] = torch.stack(
        [
            values.clamp_max(own[-1]) == n
            for values, own in zip(far, BINS.values(), strict=True)
            for n in own
        ]
    )
    save_state(study.folder / f"split-{seed}.safetensors", tensors, {"nodes": whole.num_nodes})
    reporter.skip(1)
    return {"seconds": time.perf_counter() - began}, f"{count} links to test"


def on_expert(
    study: Study, name: str, more: bool, seed: int, reporter: Reporter
) -> tuple[Facts, str]:
    """Trains an expert; keeps its scores of all pairs, tells its measures by setting.

    more: instead, it is trained on the links too that gates are trained on, and chosen by those
    that they are chosen by; its scores are not kept.
    """
    began = time.perf_counter()
    split, tensors = study.split(seed)
    x = study.source.read().x
    if more:
        split = with_more(split, study.training().share, seed)
    links = Links(LinkTask(split, x, None), study.epochs, study.source.published)
    predictor = system(name)(links, seed, reporter)
    parts = [one for one in PAIRS if "test" in one] if more else PAIRS
    scores = {one: scores_of(predictor, split, x, tensors[one]) for one in parts}
    if not more:
        save_state(study.folder / f"{name}-{seed}.safetensors", scores, {})
    found = {
        setting: measures(scores["test"], scores[negatives])
        for setting, (_, negatives) in NEGATIVES.items()
    }
    facts = {
        "seconds": time.perf_counter() - began,
        "parameters": parameters(predictor),
        "measures": found,
    }
    return facts, f"MRR {found[RANDOM]['mrr']:.3f}, {found[HARD]['mrr']:.3f} among hard negatives"


def with_more(split: LinkSplit, share: float, seed: int) -> LinkSplit:
    """The split that trains on what a gate is trained on, too, and validates on the rest."""
    (first, _), (rest, negatives) = validation_parts(split, share, seed)
    return replace(
        split,
        train=torch.cat([split.train, split.valid[:, first]], 1),
        valid=split.valid[:, rest],
        valid_negatives=split.valid_negatives[:, negatives],
    )
