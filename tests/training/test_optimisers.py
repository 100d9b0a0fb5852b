import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from polypath.training.optimisers import adamw, cosine_schedule


def test_schedule_at_its_corners():
    factor = [cosine_schedule(step, steps=110, warmup=10, floor=0.1) for step in range(111)]
    assert factor[0] == pytest.approx(0.1)
    assert factor[9] == factor[10] == 1.0
    assert factor[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factor[110] == pytest.approx(0.1)
    assert all(a >= b for a, b in pairwise(factor[10:]))


def test_only_matrices_decay():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimiser = adamw(model, learning_rate=0.1, weight_decay=0.5)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    for name, parameter in model.named_parameters():
        kept = 1 - 0.1 * 0.5 if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept)
