"""Training and evaluation of models that score tails for queries on a knowledge graph.

A model is called with edges, heads, relations and tails, as `NBFNet` is.
Shapes: T facts, B facts of a batch, K negatives of each, N entities.
Source: NBFNet (Zhu et al. 2021), training and evaluation, as the authors' code has them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.knowledge_splits import KnowledgeSplit
from polypath.graphs.passing import Incoming
from polypath.graphs.ranking import expected_hits, filtered_ranks, mean_reciprocal_rank
from polypath.graphs.triples import KnowledgeGraph, Known, Removal, with_inverses
from polypath.training import distribution
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter


@dataclass(frozen=True)
class TripleTraining:
    """How a model learns facts.

    batch: facts of a step. negatives: of each. rate: Adam's. temperature: of the weights of
    negatives, which are the softmax of their scores; None for equal weights. removal: of a batch's
    positives and negatives, no edge between their ends is in the graph ("pairs"), or none that says
    the same ("facts"), or all are ("none"). looks: validations, spread over the epochs. steps: at
    most so many in an epoch; None for all facts.
    """

    epochs: int = 20
    batch: int = 64
    negatives: int = 32
    rate: float = 5e-3
    temperature: float | None = 0.5
    removal: Literal["pairs", "facts", "none"] = "pairs"
    looks: int = 10
    steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("epochs", "batch", "negatives", "looks", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value}; at least 1 is needed")
        for name in ("rate", "temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"{name}={value}; a positive number is right")


@dataclass(frozen=True, eq=False)
class Batch:
    """A question a fact: heads, relations (B,), and tails (B, 1 + K), the true one first."""

    heads: Tensor
    relations: Tensor
    tails: Tensor

    def part(self, which: int, parts: int) -> Batch:
        """One of several parts of about the same size."""
        own = torch.arange(len(self.heads)).tensor_split(parts)[which]
        return Batch(self.heads[own], self.relations[own], self.tails[own])

    def to(self, device: torch.device) -> Batch:
        return Batch(*(part.to(device) for part in (self.heads, self.relations, self.tails)))


@dataclass(frozen=True, eq=False)
class Ranking:
    """Filtered ranks of the true tails of all questions, and how many rivals each had; (2 T,)."""

    ranks: Tensor
    rivals: Tensor

    @property
    def mrr(self) -> float:
        return mean_reciprocal_rank(self.ranks)

    def hits(self, k: int) -> float:
        """The share of ranks of k at most."""
        return float((self.ranks <= k).double().mean())

    def expected_hits(self, k: int = 10, negatives: int = 50) -> float:
        """Hits@k against so many rivals, see `expected_hits`."""
        return expected_hits(self.ranks, self.rivals, k, negatives)

    def facts(self) -> dict[str, float]:
        """All measures by name."""
        named = {f"hits@{k}": self.hits(k) for k in (1, 3, 10)}
        named |= {"mr": float(self.ranks.mean()), "mrr": self.mrr}
        return named | {"hits@10 of 50": self.expected_hits()}


@dataclass
class TripleFit:
    """The best look, from epoch 1, its mean reciprocal rank, and the way there."""

    epoch: int = 0
    valid: float = -math.inf
    losses: list[float] = field(default_factory=list)
    valids: list[float] = field(default_factory=list)
    seconds: float = 0.0


def self_adversarial_loss(scores: Tensor, temperature: float | None = 0.5) -> Tensor:
    """(B,): binary cross-entropy of the first column and the weighted ones of the others, halved.

    scores: (B, 1 + K) logits. The weights sum to 1: softmax(negatives / temperature), of which no
    gradient is taken, or 1 / K for None.
    Source: RotatE (Sun et al. 2019), equation 5; NBFNet's code, which divides by 1 + the weights.
    """
    positives, negatives = scores[:, 0], scores[:, 1:]
    if temperature is None:
        weights = torch.full_like(negatives, 1 / max(negatives.shape[1], 1))
    else:
        weights = (negatives.detach() / temperature).softmax(1)
    losses = F.softplus(-positives) + (weights * F.softplus(negatives)).sum(1)
    return losses / (1 + weights.sum(1))


def fit_triples(
    model: nn.Module,
    split: KnowledgeSplit,
    training: TripleTraining,
    seed: int,
    reporter: Reporter | None = None,
) -> TripleFit:
    """Train on `split.lessons`, leave the model in its best state by validation.

    Half of a batch's facts are asked for their tails, half for their heads. Ranks start from rank
    0's weights and share the questions of a batch; all take out the edges of the whole batch. The
    reporter hears of each epoch: its loss, and facts a second.
    Raises InputError for a loss that is not finite; Interrupted where the reporter says stop.
    """
    graph, fit, began = split.train, TripleFit(), time.perf_counter()
    distribution.replicate(model)
    removal, valid_known = Removal(graph.edges()), split.known()[0]
    known = Known(graph, graph.facts, split.lessons)
    optimiser = torch.optim.Adam(model.parameters(), training.rate)
    generator = torch.Generator().manual_seed(seed)
    every, state = -(-training.epochs // training.looks), _copy(model)
    for epoch in range(1, training.epochs + 1):
        start, count, total = time.perf_counter(), 0, 0.0
        model.train()
        for batch in batches(split, known, training, generator):
            total += step(model, optimiser, batch, removal, training) * len(batch.heads)
            count += len(batch.heads)
        fit.losses.append(total / count)
        if not math.isfinite(total):
            raise InputError(f"the loss is {total} in epoch {epoch}; a lower rate may help")
        if epoch % every == 0 or epoch == training.epochs:
            looked = rank_tails(model, graph, split.valid, valid_known)
            fit.valids.append(distribution.from_main(looked.mrr))
            if fit.valids[-1] > fit.valid:
                fit.valid, fit.epoch, state = fit.valids[-1], epoch, _copy(model)
        if reporter is not None:
            reporter.advance(fit.losses[-1], count / (time.perf_counter() - start))
        if distribution.any_rank(reporter is not None and reporter.stop()):
            raise Interrupted
    model.load_state_dict(state)
    fit.seconds = time.perf_counter() - began
    return fit


def batches(
    split: KnowledgeSplit, known: Known, training: TripleTraining, generator: torch.Generator
) -> Iterator[Batch]:
    """An epoch's facts in a new order, each with its strict negatives."""
    count = len(split.train.relations)
    order = torch.randperm(len(split.lessons), generator=generator)
    for own in order.split(training.batch)[: training.steps]:
        facts = split.lessons[own]
        both = with_inverses(facts, count)
        half = len(facts) // 2
        heads, relations, tails = torch.cat([both[:half], both[len(facts) + half :]]).unbind(1)
        wrong = known.negatives(heads, relations, training.negatives, generator)
        yield Batch(heads, relations, torch.cat([tails[:, None], wrong], 1))


def step(
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Batch,
    removal: Removal,
    training: TripleTraining,
) -> float:
    """One step on a batch, whose questions ranks share; its mean loss, the same on each."""
    device = _device(model)
    edges = seen(removal, batch, training).to(device)
    own = batch.part(distribution.rank(), distribution.world()).to(device)
    scores = model(edges, own.heads, own.relations, own.tails)
    share = self_adversarial_loss(scores, training.temperature).sum() / len(batch.heads)
    optimiser.zero_grad()
    share.backward()
    distribution.sum_gradients(model)
    optimiser.step()
    return float(distribution.summed(share))


def seen(removal: Removal, batch: Batch, training: TripleTraining) -> Incoming:
    """The message graph of a batch."""
    if training.removal == "pairs":
        return removal.pairs(batch.heads, batch.tails)
    if training.removal == "facts":
        return removal.facts(batch.heads, batch.relations, batch.tails)
    return removal.edges


@torch.no_grad()
def rank_tails(
    model: nn.Module, graph: KnowledgeGraph, facts: Tensor, known: Known, batch: int = 64
) -> Ranking:
    """How high the true ends of facts (T, 3) rank among all entities that are not known to fit.

    Messages are the graph's facts. First all tails are asked for, then all heads; a question that
    comes again is asked once.
    """
    model.eval()
    device = _device(model)
    edges = graph.edges().to(device)
    every = with_inverses(facts, len(graph.relations))
    asked, places = every[:, :2].unique(dim=0, return_inverse=True)
    ranks, rivals = torch.empty(len(every)).double(), torch.empty_like(places)
    for low in range(0, len(asked), batch):
        heads, relations = asked[low : low + batch].unbind(1)
        scores = model(edges, heads.to(device), relations.to(device)).cpu()
        fits = known.mask(heads, relations)
        own = ((places >= low) & (places < low + batch)).nonzero()[:, 0]
        rows = places[own] - low
        ranks[own] = filtered_ranks(scores[rows], every[own, 2], fits[rows])
        rivals[own] = (~fits[rows]).sum(1)
    return Ranking(ranks, rivals)


def _device(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
