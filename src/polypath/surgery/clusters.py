"""Rows in clusters of equal size."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError

ROUNDS = 10


def balanced(rows: Tensor, count: int, seed: int = 0) -> Tensor:
    """(E, N / E) int64: rows (N, D) in `count` clusters of equal size, by direction.

    Centres start as k-means makes them; then rows choose, those that would lose most by another
    cluster first, and centres follow, until nothing changes. Raises InputError unless E divides N.
    """
    if len(rows) % count:
        raise InputError(f"balanced clusters: {len(rows)} rows in {count} of equal size")
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    points = F.normalize(rows.detach().float(), dim=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal rows: centres may coincide
        means = KMeans(count, n_init=1, random_state=seed).fit(points.numpy()).cluster_centers_
    centres = torch.from_numpy(means).to(points)
    found = _chosen(points, centres)
    for _ in range(ROUNDS):
        centres = torch.stack([points[found == index].mean(0) for index in range(count)])
        again = _chosen(points, centres)
        if torch.equal(again, found):
            break
        found = again
    return found.argsort(stable=True).view(count, -1)


def _chosen(points: Tensor, centres: Tensor) -> Tensor:
    """(N,): the cluster of each row, as many in each."""
    far = torch.cdist(points, centres)
    order = far.argsort(1)
    ordered = far.gather(1, order)
    regret = ordered[:, 1] - ordered[:, 0] if len(centres) > 1 else ordered[:, 0]
    room = [len(points) // len(centres)] * len(centres)
    found = torch.empty(len(points), dtype=torch.int64)
    for row in regret.argsort(descending=True, stable=True).tolist():
        best = next(int(c) for c in order[row].tolist() if room[int(c)])
        found[row], room[best] = best, room[best] - 1
    return found
