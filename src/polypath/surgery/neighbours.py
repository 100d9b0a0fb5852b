"""Samples that a model answers: what it makes of them, and which are neighbours of which.

n samples, B of them in a batch, k neighbours, E experts of a layer.
Source: RoMA, arXiv 2511.07419, equations 2 to 7.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.language.families import decoder_of
from polypath.routing import MoE, routed_layers
from polypath.surgery.attribution import evaluation, inputs

ROWS = 1024
"""Samples whose distances to all others are in memory at once."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Token ids of a prompt and of its right answer; perhaps an embedding (p,) of the prompt.

    An embedding that has seen the answer would tell the neighbourhood what is to be found out.
    """

    prompt: Sequence[int]
    answer: Sequence[int]
    embedding: Tensor | None = None

    def __post_init__(self) -> None:
        if not len(self.prompt) or not len(self.answer):
            raise InputError("sample: an empty prompt or answer; one token of each at least")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples as a model reads them.

    inputs: arguments of the model by name. places (B,): of the T things that the layers route, each
        sample's last input. rows (P,): of the things, those whose logits say a part of an answer.
    wanted (P,): what they should say. owner (P,): whose answer it is, 0 to B - 1.
    """

    inputs: Mapping[str, Tensor]
    places: Tensor
    rows: Tensor
    wanted: Tensor
    owner: Tensor


Collate = Callable[[Sequence[Any]], Batch]
Vectors = dict[str, Tensor]
"""For each layer's name, (n, E) float32: the softmax over all experts at samples' last inputs."""


def last_inputs(reads: Tensor) -> Tensor:
    """(B,) int64: where each row of (B, L) bool is True last; padding may be on either side."""
    return reads.shape[1] - 1 - reads.int().flip(1).argmax(1)


def collate(samples: Sequence[Sample], side: Literal["left", "right"] = "right") -> Batch:
    """A batch of prompts with their answers, but for the last token of these, padded on a side."""
    length = max(len(own.prompt) + len(own.answer) for own in samples) - 1
    tokens = torch.zeros(len(samples), length, dtype=torch.int64)
    mask, reads, speaks = (torch.zeros_like(tokens, dtype=torch.bool) for _ in range(3))
    for i, own in enumerate(samples):
        text = [*own.prompt, *own.answer[:-1]]
        start = length - len(text) if side == "left" else 0
        asked = start + len(own.prompt)
        tokens[i, start : start + len(text)] = torch.tensor(text)
        mask[i, start : start + len(text)] = True
        reads[i, start:asked] = True
        speaks[i, asked - 1 : start + len(text)] = True
    given = {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "position_ids": (mask.cumsum(1) - 1).clamp_min(0),
    }
    rows = speaks.flatten().nonzero()[:, 0]
    wanted = torch.tensor([token for own in samples for token in own.answer])
    places = torch.arange(len(samples)) * length + last_inputs(reads)
    return Batch(given, places, rows, wanted, rows // length)


def batches(samples: Sequence[Any], size: int, collate: Collate) -> Iterator[Batch]:
    """All samples in their order, so many at once."""
    for start in range(0, len(samples), size):
        yield collate(samples[start : start + size])


def orders(count: int, size: int, steps: int, seed: int) -> Iterator[Tensor]:
    """For each step the samples of its batch; each is drawn once before any is drawn again."""
    generator = torch.Generator().manual_seed(seed)
    left: list[Tensor] = []
    for _ in range(steps):
        left = left or list(torch.randperm(count, generator=generator).split(size))
        yield left.pop(0)


def answers(model: nn.Module, batch: Batch) -> Tensor:
    """(P, V) float32 logits of what a model says where answers are due."""
    said = model(**inputs(model, batch.inputs))
    logits = said if isinstance(said, Tensor) else said.logits
    return logits.flatten(0, -2)[batch.rows.to(logits.device)].float()


def losses(logits: Tensor, batch: Batch) -> Tensor:
    """(B,) nats: the cross-entropy of each sample's answer, the mean over its tokens."""
    each = F.cross_entropy(logits, batch.wanted.to(logits.device), reduction="none")
    owner = batch.owner.to(logits.device)
    counts = torch.bincount(owner, minlength=len(batch.places))
    return each.new_zeros(len(batch.places)).index_add(0, owner, each) / counts


def succeeds(logits: Tensor, batch: Batch) -> Tensor:
    """(B,) bool: whether every token of a sample's answer is the likeliest (equation 2)."""
    wrong = batch.owner.to(logits.device)[logits.argmax(-1) != batch.wanted.to(logits.device)]
    return torch.bincount(wrong, minlength=len(batch.places)) == 0


def chosen_layers(model: nn.Module, which: int | Sequence[str]) -> dict[str, MoE]:
    """The last so many routed layers of a model, all where there are fewer, or those named.

    Raises InputError where there are none, or a name is unknown.
    """
    layers = routed_layers(model)
    if isinstance(which, int):
        if not layers or which < 1:
            raise InputError(
                f"align: the last {which} of {len(layers)} routed layers of "
                f"{type(model).__name__}; polypath.language.attach adopts those of a checkpoint"
            )
        which = list(layers)[-which:]
    for name in which:
        if name not in layers:
            raise unknown("routed layer", name, layers)
    return {name: layers[name] for name in layers if name in set(which)}


class Look(NamedTuple):
    """What a model makes of samples: vectors, and right (n,) bool, on the CPU."""

    vectors: Vectors
    right: Tensor

    @property
    def joined(self) -> Tensor:
        """(n, ΣE): the vectors of all layers side by side."""
        return torch.cat(list(self.vectors.values()), 1)


@torch.no_grad()
def look(model: nn.Module, layers: Mapping[str, MoE], read: Iterator[Batch]) -> Look:
    """Where layers send samples' last inputs, and which samples are answered right."""
    found: dict[str, list[Tensor]] = {name: [] for name in layers}
    right = []
    with evaluation(model):
        for batch in read:
            right.append(succeeds(answers(model, batch), batch).cpu())
            for name, layer in layers.items():
                assert layer.last is not None
                scores = layer.last.scores[batch.places.to(layer.last.scores.device)]
                found[name].append(scores.softmax(-1).float().cpu())
    return Look({name: torch.cat(own) for name, own in found.items()}, torch.cat(right))


@torch.no_grad()
def pooled(model: Any, samples: Sequence[Sample], size: int) -> Tensor:
    """(n, D) float32 of length 1: a language model's first-layer states, their mean over a prompt.

    Answers are not read. Raises InputError where the model is not a known host.
    """
    found, seen = [], []
    first = decoder_of(model).layers[0]

    def hear(layer: Any, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = first.register_forward_hook(hear)
    try:
        with evaluation(model):
            # An answer of one token is not read: see `collate`.
            asked = [Sample(own.prompt, own.answer[:1]) for own in samples]
            for batch in batches(asked, size, collate):
                model.base_model(**inputs(model, batch.inputs))
                states = seen.pop().float()
                mask = batch.inputs["attention_mask"].to(states)[..., None]
                found.append(((states * mask).sum(1) / mask.sum(1)).cpu())
    finally:
        handle.remove()
    return F.normalize(torch.cat(found), dim=1)


def embeddings(model: nn.Module, samples: Sequence[Any], size: int) -> Tensor:
    """(n, p): what samples bring, or the model's own `pooled` where they bring none.

    Raises InputError where only some do.
    """
    given = [own.embedding for own in samples if own.embedding is not None]
    if given and len(given) < len(samples):
        raise InputError(
            f"align: {len(given)} of {len(samples)} samples have embeddings; all, or none, is right"
        )
    return torch.stack(given) if given else pooled(model, samples, size)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who is near whom, m at most.

    indices (n, m) int64: 0 where a slot is empty. weights (n, m) float64: W, 0 where a slot is
    empty; the rest of a row sums to 1. sigma: the kernel's width.
    """

    indices: Tensor
    weights: Tensor
    sigma: float

    @property
    def some(self) -> Tensor:
        """(n,) bool: who has a neighbour."""
        return self.weights.any(1)

    def mean(self, vectors: Tensor) -> Tensor:
        """(n, E): r̄, the weighted means of neighbours' vectors (n, E); 0 where there are none."""
        found, own = torch.zeros_like(vectors), vectors.detach()
        for indices, weights in zip(self.indices.T, self.weights.T, strict=True):
            found += weights.to(own)[:, None] * own[indices]
        return found

    def means(self, vectors: Vectors) -> Vectors:
        """r̄ of each layer."""
        return {name: self.mean(own) for name, own in vectors.items()}


def kernel_weights(squared: Tensor, sigma: float) -> Tensor:
    """(n, m): κ over its row's sum (equations 5 and 6), of squared distances; inf where empty.

    A softmax of -d²/2σ², so nothing underflows to 0/0. A row that is empty weighs 0.
    """
    least = squared.min(1, keepdim=True).values if squared.shape[1] else squared
    over = (squared - least.nan_to_num(posinf=0.0)) / max(2 * sigma**2, 1e-300)
    return (-over).softmax(1).masked_fill(squared == math.inf, 0.0)


def neighbours(
    embeddings: Tensor,
    successful: Tensor,
    k: int = 3,
    epsilon: float | None = None,
    sigma: float | None = None,
) -> Neighbours:
    """For each of n embeddings (n, p) its neighbours among the successful (n,), never itself.

    k: the nearest so many (equation 3), fewer where there are not so many.
    epsilon: instead, all whose κ is so much at least (equation 4); then k only says which σ.
    sigma: of the kernel; None for the median distance to the k nearest.
    Raises InputError where sizes or numbers are wrong.
    """
    if embeddings.ndim != 2 or successful.shape != embeddings.shape[:1]:
        raise InputError(
            f"neighbours: embeddings {tuple(embeddings.shape)} and successes "
            f"{tuple(successful.shape)}; (n, p) and (n,) are right"
        )
    similar = 1.0 if epsilon is None else epsilon
    if k < 1 or (sigma is not None and sigma <= 0) or not 0 < similar <= 1:
        raise InputError(
            f"neighbours: k={k}, epsilon={epsilon}, sigma={sigma}; a neighbour at least, "
            "a similarity above 0 up to 1, and a positive width are right"
        )
    squared, indices = nearest(embeddings, successful, k)
    if sigma is None:
        known = squared[squared < math.inf]
        sigma = float(known.sqrt().median()) if len(known) else 1.0
    if epsilon is not None:
        reach = -2 * sigma**2 * math.log(epsilon) * (1 + 1e-12)  # of κ = ε is rounded
        squared, indices = nearest(embeddings, successful, None, reach)
    return Neighbours(indices, kernel_weights(squared, sigma), sigma)


def nearest(
    embeddings: Tensor, among: Tensor, k: int | None, reach: float = math.inf
) -> tuple[Tensor, Tensor]:
    """(n, m) squared distances, the least first, and (n, m) indices, of others among (n,) bool.

    k: at most so many; None for all. reach: of squared distances. Empty slots: inf, and 0.
    """
    z, members = embeddings.double().cpu(), among.cpu().nonzero()[:, 0]
    parts = []
    for rows in torch.arange(len(z)).split(ROWS):
        squared = torch.cdist(z[rows], z[members]).square()
        squared[(members == rows[:, None]) | (squared > reach)] = math.inf
        most = int((squared < math.inf).sum(1).max()) if len(members) else 0
        best, places = squared.topk(most if k is None else min(k, most), largest=False)
        parts.append((best, members[places].masked_fill(best == math.inf, 0)))
    width = max(best.shape[1] for best, _ in parts)
    distances, indices = (
        torch.cat([F.pad(one, (0, width - one.shape[1]), value=empty) for one in own])
        for own, empty in zip(zip(*parts, strict=True), (math.inf, 0), strict=True)
    )
    return distances, indices


def manifold(vectors: Tensor, table: Neighbours, others: Tensor | None = None) -> Tensor:
    """(n,): Σ_j W_ij ‖r_i - r_j‖² (equation 7) of vectors (n, R).

    others: r_j, where they are not the same. They get no gradient. No neighbours give 0.
    """
    theirs = (vectors if others is None else others).detach()
    found = vectors.new_zeros(len(vectors))
    for indices, weights in zip(table.indices.T, table.weights.T, strict=True):
        found = found + weights.to(vectors) * (vectors - theirs[indices]).square().sum(-1)
    return found


def agreement(one: Tensor, other: Tensor, k: int = 3) -> float:
    """The share of samples' k nearest in one space (n, p) that are so in another (n, q).

    0 to 1; by chance k / (n - 1). NaN of a sample alone.
    """
    every = torch.ones(len(one), dtype=torch.bool)
    (_, first), (_, second) = (nearest(space, every, k) for space in (one, other))
    if not first.shape[1]:
        return math.nan
    return float((first[:, :, None] == second[:, None]).any(2).double().mean())
