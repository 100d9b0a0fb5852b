"""Whether a sample's way through the layers keeps its direction.

Source: Where to find Grokking in LLM Pretraining?, arXiv 2506.21551.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError


@torch.no_grad()
def routing_cosines(gates: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """(N, L - 1) float64: cosines of the routing embeddings of neighbouring layers.

    A sample's embedding in a layer is its gate's mean of the router's rows: Σ_k g_k v_k.
    gates: (N, E) of each of L layers. rows: (E, D) of each. Layers compare only where a residual
    stream ties their bases.
    """
    if len(gates) != len(rows) or len(gates) < 2:
        raise InputError(f"routing cosines: gates of {len(gates)} layers, rows of {len(rows)}")
    embedded = [g.double() @ v.double() for g, v in zip(gates, rows, strict=True)]
    cosines = [F.cosine_similarity(a, b, dim=1) for a, b in pairwise(embedded)]
    return torch.stack(cosines, dim=1)


def roughness(cosines: Tensor, eps: float = 1e-8) -> Tensor:
    """(N,): 1 less the mean cosine over the largest: how erratic each sample's way is.

    0 when all its cosines are equal. NaN where none is positive, which turns the sign of the
    paper's formula. With few layers it says little; the mean cosine says more.
    Source: equation of C_i.
    """
    largest = cosines.max(dim=1).values
    found = 1 - cosines.mean(dim=1) / (largest + eps)
    return found.masked_fill(largest <= 0, float("nan"))
