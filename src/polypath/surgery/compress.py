"""Merged experts as low-rank products and a few whole rows, which training chooses: MC-SMoE.

Source: MC-SMoE (Li et al. 2023), arXiv 2310.01334, section 3.3, after LoSparse.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.experts import ExpertList
from polypath.experts.compressed import CompressedExpert, LowRankSparse
from polypath.experts.merged import MergedExperts
from polypath.language.checkpoint import save_here
from polypath.language.families import Decoder, decoder_of
from polypath.language.merged import Merged, activation_of, described
from polypath.surgery.banks import stacks


@torch.no_grad()
def split_experts(model: PreTrainedModel, rank: int, excluded: Sequence[int] = ()) -> None:
    """Every expert's matrices of a routed model as U V + S; the model computes what it did.

    S keeps all rows until `shed`. Layers that were not merged keep all their experts. excluded:
    layers whose experts stay as they are.
    Raises InputError where a rank is too large, or a layer was compressed before.
    """
    decoder = decoder_of(model)
    for index, layer in decoder.routed().items():
        if index in excluded:
            continue
        bank = layer.experts
        if not isinstance(bank, MergedExperts):
            count = len(cast(Tensor, stacks(bank)[2]))
            own = described(decoder.host.origins.get(index), layer, index)
            bank = MergedExperts(bank, torch.arange(count), count)
            layer.experts = bank
            decoder.host.origins[index] = Merged(own, count)
        if any(isinstance(m, LowRankSparse) for m in bank.modules()):
            raise InputError(f"compress: layer {index} is compressed already")
        weights, activation = stacks(bank.bank), activation_of(bank.bank)
        bank.bank = ExpertList(
            CompressedExpert.split(
                [None if part is None else part[expert] for part in weights], activation, rank
            )
            for expert in range(bank.stored)
        )
    describe(decoder)
    save_here(model)


def compressed(model: torch.nn.Module) -> dict[str, LowRankSparse]:
    """The compressed maps of a model by their dotted names."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LowRankSparse)}


def describe(decoder: Decoder) -> None:
    """Note in the host what its compressed layers are, as they stand now."""
    for index, layer in decoder.routed().items():
        origin = decoder.host.origins.get(index)
        if not isinstance(origin, Merged):
            continue
        experts = [m for m in layer.experts.modules() if isinstance(m, CompressedExpert)]
        if experts:
            rows = [[len(one.kept) for one in expert.maps] for expert in experts]
            rank = experts[0].inner.u.shape[1]
            decoder.host.origins[index] = replace(origin, rank=rank, rows=rows)


def shed(model: PreTrainedModel) -> None:
    """Store only the rows of S that are not zero; the model computes what it did."""
    for one in compressed(model).values():
        one.shed()
    describe(decoder_of(model))


def keep_ratio(step: int, steps: int, first: int, last: int, final: float) -> float:
    """The part of S's rows that is kept at a step: 1 until `first`, falling by a cubic to `final`.

    last: steps at the end under `final`. Source: the released code; the printed formula starts
    above 1.
    """
    if step <= first:
        return 1.0
    if step > steps - last:
        return final
    left = 1 - (step - first) / max(1, steps - first - last)
    return final + (1 - final) * left**3


class Sensitivity:
    """A running importance of every entry of S, |S ⊙ ∂loss/∂S|, one step late as in the code.

    beta: of the running mean.
    """

    def __init__(self, maps: Mapping[str, LowRankSparse], beta: float = 0.85) -> None:
        self.maps = dict(maps)
        self.beta = beta
        self.mean = {name: torch.zeros_like(one.sparse) for name, one in self.maps.items()}
        self.last = {name: torch.zeros_like(one.sparse) for name, one in self.maps.items()}

    @torch.no_grad()
    def observe(self) -> None:
        """Take in the gradients of a step, before the optimiser uses them."""
        for name, one in self.maps.items():
            grad = one.sparse.grad
            self.mean[name].mul_(self.beta).add_(self.last[name], alpha=1 - self.beta)
            self.last[name] = torch.zeros_like(one.sparse) if grad is None else one.sparse * grad
            self.last[name].abs_()

    @torch.no_grad()
    def prune(self, ratio: float) -> float:
        """Zero the rows of all S that score lowest together; the part of rows that is left.

        A row scores its mean importance; rows may come back, as gradients go on.
        """
        scores = {name: mean.mean(1) for name, mean in self.mean.items()}
        every = torch.cat(list(scores.values()))
        kept = max(1, round(ratio * len(every)))
        if kept < len(every):
            chosen = torch.zeros(len(every), dtype=torch.bool)
            chosen[every.argsort(descending=True, stable=True)[:kept]] = True
            for one, keep in zip(
                self.maps.values(), chosen.split([len(s) for s in scores.values()]), strict=True
            ):
                one.sparse.mul_(keep[:, None])
        left = sum(int((one.sparse != 0).any(1).sum()) for one in self.maps.values())
        return left / max(1, len(every))
