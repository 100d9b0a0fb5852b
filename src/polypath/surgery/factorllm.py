"""FactorLLM: a dense feed-forward layer split into equal experts, and the loss that teaches who.

Source: Zhao et al. 2024, arXiv 2408.11855, and its released code; where they differ, the loss is
the whole sum (the code leaves the routers untrained).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.experts.feedforward import Kind
from polypath.language import RoutedLayers
from polypath.routing import Routing
from polypath.routing.dispatch import Weights
from polypath.surgery.clusters import balanced
from polypath.surgery.convert import Cut, normal_rows
from polypath.surgery.slices import DenseLayer, outputs
from polypath.surgery.supervision import Target

Split = Literal["contiguous", "random", "clustered"]
Label = Literal["individual", "subset"]


@dataclass(frozen=True)
class FactorLLM:
    """Every dense layer becomes `experts` slices, `k` of which serve a token, each counting E // k.

    split: "contiguous" blocks of units, "random" ones, or "clustered": balanced k-means on the
    first map's rows. seed: of the split and the routers' rows.
    """

    experts: int = 4
    k: int = 2
    split: Split = "contiguous"
    seed: int = 0
    name: str = "factorllm"

    def __post_init__(self) -> None:
        if self.split not in ("contiguous", "random", "clustered"):
            raise unknown("split", self.split, ("contiguous", "random", "clustered"))
        if not 1 <= self.k <= self.experts:
            raise InputError(f"factorllm: k={self.k} of experts={self.experts}; 1 ≤ k ≤ experts")

    def check(self, dense: Mapping[int, DenseLayer]) -> None:
        for index, layer in dense.items():
            if layer.width % self.experts:
                raise InputError(
                    f"factorllm: experts={self.experts} do not divide the {layer.width} units of "
                    f"layer {index}"
                )

    def routed(self, model: Any, dense: Mapping[int, DenseLayer]) -> RoutedLayers:
        first = next(iter(dense.values()))
        return RoutedLayers(
            num_experts=self.experts,
            k=self.k,
            hidden=[layer.width // self.experts for layer in dense.values()],
            kind=first.kind,
            bias=first.biased,
            scorer="affine",
            gate="hard",
            scale=float(self.experts // self.k),
            losses={},
        )

    def cut(self, index: int, dense: DenseLayer) -> Cut:
        sets = self.sets(index, dense)
        became = f"{self.experts} experts of {sets.shape[1]} units, {self.k} of which serve"
        return Cut(sets, became, [range(self.experts)], bias=1 / self.experts)

    def sets(self, index: int, dense: DenseLayer) -> Tensor:
        """(E, F / E) int64: the units of each expert of the layer at an index."""
        generator = torch.Generator().manual_seed(self.seed * 1000 + index)
        if self.split == "contiguous":
            return torch.arange(dense.width).view(self.experts, -1)
        if self.split == "random":
            return torch.randperm(dense.width, generator=generator).view(self.experts, -1)
        return balanced(dense.matrix(dense.maps()[0]), self.experts, self.seed)

    def start(self, model: Any, index: int, layer: Any) -> None:
        scorer = layer.router.scorer
        normal_rows(scorer.weight, 0.02, self.seed * 1000 + index)
        scorer.bias.zero_()


def prior_label(every: Tensor, teacher: Tensor, k: int, label: Label = "individual") -> Tensor:
    """(T, E) float of 0 and 1: the k experts that should serve, by what they make of things.

    every: (T, E, D), what each expert makes. teacher: (T, D), what the dense layer makes.
    "individual": the k whose outputs are nearest to teacher / (E // k). "subset": the k whose sum
    is nearest to the teacher, out of all choices. Ties go to lower numbers.
    """
    count = every.shape[1]
    if label == "individual":
        far = (every - teacher[:, None] / (count // k)).square().mean(-1)
        nearest = far.argsort(dim=1, stable=True)[:, :k]
        return torch.zeros_like(far).scatter_(1, nearest, 1.0)
    if label != "subset":
        raise unknown("label", label, ("individual", "subset"))
    subsets = torch.stack(
        [
            torch.zeros(count).index_fill(0, torch.tensor(chosen), 1.0)
            for chosen in combinations(range(count), k)
        ]
    ).to(every)
    # ‖Σ E − T‖² from products of outputs, so that no sum of every subset is ever made.
    products = every @ every.mT
    pulls = every @ teacher[:, :, None]
    far = torch.einsum("sa,tab,sb->ts", subsets, products, subsets) - 2 * pulls[..., 0] @ subsets.T
    return subsets[far.argmin(1)]


@dataclass(frozen=True)
class PriorApproximate:
    """The Prior-Approximate loss: routers taught by how near each expert is to the dense layer.

    For `supervise`. teachers: the dense layers' weights by the routed layers' names. label: see
    `prior_label`; the target is its softmax. The things are the routed layer's own, without graph.
    """

    teachers: Mapping[str, Weights]
    kind: Kind
    k: int
    label: Label = "individual"

    def __call__(self, name: str, layer: Any, rows: Tensor, routing: Routing) -> Target:
        every = outputs(layer.experts.weights(), self.kind, rows)
        teacher = outputs(self.teachers[name], self.kind, rows)[:, 0]
        return Target(prior_label(every, teacher, self.k, self.label).softmax(-1))


def gate_balance(routing: Routing) -> Tensor:
    """The mean over things and experts of gate · softmax: the chosen probability, over E.

    Flattens each thing's gate; it does not balance loads. With a gradient to the router.
    """
    p = routing.scores.softmax(-1)
    filled = routing.experts >= 0
    mass = p.gather(1, routing.experts.clamp_min(0)).masked_fill(~filled, 0.0).sum(-1)
    if routing.mask is not None:
        mass = mass[routing.mask]
    return mass.mean() / routing.num_experts
