"""Sub-models of a routed decoder: fewer layers, fewer experts, fewer experts for a token.

They run in place, with the weights of the whole, in one training step or for as long as a block
lasts; `extract` cuts one out.
Source: elastic training of the ERNIE 5.0 Technical Report, arXiv 2602.04705.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.experts import ExpertList
from polypath.language.families import Decoder, decoder_of
from polypath.routing import MoE, TopK, current
from polypath.routing.context import generator_of


@dataclass(frozen=True)
class SubModel:
    """What is left of a decoder.

    layers: the layers that run, from below; the others are bypassed, the residual stream passes
        them as it is.
    experts: by routed layer, the experts that may be chosen; a layer that is not named has all.
    k: experts of a token, None for as many as in the whole; no more than there are in a layer.
    """

    layers: tuple[int, ...]
    experts: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    k: int | None = None

    def check(self, decoder: Decoder) -> None:
        """Raise InputError where it is no part of this decoder."""
        count, routed = len(decoder.layers), decoder.routed()
        if list(self.layers) != sorted({i for i in self.layers if 0 <= i < count}):
            raise InputError(f"sub-model: layers {list(self.layers)} of 0 to {count - 1}, in order")
        for index, kept in self.experts.items():
            total = experts_in(routed[index]) if index in routed else 0
            if not kept or list(kept) != sorted({e for e in kept if 0 <= e < total}):
                raise InputError(f"sub-model: experts {list(kept)} of {total} in layer {index}")
        if self.k is not None:
            for layer in routed.values():
                if not 1 <= self.k <= (most := selection_of(layer).k):
                    raise InputError(f"sub-model: k={self.k} of a model with k={most}")


def experts_in(layer: MoE) -> int:
    """How many experts a routed layer has."""
    bank = layer.experts
    return len(bank) if isinstance(bank, ExpertList) else len(next(bank.parameters()))


def selection_of(layer: MoE) -> TopK:
    """The selection of a routed layer; raises InputError where it is not top-k."""
    selection = getattr(layer.router, "selection", None)
    if not isinstance(selection, TopK):
        raise InputError(f"sub-model: {layer.router} is not top-k, and has no k to make smaller")
    return selection


def whole(model: PreTrainedModel) -> SubModel:
    """All of it."""
    return SubModel(tuple(range(len(decoder_of(model).layers))))


@contextmanager
def running(model: PreTrainedModel, part: SubModel) -> Iterator[None]:
    """Inside the block the model is the sub-model; its weights and its layers' indices stay.

    Experts that may not be chosen score -inf before the selection, so that the gate, the losses and
    the balancing see the smaller layer. Bypassed layers have no gradient and no losses. A cache of
    keys and values needs layer 0 to run, which counts its tokens.
    Raises InputError where the part does not fit the model.
    """
    decoder = decoder_of(model)
    part.check(decoder)
    with ExitStack() as undo:
        for index in set(range(len(decoder.layers))) - set(part.layers):
            layer = decoder.layers[index]
            layer.forward = _pass_on
            undo.callback(vars(layer).pop, "forward")
            if isinstance(mlp := decoder.mlp(index), MoE):
                mlp.last = None
        for index, mlp in decoder.routed().items():
            if (kept := part.experts.get(index)) is not None:
                hook = mlp.register_forward_pre_hook(_Only(kept), with_kwargs=True)
                undo.callback(hook.remove)
            if part.k is not None:
                selection = selection_of(mlp)
                undo.callback(setattr, selection, "k", selection.k)
                selection.k = min(part.k, selection.k)
        yield


def _pass_on(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return hidden_states


class _Only:
    """A pre-hook of a routed layer: of its candidates, only these."""

    def __init__(self, kept: Sequence[int]) -> None:
        self.kept = list(kept)

    def __call__(self, layer: MoE, args: tuple, kwargs: dict) -> tuple:
        context = kwargs.get("context") or current()
        allowed = torch.zeros(experts_in(layer), dtype=torch.bool, device=args[0].device)
        allowed[self.kept] = True
        if context.candidates is not None:
            allowed = allowed & context.candidates
        return args, kwargs | {"context": replace(context, candidates=allowed)}


@dataclass(frozen=True)
class Elastic:
    """How sub-models are drawn, one for each training step.

    depth, width, count: the probabilities that all layers, all experts, the whole k take part,
        drawn apart from each other.
    depths, widths: the shares of layers and experts that a reduced step may have, each as likely;
        its first and last layer always run, the others are drawn without replacement, as are the
        experts of each layer, never fewer than k.
    counts: values of a reduced k, those below the model's; None for 1 to k - 1.
    after: steps before, which are whole.
    Source: section on elastic training; sizes and how they are drawn are this project's.
    """

    depth: float = 0.75
    width: float = 0.80
    count: float = 0.80
    depths: tuple[float, ...] = (0.75, 0.5)
    widths: tuple[float, ...] = (0.5, 0.25)
    counts: tuple[int, ...] | None = None
    after: int = 0

    def __post_init__(self) -> None:
        for name in ("depth", "width", "count"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"Elastic: {name}={getattr(self, name)}; 0 to 1 is right")
        for name in ("depths", "widths"):
            shares = getattr(self, name)
            if not shares or not all(0 < share <= 1 for share in shares):
                raise InputError(f"Elastic: {name}={shares}; shares above 0 and up to 1 are needed")

    def draw(
        self, layers: int, experts: Mapping[int, int], k: int, seed: int, step: int
    ) -> SubModel:
        """The sub-model of a step: the same for a seed and a step, on all ranks.

        experts: by routed layer, how many it has.
        """
        generator = generator_of(seed, step)
        shallow, narrow, sparse = (
            float(torch.rand((), generator=generator)) >= share
            for share in (self.depth, self.width, self.count)
        )
        early = step < self.after
        kept = tuple(range(layers))
        if shallow and not early:
            kept = _some_layers(layers, _one_of(self.depths, generator), generator)
        chosen: dict[int, tuple[int, ...]] = {}
        if narrow and not early:
            share = _one_of(self.widths, generator)
            for index, total in experts.items():
                size = max(k, round(share * total))
                order = torch.randperm(total, generator=generator)[:size]
                chosen[index] = tuple(sorted(order.tolist()))
        fewer = None
        counts = tuple(range(1, k)) if self.counts is None else self.counts
        if sparse and not early and (smaller := [c for c in counts if c < k]):
            fewer = _one_of(smaller, generator)
        return SubModel(kept, chosen, fewer)


def _one_of(values: Sequence[Any], generator: torch.Generator) -> Any:
    return values[int(torch.randint(len(values), (), generator=generator))]


def _some_layers(layers: int, share: float, generator: torch.Generator) -> tuple[int, ...]:
    count = min(layers, max(2, round(share * layers)))
    if layers <= 2:
        return tuple(range(layers))
    between = torch.randperm(layers - 2, generator=generator)[: count - 2] + 1
    return (0, *sorted(between.tolist()), layers - 1)


@contextmanager
def elastic_step(
    model: PreTrainedModel, step: int, elastic: Elastic, seed: int = 0
) -> Iterator[None]:
    """The model is the sub-model of a training step inside the block.

    Experts that a step leaves out have zero gradients, not none: an optimiser's momentum and decay
    still move them. Bypassed layers stay as they are.
    """
    decoder = decoder_of(model)
    routed = decoder.routed()
    experts = {index: experts_in(layer) for index, layer in routed.items()}
    k = min(selection_of(layer).k for layer in routed.values())
    with running(model, elastic.draw(len(decoder.layers), experts, k, seed, step)):
        yield
