"""Routings with everything that a record can hold: empty slots, things left out, no things."""

import pytest
import torch
from hypothesis import strategies as st

from polypath.routing import Routing


@st.composite
def routings(draw, things: int | None = None) -> Routing:
    seed = draw(st.integers(0, 2**16))
    size = draw(st.integers(0, 12)) if things is None else things
    experts = draw(st.integers(1, 6))
    slots = draw(st.integers(1, experts))
    masked = draw(st.booleans())
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(size, experts, generator=generator)
    chosen = scores.argsort(-1, descending=True)[:, :slots]
    empty = torch.rand(size, slots, generator=generator) < 0.2
    weights = torch.rand(size, slots, generator=generator).masked_fill(empty, 0.0)
    mask = torch.rand(size, generator=generator) < 0.8 if masked else None
    return Routing(
        scores, chosen.masked_fill(empty, -1), weights, scores.softmax(-1).detach(), mask
    )


def units(routing: Routing) -> list[dict[int, float]]:
    """Each thing's experts with its unit split evenly over them, in plain Python."""
    split = []
    for i in range(len(routing)):
        counts = routing.mask is None or bool(routing.mask[i])
        chosen = [e for e in routing.experts[i].tolist() if e >= 0] if counts else []
        split.append({e: 1 / len(chosen) for e in chosen})
    return split


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
