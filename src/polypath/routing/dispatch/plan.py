"""The order in which rows visit experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """The filled slots of a routing over T things and E experts, sorted by expert.

    slots: (S,) int64, positions in the flattened (T, K) slots.
    things: (S,) int64, the thing of each slot.
    counts: (E,) int64, how many of the slots each expert serves.
    sizes: the counts as integers.
    """

    slots: Tensor
    things: Tensor
    counts: Tensor
    sizes: list[int]


def plan(experts: Tensor, num_experts: int) -> Plan:
    """Sort experts (T, K) int64 by expert; slots with -1 are left out, things stay in order.

    On a GPU this waits for the routing once.
    """
    make = _by_numpy if experts.is_cpu else _by_torch
    return make(experts, num_experts)


def _by_numpy(experts: Tensor, num_experts: int) -> Plan:
    """For CPUs: numpy sorts short integers by radix, and asks less for each call."""
    flat = experts.numpy().ravel()
    short = flat.astype(np.int16) if num_experts < 1 << 15 else flat
    order = np.argsort(short, kind="stable")
    counts = np.bincount(flat + 1, minlength=num_experts + 1)
    slots = order[counts[0] :]
    things = slots // max(experts.shape[1], 1)
    tensor, counts = torch.from_numpy, counts[1:]
    return Plan(tensor(slots), tensor(things), tensor(counts), counts.tolist())


def _by_torch(experts: Tensor, num_experts: int) -> Plan:
    flat = experts.flatten()
    counts = torch.bincount(flat + 1, minlength=num_experts + 1)
    empty, *sizes = counts.tolist()
    slots = flat.argsort(stable=True)[empty:]
    return Plan(slots, slots // max(experts.shape[1], 1), counts[1:], sizes)
