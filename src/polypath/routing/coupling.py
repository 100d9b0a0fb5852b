"""Losses that tie a router's rows to their experts, or hold them apart from each other.

Source: Coupling Experts and Routers in Mixture-of-Experts via an Auxiliary Loss, arXiv 2512.23447.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.routing.auxiliary import LayerLoss
from polypath.routing.context import RoutingContext, generator_of
from polypath.routing.scorers import routing_dtype


def centres(router: Any, asker: str) -> Tensor:
    """(E, D) float32, or float64 of float64 rows: the router's row for each expert.

    Raises InputError, in the name of the asker, where it has none in the space of the things.
    """
    scorer = getattr(router, "scorer", router)
    own = getattr(scorer, "own", scorer)
    if not hasattr(own, "centres"):
        raise InputError(
            f"{asker}: {type(own).__name__} has no row per expert in the experts' space; "
            "a linear scorer has"
        )
    rows = own.centres()
    return rows.to(routing_dtype(rows))


@torch.no_grad()
def noise_bound(rows: Tensor) -> Tensor:
    """(E,): ε, half the distance to the nearest other row over the row's length; no gradient.

    A row whose entries are scaled by factors in [1 - ε, 1 + ε] stays nearest to itself. 0 for a row
    of noughts, for one that has a double, and where there is one row alone. May exceed 1.
    Source: section 3.2.
    """
    if len(rows) < 2:
        return rows.new_zeros(len(rows))
    # Distances of differences: those by a matrix product lose close rows to rounding.
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = apart.fill_diagonal_(torch.inf).min(1).values
    length = rows.norm(dim=1)
    return torch.where(length > 0, nearest / (2 * length).clamp_min(1e-30), 0.0)


def excitement(rows: Tensor, experts: Any, stage: str = "gate") -> Tensor:
    """(R, E): M, how strongly each row (R, D) excites each expert up to a stage.

    The Euclidean norm of what `experts.excitations` gives. Source: equation 4.
    """
    return torch.linalg.vector_norm(experts.excitations(rows, stage), dim=-1)


def coupling(matrix: Tensor, alpha: float = 1.0) -> Tensor:
    """The mean over all E² of max(M_ij - α M_ii, 0) + max(M_ji - α M_ii, 0), j ≠ i.

    matrix: (E, E), rows are proxies, columns experts. Source: equation 5.
    """
    diagonal = alpha * matrix.diagonal()
    over = F.relu(matrix - diagonal[:, None]) + F.relu(matrix - diagonal[None, :])
    others = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    return torch.where(others, over, 0.0).mean()


def strength(matrix: Tensor) -> float:
    """α*: the least α whose `coupling` is zero; 0 where each row excites its own expert alone.

    Infinite where a row does not excite its own expert. Source: section 4.3, in closed form.
    """
    foreign = matrix.masked_fill(torch.eye(len(matrix), dtype=torch.bool).to(matrix.device), 0.0)
    most = torch.maximum(foreign.max(0).values, foreign.max(1).values)
    return float(torch.where(most > 0, most / matrix.diagonal(), 0.0).max())


class Coupling(LayerLoss):
    """ERC: each row, taken for a token, excites its own expert most, and no other row does so more.

    alpha: how strict; 1 as in the paper, less is stricter.
    noise: each row is scaled entry by entry by factors within its `noise_bound`, drawn anew in each
        step: by `seed` and the context's step, alike on all ranks, or where no step is given by the
        context's generator.
    stage: what of the experts is excited: "gate", the projection inside the activation; the paper
        compares "up", "activated", "hidden" and "output".
    Gradients go to the rows and the experts' projections alone. The cost does not depend on things.
    Raises InputError for a router without rows or experts that are not stacked.
    Source: section 3.
    """

    name = "coupling"

    def __init__(
        self,
        weight: float = 1.0,
        alpha: float = 1.0,
        noise: bool = True,
        stage: str = "gate",
    ) -> None:
        super().__init__(weight)
        if alpha < 0:
            raise InputError(f"coupling: alpha={alpha}; at least 0 is needed")
        self.alpha = alpha
        self.noise = noise
        self.stage = stage

    def check(self, router: Any, experts: Any) -> None:
        rows = centres(router, self.name)
        if not hasattr(experts, "excitations"):
            raise InputError(
                f"coupling: {type(experts).__name__} does not tell how rows excite its experts; "
                "experts in one stack, as FeedForwardExperts, do"
            )
        with torch.no_grad():
            excitement(rows[:0], experts, self.stage)

    def penalty(self, router: Any, experts: Any, context: RoutingContext) -> Tensor:
        with torch.autocast(_device_of(router), enabled=False):
            rows = centres(router, self.name)
            proxies = rows * self._factors(rows, context) if self.noise else rows
            return coupling(excitement(proxies, experts, self.stage), self.alpha)

    def _factors(self, rows: Tensor, context: RoutingContext) -> Tensor:
        """(E, D): δ, uniform within 1 ± ε; a constant."""
        if context.step is None:
            uniform = torch.empty_like(rows).uniform_(-1, 1, generator=context.generator)
        else:
            drawn = torch.rand(rows.shape, generator=generator_of(self.seed, context.step))
            uniform = (2 * drawn - 1).to(rows)
        return 1 + noise_bound(rows)[:, None] * uniform.detach()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, alpha={self.alpha}, noise={self.noise}, {self.stage!r}"


class Orthogonality(LayerLoss):
    """‖R̂ R̂ᵀ - I‖², of the router's rows scaled to length one: they should point apart.

    A baseline of `Coupling`, which looks at the experts. Source: section 4.4 of the same paper.
    """

    name = "orthogonality"

    def __init__(self, weight: float = 1e-2) -> None:
        super().__init__(weight)

    def check(self, router: Any, experts: Any) -> None:
        centres(router, self.name)

    def penalty(self, router: Any, experts: Any, context: RoutingContext) -> Tensor:
        with torch.autocast(_device_of(router), enabled=False):
            rows = F.normalize(centres(router, self.name), dim=1)
            return (rows @ rows.T - torch.eye(len(rows)).to(rows)).square().sum()


def _device_of(router: Any) -> str:
    return centres(router, "router").device.type
