"""Trained models whose routers scatter what belongs together, with samples of many tasks.

One is made: it is known which experts have which skill, and its router also listens to noise. The
other is a classifier of images, trained on few of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts.mixed import ExpertList
from polypath.language import RoutedLayers
from polypath.recipes.images import Classifier, Images, advance, digits, idx
from polypath.routing import LinearScorer, MoE, Router, RoutingContext, SoftmaxGate, TopK
from polypath.surgery.neighbours import Batch
from polypath.training.optimisers import adamw

SKILLS, COPIES, EMBEDDING, PROJECTED, NUISANCE, DIM = 6, 2, 16, 12, 16, 12
WIDTH = PROJECTED + NUISANCE + DIM
SPLITS = {
    "train": range(18),
    "validation": range(18, 24),
    "seen": range(18),
    "unseen": range(24, 30),
}
"""The tasks of each part; task t asks for skill t mod 6."""
TRAINED, VALIDATED = 300, 300
SHARPNESS, BLUR, SPREAD = 3.0, 0.2, 0.5
"""Of an expert's opinion; of a copy about its skill; of tasks, and of samples about their task."""


@dataclass(frozen=True, eq=False)
class Case:
    """What a model reads x (D,), the class y it should say, and what its task is like."""

    x: Tensor
    y: int
    embedding: Tensor


@dataclass(frozen=True, eq=False)
class Problem:
    """A model, and samples to train its routers, to choose, and to test on: known tasks and new.

    ideal: the share of (seen, unseen) that are answered right where the right experts serve, or
    None where nobody knows them.
    """

    model: nn.Module
    train: Sequence[Case]
    validation: Sequence[Case]
    seen: Sequence[Case]
    unseen: Sequence[Case]
    ideal: tuple[float, float] | None = None


def collate(cases: Sequence[Case]) -> Batch:
    """Cases as a batch of things, one each."""
    each = torch.arange(len(cases))
    y = torch.tensor([case.y for case in cases])
    return Batch({"x": torch.stack([case.x for case in cases])}, each, each, y, each)


class FrontScorer(LinearScorer):
    """A linear scorer that reads no more of a thing than its first dimensions."""

    def forward(self, x: Tensor, context: RoutingContext) -> Tensor:
        return super().forward(x[:, : self.weight.shape[1]], context)


class Skilled(nn.Module):
    """x (N, WIDTH) of what a router reads and a question of DIM, to logits (N, 2).

    rules (E, DIM): the linear rule of each expert. rows (E, PROJECTED + NUISANCE): the router's.
    """

    def __init__(self, rules: Tensor, rows: Tensor) -> None:
        super().__init__()
        scorer = FrontScorer(rows.shape[1], len(rows))
        experts = [nn.Linear(WIDTH, WIDTH, bias=False) for _ in rules]
        with torch.no_grad():
            scorer.weight.copy_(rows)
            for expert, rule in zip(experts, rules, strict=True):
                expert.weight.zero_()
                expert.weight[0, -DIM:] = rule
        self.layer = MoE(Router(scorer, TopK(2), SoftmaxGate("chosen")), ExpertList(experts))

    def forward(self, x: Tensor) -> Tensor:
        opinion = SHARPNESS * self.layer(x)[:, 0]
        return torch.stack([-opinion / 2, opinion / 2], 1)


def skilled(nuisance: float, tested: int, seed: int) -> Problem:
    """One draw of skills, tasks and their samples; the router knows skills, but also hears noise.

    nuisance: the length of the router's weights on noise, beside 1 on what it knows.
    """
    normal = partial(torch.randn, generator=torch.Generator().manual_seed(seed))
    centres = normal(SKILLS, EMBEDDING)
    tasks = centres.repeat(5, 1) + SPREAD * normal(5 * SKILLS, EMBEDDING)
    down = torch.linalg.qr(normal(EMBEDDING, EMBEDDING)).Q[:, :PROJECTED]
    wanted = F.normalize(normal(SKILLS, DIM), dim=1)
    rules = wanted.repeat(COPIES, 1) + BLUR * normal(COPIES * SKILLS, DIM)
    known = F.normalize(centres @ down, dim=1).repeat(COPIES, 1)
    heard = nuisance * normal(COPIES * SKILLS, NUISANCE) / NUISANCE**0.5

    def drawn(split: str, count: int) -> tuple[list[Case], float]:
        own = SPLITS[split]
        place = torch.randint(len(own), (count,), generator=normal.keywords["generator"])
        task = torch.tensor(own)[place]
        z = tasks[task] + SPREAD * normal(count, EMBEDDING)
        asked = normal(count, DIM)
        y = ((asked * wanted[task % SKILLS]).sum(1) > 0).long()
        x = torch.cat([z @ down, normal(count, NUISANCE), asked], 1)
        best = rules.view(COPIES, SKILLS, DIM).sum(0)[task % SKILLS]
        right = ((asked * best).sum(1) > 0).long() == y
        return list(map(Case, x, y.tolist(), z)), float(right.double().mean())

    (train, _), (validation, _) = drawn("train", TRAINED), drawn("validation", VALIDATED)
    (seen, one), (unseen, other) = drawn("seen", tested), drawn("unseen", tested)
    model = Skilled(rules, torch.cat([known, heard], 1)).eval()
    return Problem(model, train, validation, seen, unseen, (one, other))


class Choosing(nn.Module):
    """A classifier that is asked which of some classes an image is of.

    x (N, pixels + classes): images, and 1 for each class that may be the answer, 0 for others. To
    logits (N, classes), -inf for others. Layers see the image alone.
    """

    def __init__(self, classifier: Classifier, classes: int) -> None:
        super().__init__()
        self.classifier = classifier
        self.classes = classes

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x[:, : -self.classes])
        return logits.masked_fill(x[:, -self.classes :] == 0, -torch.inf)


@dataclass(frozen=True)
class Imaged:
    """Sizes of the classifier's problem.

    folder: of images, or None for the digits. epochs: of its training. base, train, tested: how
    many images it is trained on, its routers are, and at most are tested.
    """

    folder: Path | None
    epochs: int
    base: int
    train: int
    tested: int


def imaged(sizes: Imaged, seed: int) -> Problem:
    """A classifier of all classes; tasks are pairs of them, of which an image may be.

    One pair is new, one is to choose by, the others are known; a class that is left over is in
    none. Embeddings are the first 16 principal components of the pixels of the images that routers
    are trained on. Raises InputError where there are fewer than 6 classes.
    """
    data, test = digits(seed) if sizes.folder is None else idx(sizes.folder)
    if data.classes < 6:
        raise InputError(f"{sizes.folder}: {data.classes} classes; 6 are needed, for three pairs")
    order = torch.Generator().manual_seed(seed)
    base, rest = torch.randperm(len(data.y), generator=order).tensor_split([sizes.base])
    classifier = trained(Images(data.x[base], data.y[base], data.classes), sizes.epochs, seed)
    pairs = torch.randperm(data.classes, generator=order)[: data.classes // 2 * 2].view(-1, 2)
    new, choosing, known = pairs[:1], pairs[1:2], pairs[2:]
    train = _of(data, rest, known)[: sizes.train]
    centre = data.x[train].mean(0)
    down = torch.linalg.svd(data.x[train] - centre, full_matrices=False).Vh[:EMBEDDING].T
    options = torch.zeros(data.classes, data.classes)
    for pair in pairs:
        options[pair[:, None], pair] = 1

    def cases(of: Images, rows: Tensor) -> list[Case]:
        x, y = of.x[rows], of.y[rows]
        return list(map(Case, torch.cat([x, options[y]], 1), y.tolist(), (x - centre) @ down))

    held, tested = torch.arange(len(test.y)), sizes.tested
    return Problem(
        Choosing(classifier, data.classes).eval(),
        cases(data, train),
        cases(data, _of(data, rest, choosing)[:tested]),
        cases(test, _of(test, held, known)[:tested]),
        # Of new classes nobody has seen any but those that the classifier was trained on.
        cases(test, _of(test, held, new)[:tested]) + cases(data, _of(data, rest, new)[:tested]),
    )


def _of(images: Images, rows: Tensor, classes: Tensor) -> Tensor:
    """Those of the rows that are images of the classes."""
    return rows[torch.isin(images.y[rows], classes)]


def trained(data: Images, epochs: int, seed: int) -> Classifier:
    """A small routed classifier, trained on images the usual way."""
    torch.manual_seed(seed)
    routed = RoutedLayers(num_experts=8, k=2, gate="softmax-chosen")
    model = Classifier(data.x.shape[1], data.classes, routed)
    optimiser = adamw(model, 3e-3, 0.01)
    order = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for rows in torch.randperm(len(data.y), generator=order).split(64):
            advance(model, data.x[rows], data.y[rows], epoch)
            optimiser.step()
            optimiser.zero_grad()
    return model.eval()
