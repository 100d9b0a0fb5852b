"""Heuristics as link predictors: a score of the graph, or of features, with a scale and an offset.

Shapes: N nodes, F features, B pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polypath.errors import InputError, unknown
from polypath.graphs.adjacency import Adjacency, check_pairs
from polypath.graphs.calibrate import PlattScaling
from polypath.graphs.pair_features import HEURISTICS

COSINE = "cosine"
SCORES = (*HEURISTICS, COSINE)
"""What a `HeuristicScorer` may know: a heuristic, or the cosine of both nodes' features."""


@dataclass(frozen=True)
class HeuristicConfig:
    """Which of `SCORES`."""

    name: str

    def __post_init__(self) -> None:
        if self.name not in SCORES:
            raise unknown("heuristic", self.name, SCORES)


class HeuristicScorer(nn.Module):
    """scale · heuristic + offset: ranks as the heuristic does, and is a logit once it is fitted."""

    def __init__(self, config: HeuristicConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(()))
        self.offset = nn.Parameter(torch.zeros(()))

    def score(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,) of pairs (2, B), the same in both orders; heuristics are computed on the CPU.

        Raises InputError where it is the cosine, and there are no features, or of other nodes.
        """
        return self.heuristic(graph, x, pairs) * self.scale + self.offset

    @torch.no_grad()
    def heuristic(self, graph: Adjacency, x: Tensor | None, pairs: Tensor) -> Tensor:
        """(B,), of the parameters' dtype: on the scale of `pair_features`."""
        check_pairs(pairs, graph.num_nodes)
        pairs = pairs.sort(0).values
        if self.config.name == COSINE:
            if x is None or x.ndim != 2:
                raise InputError("cosine: the graph has no features; another heuristic needs none")
            if len(x) != graph.num_nodes:
                raise InputError(f"cosine: features of {len(x)} nodes, of {graph.num_nodes} needed")
            left, right = (x[ends].to(self.scale.dtype) for ends in pairs)
            return F.cosine_similarity(left, right)
        found = HEURISTICS[self.config.name](graph.to("cpu"), pairs.cpu())
        return found.to(pairs.device, self.scale.dtype)

    @torch.no_grad()
    def fit(self, graph: Adjacency, x: Tensor | None, right: Tensor, wrong: Tensor) -> None:
        """By Platt's scaling on held-out positives (2, P) and negatives (2, M).

        A heuristic that ranks these the wrong way around keeps a scale of 1, and so its ranking.
        """
        found = [self.heuristic(graph, x, pairs).cpu()[:, None] for pairs in (right, wrong)]
        scaling = PlattScaling(1)
        scaling.fit(*found)
        if scaling.scale[0] > 0:
            self.scale.copy_(scaling.scale[0])
            self.offset.copy_(scaling.offset[0])
