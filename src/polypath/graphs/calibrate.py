"""Scores of several predictors as logits that mean the same: Platt's scaling, one of each.

Shapes: P positives, M negatives, B pairs, E predictors.
Source: Platt 1999, Probabilistic outputs for support vector machines.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from polypath.errors import InputError


class PlattScaling(nn.Module):
    """scale · score + offset, of each predictor; the identity until it is fitted.

    scale, offset: (E,) float32. A scale is never negative, so that no ranking is turned around: it
    is 0 where higher scores are rather those of negatives.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, predictors: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(predictors))
        self.register_buffer("offset", torch.zeros(predictors))

    def forward(self, scores: Tensor) -> Tensor:
        """(B, E) logits from scores (B, E)."""
        return scores * self.scale + self.offset

    def fit(self, right: Tensor, wrong: Tensor) -> None:
        """Fit scores of held-out positives (P, E) and negatives (M, E), as likely as each other.

        By maximum likelihood of a logistic regression, whose targets are a little off 0 and 1 (one
        pair of each other kind is added), so that it ends where scores tell both apart.
        Raises InputError without pairs of either kind, and for scores that are not finite.
        """
        for name, scores in (("positives", right), ("negatives", wrong)):
            if not len(scores) or not scores.isfinite().all():
                raise InputError(
                    f"calibration: scores {tuple(scores.shape)} of {name} are none or not finite; "
                    "a finite number for each of one pair or more is right"
                )
        found = [_platt(a, b) for a, b in zip(_columns(right), _columns(wrong), strict=True)]
        scale, offset = torch.tensor(found, dtype=torch.float64).reshape(-1, 2).T
        self.scale.copy_(scale)
        self.offset.copy_(offset)


def _columns(scores: Tensor) -> np.ndarray:
    return scores.detach().cpu().double().numpy().T


def _platt(right: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """The scale and the offset of one predictor."""
    from sklearn.linear_model import LogisticRegression

    scores = np.concatenate([right, wrong])
    target = np.repeat([1 - 1 / (len(right) + 2), 1 / (len(wrong) + 2)], [len(right), len(wrong)])
    weight = np.repeat([0.5 / len(right), 0.5 / len(wrong)], [len(right), len(wrong)])
    centre, spread = scores.mean(), scores.std()
    mean = float(weight @ target)
    constant = float(np.log(mean / (1 - mean)))
    if spread < 1e-12:
        return 0.0, constant
    # A target between 0 and 1 is a pair that is positive by so much, and negative by the rest.
    rows = np.tile((scores - centre) / spread, 2)[:, None]
    labels = np.repeat([1, 0], len(scores))
    shares = np.concatenate([weight * target, weight * (1 - target)]) * len(scores)
    fitted = LogisticRegression(C=np.inf, tol=1e-8, max_iter=1000).fit(rows, labels, shares)
    slope, offset = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        return 0.0, constant
    return slope / spread, offset - slope * centre / spread
