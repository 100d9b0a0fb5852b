"""Training of link predictors: a split in, its best state by validation and one test out.

Shapes: N nodes, F features, B pairs.
Source: NCN (Wang et al. 2024), training loop; OGB (Hu et al. 2020), evaluation.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.graphs.adjacency import Adjacency
from polypath.graphs.predictors import LinkPredictor, link_scores
from polypath.graphs.ranking import hits_at, mean_reciprocal_rank, ranks_among
from polypath.graphs.splits import LinkSplit, sample_negatives
from polypath.training import distribution
from polypath.training.interrupt import Interrupted
from polypath.training.parts import Reporter


@dataclass(frozen=True, eq=False)
class LinkTask:
    """Links to learn, and how rankings of them are measured.

    x: (N, F) features, (N,) ids or None. hits: K of Hits@K; None for the mean reciprocal rank of
    each positive among all negatives. valid_edges: the edges to validate on are in the graph when
    the test pairs are scored.
    """

    split: LinkSplit
    x: Tensor | None = None
    hits: int | None = 100
    valid_edges: bool = False

    def measure(self, positives: Tensor, negatives: Tensor) -> float:
        """Hits@K, or the mean reciprocal rank, of scores (P,) and (M,)."""
        if self.hits is not None:
            return hits_at(positives, negatives, self.hits)
        return mean_reciprocal_rank(ranks_among(positives, negatives))

    @property
    def test_graph(self) -> Adjacency:
        """The graph on which test pairs are scored."""
        split = self.split
        return split.seen(split.train, split.valid) if self.valid_edges else split.graph


@dataclass(frozen=True)
class LinkTraining:
    """How a link predictor is trained.

    encoder_rate, rate: Adam's, of the parameters below `encoder` and of all others. removal: the
    edges of a batch's positives are not in the graph on which the batch is scored. clip: the
    greatest gradient norm, of either part. patience: epochs without a better validation to stop
    after; None for all epochs.
    """

    epochs: int = 100
    batch: int = 1024
    encoder_rate: float = 1e-3
    rate: float = 1e-3
    removal: bool = True
    clip: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name}={value}; at least {least} is needed")
        for name in ("encoder_rate", "rate", "clip"):
            value = getattr(self, name)
            # An encoder may rest; all else has to move.
            if value is not None and (value < 0 or (value == 0 and name != "encoder_rate")):
                raise InputError(f"{name}={value}; a positive number is right")


@dataclass
class LinkFit:
    """What training left: the best epoch, from 1, its validation, the test, and the way there."""

    epoch: int = 0
    valid: float = -math.inf
    test: float = math.nan
    losses: list[float] = field(default_factory=list)
    valids: list[float] = field(default_factory=list)
    seconds: float = 0.0


def fit_links(
    predictor: nn.Module,
    task: LinkTask,
    training: LinkTraining,
    seed: int,
    reporter: Reporter | None = None,
    before_epoch: Callable[[int], None] | None = None,
) -> LinkFit:
    """Train a `LinkPredictor`, leave it in its best state by validation, in evaluation mode.

    An epoch draws one negative for each training edge, then goes over both in batches of the same
    order; a last batch that is not full is left out, unless it is the only one. The test pairs are
    scored once, at the end. before_epoch: called with 0, 1, … The reporter hears of each epoch.
    Ranks start from rank 0's weights and share the pairs of a batch; all take out the edges of the
    whole batch. Without dropout and sampling they give one process's losses, to rounding; masks and
    samples each rank draws for its own pairs, from the same seed.
    Raises InputError for a loss that is not finite; Interrupted where the reporter says stop.
    """
    fit, began = LinkFit(), time.perf_counter()
    device = next(predictor.parameters()).device
    graph, x = task.split.graph, None if task.x is None else task.x.to(device)
    distribution.replicate(predictor)
    state = _copy(predictor)
    optimiser = torch.optim.Adam(
        [
            {"params": own, "lr": rate}
            for own, rate in zip(
                _parts(predictor), (training.encoder_rate, training.rate), strict=True
            )
            if own
        ]
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for epoch in range(training.epochs):
            if before_epoch is not None:
                before_epoch(epoch)
            start = time.perf_counter()
            loss = _epoch(predictor, task, training, graph, x, optimiser, generator)
            if not math.isfinite(loss):
                raise InputError(f"the loss is {loss} in epoch {epoch + 1}; a lower rate may help")
            valid = distribution.from_main(evaluate(predictor, task, x, graph, "valid"))
            fit.losses.append(loss)
            fit.valids.append(valid)
            if valid > fit.valid:
                fit.valid, fit.epoch, state = valid, epoch + 1, _copy(predictor)
            if reporter is not None:
                seen = task.split.train.shape[1] / (time.perf_counter() - start)
                reporter.advance(loss, seen)
            if distribution.any_rank(reporter is not None and reporter.stop()):
                raise Interrupted
            if training.patience is not None and epoch + 1 - fit.epoch >= training.patience:
                break
    predictor.load_state_dict(state)
    predictor.eval()
    fit.test = distribution.from_main(evaluate(predictor, task, x, task.test_graph, "test"))
    fit.seconds = time.perf_counter() - began
    return fit


def evaluate(
    predictor: nn.Module, task: LinkTask, x: Tensor | None, graph: Adjacency, part: str
) -> float:
    """The task's measure on "valid" or "test"."""
    pairs = getattr(task.split, part), getattr(task.split, f"{part}_negatives")
    scores = link_scores(predictor, graph, x, torch.cat(pairs, 1)).cpu()
    return task.measure(*scores.split([each.shape[1] for each in pairs]))


def _epoch(
    predictor: nn.Module,
    task: LinkTask,
    training: LinkTraining,
    graph: Adjacency,
    x: Tensor | None,
    optimiser: torch.optim.Optimizer,
    generator: torch.Generator,
) -> float:
    """The mean loss of an epoch's batches, the same on every rank."""
    predictor.train()
    shares = []
    for batch in batches(task.split.train, graph, training.batch, generator):
        seen = graph.without(batch[0]) if training.removal else graph
        share = _share(predictor, seen, x, batch)
        optimiser.zero_grad()
        share.backward()
        distribution.sum_gradients(predictor)
        if training.clip is not None:
            for own in _parts(predictor):
                nn.utils.clip_grad_norm_(own, training.clip)
        optimiser.step()
        shares.append(share.detach())
    return float(distribution.summed(torch.stack(shares)).mean())


def _share(
    predictor: nn.Module, seen: Adjacency, x: Tensor | None, batch: tuple[Tensor, Tensor]
) -> Tensor:
    """This rank's share of the loss of a batch's positives and negatives, each (2, B)."""
    device, count = next(predictor.parameters()).device, batch[0].shape[1]
    own = [pairs.tensor_split(distribution.world(), 1)[distribution.rank()] for pairs in batch]
    pairs = torch.cat(own, 1).to(device)
    logits = cast(LinkPredictor, predictor).score(seen.to(device), x, pairs)
    right, wrong = logits.split([part.shape[1] for part in own])
    return F.softplus(-right).sum() / count + F.softplus(wrong).sum() / count


def batches(
    positives: Tensor, graph: Adjacency, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positives (2, B) and as many negatives of the graph, in a new order; full batches only.

    All are one batch where there are fewer than `size`.
    """
    count = positives.shape[1]
    negatives = sample_negatives(graph, count, generator)
    order = torch.randperm(count, generator=generator)
    for own in order.split(min(size, count)):
        if len(own) == min(size, count):
            yield positives[:, own], negatives[:, own]


def _parts(predictor: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters that learn: those of the encoder, and the others."""
    learnt = [(name, p) for name, p in predictor.named_parameters() if p.requires_grad]
    encoder = [p for name, p in learnt if name.split(".")[0] == "encoder"]
    return encoder, [p for name, p in learnt if name.split(".")[0] != "encoder"]


def _copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}
