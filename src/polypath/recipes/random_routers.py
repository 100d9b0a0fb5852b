"""Experts under routers that are drawn and stay: how complex a function their routes let them be.

Source: companion check of arXiv 2506.21551, section on theory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from scipy.stats import pearsonr
from torch import Tensor

from polypath.diagnosis import effective_dimension, pathway_distance, pathways, routed_kernel


def dimensions(seed: int, routers: int = 40) -> tuple[float, float]:
    """Correlation over random routers of pathway distance and effective dimension.

    With the kernel scaled to a unit diagonal, and as it is. One layer of 16 experts of width 16
    with kernels of their tangents, 200 samples of 5 clusters in 100 dimensions.
    """
    generator = torch.Generator().manual_seed(seed)
    normal = partial(torch.randn, generator=generator, dtype=torch.float64)
    samples, dim, experts = 200, 100, 16
    cluster = torch.randint(5, (samples,), generator=generator)
    x = normal(5, dim)[cluster] + 0.3 * normal(samples, dim)
    x = x / x.norm(dim=1, keepdim=True)
    kernels = torch.stack([tangents(x, normal) for _ in range(experts)])
    found = []
    for _ in range(routers):
        gates = (2 * x @ normal(dim, experts)).softmax(1)
        distance = pathway_distance(pathways([gates]))
        scaled, raw = (
            effective_dimension(routed_kernel(gates, kernels, normalised), 0.1)
            for normalised in (True, False)
        )
        found.append((distance, scaled, raw))
    distances, scaled_all, raw_all = zip(*found, strict=True)
    return (
        float(pearsonr(distances, scaled_all).statistic),
        float(pearsonr(distances, raw_all).statistic),
    )


def tangents(x: Tensor, normal: Callable[..., Tensor], hidden: int = 16) -> Tensor:
    """(N, N): the tangent kernel of one random network a · relu(W x) of unit-length x (N, D)."""
    inner, outer = normal(x.shape[1], hidden), normal(hidden) / hidden**0.5
    values = (x @ inner).relu()
    slopes = (values > 0) * outer
    return (x @ x.T) * (slopes @ slopes.T) + values @ values.T / hidden
