"""Optimisers and learning-rate schedules."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with β = (0.9, 0.95); vectors (norms, biases, temperatures) are not decayed."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            # One update cannot mix tensors that are spread over ranks with tensors that are not.
            key = (parameter.ndim >= 2, isinstance(parameter, DTensor))
            groups.setdefault(key, []).append(parameter)
    described: Iterable[dict] = (
        {"params": members, "weight_decay": weight_decay if decayed else 0.0}
        for (decayed, _), members in groups.items()
    )
    return torch.optim.AdamW(list(described), lr=learning_rate, betas=(0.9, 0.95), fused=True)


def cosine_schedule(step: int, steps: int, warmup: int, floor: float = 0.1) -> float:
    """The factor on the learning rate at `step` (from 0): a linear rise, then half a cosine."""
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
