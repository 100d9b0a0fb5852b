"""The weights of any bank of experts as stacks, to read and to write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts import ExpertList, FeedForwardExperts
from polypath.experts.layouts import Projection, linears

Stacks = Sequence[Tensor | None]
"""(E, ·F, D), bias, (E, D, F), bias; None for what there is not."""


def stacks(bank: nn.Module) -> list[Tensor | None]:
    """A bank's weights, without graph; of stacked ones views, of experts apart copies.

    Raises InputError for a bank of anything else than feed-forward networks of one shape.
    """
    if isinstance(bank, FeedForwardExperts):
        return [None if part is None else part.detach() for part in bank.weights()]
    if not isinstance(bank, ExpertList) or not all(set(linears(m)) == {"up", "down"} for m in bank):
        raise InputError(f"{type(bank).__name__} is no bank of feed-forward experts: {bank}")
    every = [linears(expert) for expert in bank]
    return [_stacked([own[name] for own in every], part) for name, part in _PLACES]


_PLACES = [("up", "weight"), ("up", "bias"), ("down", "weight"), ("down", "bias")]


def _stacked(maps: list[Projection], part: str) -> Tensor | None:
    cuts = [getattr(one, part) for one in maps]
    return None if cuts[0] is None else torch.stack([c.of(c.parameter).detach() for c in cuts])


@torch.no_grad()
def write(bank: Any, weights: Stacks) -> None:
    """Put stacks into a bank of as many experts."""
    if isinstance(bank, FeedForwardExperts):
        for own, new in zip(bank.weights(), weights, strict=True):
            if own is not None:
                own.copy_(new)
        return
    for number, expert in enumerate(bank):
        maps = linears(expert)
        for (name, part), stack in zip(_PLACES, weights, strict=True):
            if stack is not None:
                cut = getattr(maps[name], part)
                cut.of(cut.parameter).copy_(stack[number])
