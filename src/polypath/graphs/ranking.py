"""How high true links rank among others.

Shapes: P positives, K negatives of each or M negatives of all, N candidates.
Source: OGB (Hu et al. 2020); HeaRT (Li et al. 2023); NBFNet (Zhu et al. 2021), evaluation.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from polypath.errors import InputError

Ties = Literal["middle", "against"]


def hits_at(positives: Tensor, negatives: Tensor, k: int) -> float:
    """The share of positives (P,) that score above the k-th best negative (M,); OGB's Hits@K.

    1 where there are fewer than k negatives. Raises InputError for k < 1 and scores that are NaN.
    """
    _check_scores(positives, negatives)
    if k < 1:
        raise InputError(f"hits_at: k={k}; at least 1 is right")
    if len(negatives) < k:
        return 1.0
    return float((positives > negatives.topk(k).values[-1]).double().mean())


def ranks_among(positives: Tensor, negatives: Tensor, ties: Ties = "middle") -> Tensor:
    """(P,) float64, from 1: the rank of each positive among its negatives (P, K) or all (M,).

    ties: negatives that score as the positive does are half of them above it ("middle"), or all of
    them ("against").
    """
    _check_scores(positives, negatives)
    if negatives.ndim == 1:
        ordered = negatives.sort().values
        above = len(negatives) - torch.searchsorted(ordered, positives, right=True)
        equal = len(negatives) - torch.searchsorted(ordered, positives) - above
    else:
        above = (negatives > positives[:, None]).sum(1)
        equal = (negatives == positives[:, None]).sum(1)
    share = 1.0 if ties == "against" else 0.5
    return 1 + above.double() + share * equal.double()


def filtered_ranks(scores: Tensor, truth: Tensor, known: Tensor) -> Tensor:
    """(P,) float64, from 1: the rank of the true candidate among those that are not known to fit.

    scores: (P, N). truth: (P,) int64. known: (P, N) bool, candidates that are facts and do not
    compete; the true one never competes with itself. Ties count against it.
    Raises InputError for scores that are NaN.
    """
    own = scores.gather(1, truth[:, None])
    _check_scores(own, scores)
    rivals = ~known
    rivals.scatter_(1, truth[:, None], False)
    return 1 + ((scores >= own) & rivals).sum(1).double()


def mean_reciprocal_rank(ranks: Tensor) -> float:
    """The mean of 1 / rank."""
    return float((1 / ranks).mean())


def expected_hits(ranks: Tensor, rivals: Tensor | int, k: int = 10, negatives: int = 50) -> float:
    """Hits@k if each true candidate had met so many of its rivals, drawn with replacement.

    ranks: (P,) among all rivals. rivals: how many there are of each, (P,) or one number.
    Source: NBFNet's evaluation on inductive splits.
    """
    beaten = (ranks.double() - 1) / torch.as_tensor(rivals).double().clamp_min(1)
    counts = torch.arange(k, dtype=torch.float64)
    total = torch.tensor(float(negatives), dtype=torch.float64)
    ways = total.add(1).lgamma() - counts.add(1).lgamma() - (total - counts).add(1).lgamma()
    found = ways.exp() * beaten[:, None] ** counts * (1 - beaten[:, None]) ** (total - counts)
    return float(found.sum(1).mean())


def _check_scores(positives: Tensor, negatives: Tensor) -> None:
    for name, scores in (("positives", positives), ("negatives", negatives)):
        wrong = int(scores.isnan().sum())
        if wrong:
            raise InputError(f"{wrong} of {scores.numel()} scores of {name} are NaN")
