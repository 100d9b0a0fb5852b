"""What link predictors have in common."""

from __future__ import annotations

from typing import Protocol, cast

import torch
from torch import Tensor, nn

from polypath.graphs.adjacency import Adjacency


class LinkPredictor(Protocol):
    """A module that scores pairs of a graph's nodes.

    Its parameters below a part named `encoder` are trained at a rate of their own. One that is to
    be saved is made of a frozen dataclass alone, which it keeps as `config`.
    """

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,) logits of pairs (2, B).

        x: (N, F) features, (N,) int64 ids, or None where the predictor needs neither.
        """
        ...


@torch.no_grad()
def link_scores(predictor: nn.Module, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
    """(B,) logits of pairs (2, B), in evaluation mode, on the predictor's device.

    The predictor is left in the mode in which it was.
    """
    device = next(predictor.parameters()).device
    was = predictor.training
    predictor.eval()
    try:
        moved = None if x is None else x.to(device)
        return cast(LinkPredictor, predictor).score(graph.to(device), moved, pairs.to(device))
    finally:
        predictor.train(was)
