"""What experts are chosen for: experts beside labels of their things, and beside other experts."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from polypath.diagnosis.transitions import between, membership
from polypath.errors import InputError
from polypath.routing import Routing


class Specialisation(NamedTuple):
    """Normalised mutual information, and what it is when the other side is shuffled."""

    information: float
    control: float


def contingency(routing: Routing, labels: Tensor, num_labels: int) -> Tensor:
    """(E, num_labels) float64: how many things of each label each expert serves.

    labels: (T,) int64 in 0..num_labels − 1. A thing counts 1 / k at each of its k experts, so that
    the sum is the number of things that are served and not masked.
    Raises InputError when there is not one label for each thing, or one is out of range.
    """
    if labels.shape != (len(routing),):
        raise InputError(f"contingency: {len(routing)} things, but labels {tuple(labels.shape)}")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_labels:
        raise InputError(f"contingency: a label is not within 0..{num_labels - 1}")
    parts = membership(routing)
    table = parts.new_zeros(num_labels, routing.num_experts)
    return table.index_add_(0, labels, parts).T


def normalised_mutual_information(table: Tensor) -> float:
    """2 I(row; column) / (H(row) + H(column)), in 0..1; 0 where rows or columns are all the same.

    table: counts, not negative. Source: Strehl and Ghosh 2002, with the arithmetic mean.
    """
    joint = table.double() / table.sum().clamp_min(1e-300)
    rows, columns = joint.sum(1), joint.sum(0)
    if min((rows > 0).sum(), (columns > 0).sum()) < 2:
        return 0.0
    h_rows, h_columns = torch.special.entr(rows).sum(), torch.special.entr(columns).sum()
    mutual = h_rows + h_columns - torch.special.entr(joint).sum()
    return float((2 * mutual / (h_rows + h_columns)).clamp(0, 1))


def specialisation(
    routing: Routing, labels: Tensor, num_labels: int, generator: torch.Generator, shuffles: int = 8
) -> Specialisation:
    """How much the experts of a thing say about its label, beside a control by shuffling.

    The control gives each counted thing the label of another one: what is left is what few things
    and many cells show by chance.
    """
    real = normalised_mutual_information(contingency(routing, labels, num_labels))
    counted = torch.arange(len(labels)) if routing.mask is None else routing.mask.nonzero()[:, 0]
    chance = []
    for _ in range(shuffles):
        order = counted[torch.randperm(len(counted), generator=generator)]
        shuffled = labels.clone()
        shuffled[counted] = labels[order]
        table = contingency(routing, shuffled, num_labels)
        chance.append(normalised_mutual_information(table))
    return Specialisation(real, sum(chance) / shuffles)


def dependence(above: Routing, below: Routing, generator: torch.Generator) -> Specialisation:
    """How much a thing's experts at one layer say about those at the next, beside a control.

    The control pairs each thing's experts with those of another thing.
    Raises InputError when the routings are of different numbers of things.
    """
    order = torch.randperm(len(below), generator=generator)
    return Specialisation(
        normalised_mutual_information(between(above, below)),
        normalised_mutual_information(between(above, below[order])),
    )
