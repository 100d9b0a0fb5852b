"""Progressive scaling: in training, few experts may be chosen at first, and more as it goes on.

Source: ReXMoE: Reusing Experts with Minimal Overhead in Mixture-of-Experts, arXiv 2510.17483.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.routing.candidates import Candidates, drawn
from polypath.routing.context import RoutingContext

Growth = Literal["linear", "stepwise"]


class ProgressiveScaling(Candidates):
    """A random set of candidates in each training step, from `least` up to all; none out of it.

    N(t) = least until step `start`, ⌊least + (E − least) (t − start) / (end − start)⌋ until `end`,
    E after it. growth="stepwise" adds `least` at once, at equal intervals from `start` to `end`.
    first: experts that are always candidates, the others being drawn: those of the layer itself,
        where it should begin by choosing among these alone.
    renormalise: masked before the softmax; the printed form masks after it, and the weights of the
        chosen experts stay small until the gate has learnt to tell them apart.
    seed: layers of different seeds draw different sets.
    One set for all things of a step; needs `step` in the context where it limits anything.
    With least < E and no reuse this is expert dropout.
    Raises InputError when the numbers do not fit each other.
    Source: equation 6.
    """

    def __init__(
        self,
        num_experts: int,
        least: int,
        start: int,
        end: int,
        growth: Growth = "linear",
        first: Iterable[int] = (),
        renormalise: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.first = tuple(sorted(set(first)))
        if not 1 <= least <= num_experts:
            raise InputError(f"ProgressiveScaling: least={least} of {num_experts} experts")
        if not 0 <= start <= end:
            raise InputError(f"ProgressiveScaling: start={start}, end={end}; 0 ≤ start ≤ end")
        if len(self.first) > least or not set(self.first) <= set(range(num_experts)):
            raise InputError(
                f"ProgressiveScaling: first={self.first} of least={least}, {num_experts} experts"
            )
        if growth not in ("linear", "stepwise"):
            raise unknown("growth", growth, ("linear", "stepwise"))
        self.num_experts = num_experts
        self.least = least
        self.start = start
        self.end = end
        self.growth = growth
        self.renormalise = renormalise
        self.seed = seed

    def count(self, step: int) -> int:
        """N(t), how many experts are candidates in a training step."""
        if step >= self.end and step > self.start:
            return self.num_experts
        if self.growth == "linear":
            passed, whole = max(0, step - self.start), max(1, self.end - self.start)
            return self.least + (self.num_experts - self.least) * passed // whole
        jumps = -(-self.num_experts // self.least) - 1
        times = (self.start + (self.end - self.start) * i / max(1, jumps - 1) for i in range(jumps))
        return min(self.num_experts, self.least * (1 + sum(step >= time for time in times)))

    def forward(self, context: RoutingContext) -> Tensor | None:
        if not self.training or self.least == self.num_experts:
            return None
        step = context.need("step", "ProgressiveScaling")
        count = self.count(step)
        if count == self.num_experts:
            return None
        others = [expert for expert in range(self.num_experts) if expert not in self.first]
        allowed = torch.zeros(self.num_experts, dtype=torch.bool)
        allowed[list(self.first)] = True
        allowed[others] = drawn(len(others), count - len(self.first), self.seed, step)
        return allowed

    def extra_repr(self) -> str:
        first = f", first={self.first}" if self.first else ""
        return (
            f"{self.least} to {self.num_experts} experts, steps {self.start} to {self.end}, "
            f"{self.growth}{first}, renormalise={self.renormalise}, seed={self.seed}"
        )
