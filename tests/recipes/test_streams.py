"""Streams with tokens of their own, and what is seen of how experts serve them."""

import pytest
import torch

from polypath.diagnosis import chance_overlap
from polypath.language import RoutedLayers
from polypath.recipes.streams import (
    BYTES,
    GREYS,
    LENGTH,
    PAIRS,
    STREAMS,
    VOCABULARY,
    backbone,
    measured,
    windows,
)

ROUTED = RoutedLayers(num_experts=16, k=2, hidden=8, gate="sigmoid", losses={})


def test_every_stream_has_its_own_tokens() -> None:
    text, images, audio = windows(None, 0)
    assert all(own.shape[1] == LENGTH for own in (text, images, audio))
    assert int(text.min()) >= 0 and int(text.max()) < BYTES
    assert int(images.min()) == BYTES and int(images.max()) == BYTES + GREYS - 1
    assert int(audio.min()) >= BYTES + GREYS and int(audio.max()) < VOCABULARY
    assert torch.equal(windows(None, 0)[2], audio) and not torch.equal(windows(None, 1)[2], audio)


def test_neighbouring_samples_of_a_sound_are_near() -> None:
    audio = windows(None, 0)[2].double()
    near = (audio[:, 1:] - audio[:, :-1]).abs().mean()
    far = (audio - audio[:, torch.randperm(LENGTH)]).abs().mean()
    assert float(near) < 0.7 * float(far)


def test_labels_are_read_by_no_router() -> None:
    torch.manual_seed(0)
    model = backbone(ROUTED, 2).eval()
    facts = measured(model, [own[:8] for own in windows(None, 0)], seed=0)
    assert facts["told"] == 0
    assert len(facts["usage"]) == 2 and len(facts["usage"][0]) == len(STREAMS)
    assert [sum(row) for row in facts["usage"][0]] == pytest.approx([1, 1, 1])
    assert all(0 <= value <= 1 for layer in facts["entropy"] for value in layer)
    assert all(len(layer) == len(PAIRS) for layer in facts["overlap"])


def test_streams_that_go_everywhere_overlap_by_chance() -> None:
    torch.manual_seed(0)
    found = []
    for seed in range(12):
        model = backbone(ROUTED, 1).eval()
        drawn = [torch.randint(VOCABULARY, (6, LENGTH)) for _ in STREAMS]
        facts = measured(model, drawn, seed)
        found += facts["overlap"][0]
    # Random tokens of one vocabulary are one stream: they use the same experts most.
    assert sum(found) / len(found) > 1.5 * chance_overlap(16)
