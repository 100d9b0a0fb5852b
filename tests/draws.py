"""What hypothesis draws for routing tests: sizes, scores with ties, candidates, padding."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from polypath.routing import RoutingContext


@dataclass
class Problem:
    """T things of D dimensions, E experts, k to choose; masks are None where there are none."""

    x: Tensor
    num_experts: int
    k: int
    candidates: Tensor | None
    mask: Tensor | None

    def __repr__(self) -> str:
        things, dim = self.x.shape
        return (
            f"Problem(T={things}, D={dim}, E={self.num_experts}, k={self.k}, "
            f"candidates={self.candidates}, mask={self.mask})"
        )

    @property
    def dim(self) -> int:
        return self.x.shape[1]

    @property
    def counted(self) -> list[bool]:
        return [True] * len(self.x) if self.mask is None else self.mask.tolist()

    def context(self, **values) -> RoutingContext:
        return RoutingContext(mask=self.mask, candidates=self.candidates, **values)


@st.composite
def problems(draw: st.DrawFn, masks: bool = True) -> Problem:
    """Nothing, one thing or a few; one expert or a few; k up to all of them."""
    things, dim = draw(st.integers(0, 6)), draw(st.integers(1, 4))
    num_experts = draw(st.integers(1, 6))
    kinds = ["none", "all", "each"] if masks else ["none"]
    shapes = {"none": None, "all": (num_experts,), "each": (things, num_experts)}
    shape = shapes[draw(st.sampled_from(kinds))]
    padded = masks and draw(st.booleans())
    return Problem(
        x=torch.randn(things, dim, dtype=torch.float64, requires_grad=True),
        num_experts=num_experts,
        k=draw(st.integers(1, num_experts)),
        candidates=None if shape is None else torch.rand(shape) < 0.6,
        mask=torch.rand(things) < 0.7 if padded else None,
    )


def scores_of(problem: Problem, ties: bool = False, closed_rows: bool = True) -> Tensor:
    """(T, E) float64 scores, whole numbers where there are to be ties, -inf outside candidates.

    Without closed_rows, a thing that may choose nothing may choose the first expert.
    """
    scores = torch.randn(len(problem.x), problem.num_experts, dtype=torch.float64)
    scores = scores.round() if ties else scores
    if problem.candidates is not None:
        closed = ~problem.candidates.expand(scores.shape)
        if not closed_rows:
            closed = closed & ~(closed.all(-1, keepdim=True) & (torch.arange(closed.shape[1]) == 0))
        scores = scores.masked_fill(closed, -torch.inf)
    return scores.requires_grad_()
