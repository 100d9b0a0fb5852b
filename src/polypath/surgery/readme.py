"""Read-ME: experts for domains carved from a dense model, and one router ahead of all layers.

Source: Cai et al. 2024, arXiv 2410.19123, and its released code; where they differ, the paper.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from polypath.errors import InputError, unknown
from polypath.language import RoutedLayers
from polypath.surgery.calibration import Calibration
from polypath.surgery.convert import Cut
from polypath.surgery.slices import DenseLayer, sets_of


def domain_masks(sizes: Tensor, kept: float) -> Tensor:
    """(N, F) bool: the `kept` part of the channels that is most active in each domain.

    sizes: (N, F), the mean |activation| of channels in domains. Exactly round(kept · F) each; of
    equal ones the first (the released code drops one). Source: equation 3.
    Raises InputError unless 0 < kept ≤ 1 leaves a channel.
    """
    width = sizes.shape[1]
    count = round(kept * width)
    if not 0 < kept <= 1 or count < 1:
        raise InputError(f"read-me: kept={kept} of {width} channels; a part between 0 and 1")
    order = sizes.argsort(dim=1, descending=True, stable=True)[:, :count]
    return torch.zeros_like(sizes, dtype=torch.bool).scatter_(1, order, True)


def permanent(masks: Tensor) -> Tensor:
    """(F,) bool: the channels that every domain's mask (N, F) keeps."""
    return masks.all(0)


def overlaps(activations: Tensor, masks: Tensor) -> Tensor:
    """(T, N): how many of a thing's most active channels each domain's mask keeps.

    activations: (T, F), of the dense layer. masks: (N, F) bool. A thing has as many channels as a
    mask. Source: section on routing distillation.
    """
    count = int(masks[0].sum())
    top = activations.abs().topk(count, dim=1).indices
    return masks.T.float()[top].sum(1)


@dataclass(frozen=True, eq=False)
class ReadMe:
    """Every dense layer becomes an expert for each domain, one of which serves a token.

    domains: a `Calibration` of the dense model on each domain's text, by name.
    kept: ρ, the part of the channels that an expert has.
    layout: "fused", each expert has all of its channels; "split", channels that all domains keep
        are stored once, in an expert that serves everything. Both compute the same.
    width, heads: of the router, see `PregatingScorer`.
    """

    domains: Mapping[str, Calibration]
    kept: float = 0.5
    layout: Literal["fused", "split"] = "fused"
    width: int = 512
    heads: int = 4
    seed: int = 0
    name: str = "read-me"
    masks: dict[int, Tensor] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        if self.layout not in ("fused", "split"):
            raise unknown("layout", self.layout, ("fused", "split"))
        if len(self.domains) < 2:
            raise InputError(f"read-me: {len(self.domains)} domains; two at least are needed")

    def check(self, dense: Mapping[int, DenseLayer]) -> None:
        self.masks.clear()
        for index, layer in dense.items():
            for name, found in self.domains.items():
                if index not in found.dense or len(found.dense[index].sizes) != layer.width:
                    raise InputError(f"read-me: domain {name} was not recorded at layer {index}")
            sizes = torch.stack([one.dense[index].mean() for one in self.domains.values()])
            self.masks[index] = domain_masks(sizes, self.kept)
            if self.layout == "split":
                self._check_split(index, layer)

    def _check_split(self, index: int, layer: DenseLayer) -> None:
        common = int(permanent(self.masks[index]).sum())
        if layer.biased or not 0 < common < int(self.masks[index][0].sum()):
            raise InputError(
                f"read-me: layer {index} has {common} channels in common"
                + " and biases" * layer.biased
                + "; layout='fused' is right"
            )

    def routed(self, model: Any, dense: Mapping[int, DenseLayer]) -> RoutedLayers:
        first = next(iter(dense.values()))
        wide = [int(self.masks[index][0].sum()) for index in dense]
        common = [int(permanent(self.masks[index]).sum()) for index in dense]
        split = self.layout == "split"
        return RoutedLayers(
            router="pregated",
            num_experts=len(self.domains),
            k=1,
            hidden=[a - b for a, b in zip(wide, common, strict=True)] if split else wide,
            shared_hidden=common if split else 0,
            kind=first.kind,
            bias=first.biased,
            options={
                "vocabulary": model.config.vocab_size,
                "width": self.width,
                "heads": self.heads,
            },
        )

    def cut(self, index: int, dense: DenseLayer) -> Cut:
        masks = self.masks[index]
        common = permanent(masks)
        told = f"{len(masks)} experts of {int(masks[0].sum())} units, one serves; "
        told += f"{int(common.sum())} are in all"
        share = float(masks.any(0).double().mean())
        if self.layout == "fused":
            exact = [[e] for e in range(len(masks))] if bool(masks.all()) else []
            return Cut(sets_of(masks), told, exact, share=share)
        beside = sets_of(common[None])
        return Cut(sets_of(masks & ~common), told, shared=beside, share=share)

    def start(self, model: Any, index: int, layer: Any) -> None:
        """The router's table of tokens starts as the first columns of the model's, as far as."""
        table = model.get_input_embeddings()
        scorer = layer.router.scorer
        if table is not None and index == min(self.masks):
            columns = min(self.width, table.weight.shape[1])
            scorer.embedding.weight[:, :columns] = table.weight[:, :columns]


def distillation_target(overlap: Sequence[Tensor]) -> Tensor:
    """(T, N): a softmax of a token's overlaps (T, N) with the domains, in the mean over layers."""
    return torch.stack(list(overlap)).mean(0).softmax(-1)
