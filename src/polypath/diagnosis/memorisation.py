"""When samples are memorised, and when others are understood, from what training leaves behind.

Source: Where to find Grokking in LLM Pretraining?, arXiv 2506.21551.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polypath.errors import InputError


@torch.no_grad()
def memorised(losses: Tensor, ceiling: float, drift: float = 0.05) -> Tensor:
    """(N,) int64: the checkpoint from which a sample's loss stays low; -1 where there is none.

    losses: (N, C) of N samples at C checkpoints, in nats. Low: at most `ceiling`, and within
    `drift` of the last checkpoint's.
    """
    if losses.ndim != 2 or losses.shape[1] == 0:
        raise InputError(f"memorised: losses {tuple(losses.shape)}; (samples, checkpoints)")
    low = (losses <= ceiling) & ((losses - losses[:, -1:]).abs() <= drift)
    return _first(low.flip(1).cummin(1).values.flip(1))


@torch.no_grad()
def generalised(correct: Tensor, mean: float = 0.8, errors: int = 1) -> Tensor:
    """(N,) int64: the first checkpoint from which a sample stays right; -1 where there is none.

    correct: (N, C) bool. There it is right, and from there on in more than `mean` of the
    checkpoints and wrong in at most `errors`.
    """
    if correct.ndim != 2 or correct.dtype != torch.bool:
        raise InputError(f"generalised: {tuple(correct.shape)} {correct.dtype}; (N, C) of bool")
    left = torch.arange(correct.shape[1], 0, -1, device=correct.device)
    right = correct.long().flip(1).cumsum(1).flip(1)
    return _first(correct & (right > mean * left) & (left - right <= errors))


def _first(stays: Tensor) -> Tensor:
    """(N,): the first true column; -1 without one."""
    if stays.shape[1] == 0:
        return stays.new_full((len(stays),), -1, dtype=torch.int64)
    found, place = stays.max(dim=1)
    return torch.where(found, place, -1)
