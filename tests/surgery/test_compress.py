from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts import switch_base, tiny_model, tiny_switch
from polypath import attach, from_pretrained, save_pretrained
from polypath.errors import InputError
from polypath.experts.compressed import LowRankSparse
from polypath.language.families import decoder_of
from polypath.language.merged import Merged, shrink
from polypath.surgery.calibration import calibrate
from polypath.surgery.compress import (
    Sensitivity,
    compressed,
    keep_ratio,
    shed,
    split_experts,
)
from polypath.surgery.merge import Merge, merge
from polypath.surgery.report import Size


@pytest.mark.parametrize("kind", ["Olmoe", "Mixtral", "GptOss"])
@pytest.mark.parametrize("merged", [False, True])
def test_the_split_is_exact_and_what_is_shed_comes_back(
    kind: str, merged: bool, tmp_path: Path, logits: Any, texts: dict
) -> None:
    """Properties 7 and 11."""
    model = attach(tiny_model(kind))
    if merged:
        merge(model, calibrate(model, texts["one"]), Merge(4))
    before = logits(model)
    split_experts(model, 3)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for one in compressed(model).values():
            one.sparse *= (torch.rand(len(one.sparse), 1, generator=generator) < 0.3).float()
    pruned = logits(model)
    shed(model)
    assert all((one.sparse != 0).any(1).all() for one in compressed(model).values())
    torch.testing.assert_close(logits(model), pruned, rtol=1e-4, atol=1e-4)
    save_pretrained(model, tmp_path / "model")
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "model")), logits(model))
    with pytest.raises(InputError, match="compressed already"):
        split_experts(model, 2)


def test_switch_transformers_are_split_too(tmp_path: Path) -> None:
    model = attach(tiny_switch())
    ids = torch.randint(61, (2, 6))
    with torch.no_grad():
        before = model(input_ids=ids, decoder_input_ids=ids).logits
        split_experts(model, 4)
        after = model(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    save_pretrained(model, tmp_path / "model")
    with torch.no_grad():
        back = from_pretrained(tmp_path / "model")(input_ids=ids, decoder_input_ids=ids).logits
    torch.testing.assert_close(back, after)


def test_the_published_schedule() -> None:
    """Property 8."""

    def at(step: int) -> float:
        return round(keep_ratio(step, 10_000, 400, 1600, 0.10), 4)

    found = [at(step) for step in (400, 1400, 2400, 4400, 6400, 8400, 10_000)]
    assert found == [1.0, 0.7029, 0.4797, 0.2125, 0.1141, 0.1, 0.1]
    every = [keep_ratio(step, 10_000, 400, 1600, 0.1) for step in range(0, 10_001, 50)]
    assert all(a >= b for a, b in pairwise(every))


def test_published_sizes_of_switch_base_32() -> None:
    """Property 6: 381M merged and compressed, 570M compressed alone; the first layer stays."""
    dim, hidden, rank = 768, 3072, 32
    assert 2 * rank * (dim + hidden) == 245_760
    rows = [round(0.1 * hidden), round(0.1 * dim)]
    found = []
    for stored in (8, 32):
        with torch.device("meta"):
            model = attach(switch_base(32))
            for number, layer in enumerate(decoder_of(model).routed().values()):
                if number:
                    shrink(layer, Merged("adopted", stored, rank, [rows] * stored))
        found.append(round(Size.of(model).parameters / 1e6))
    assert found == [381, 570]


def maps(rows: int = 6) -> dict[str, LowRankSparse]:
    torch.manual_seed(0)
    return {name: LowRankSparse.split(torch.randn(rows, 4), 2) for name in ("one", "other")}


def test_rows_go_by_their_importance_one_step_late() -> None:
    known = maps()
    watch = Sensitivity(known, beta=0.85)
    mean = {name: torch.zeros(6, 4) for name in known}
    last = {name: torch.zeros(6, 4) for name in known}
    for _ in range(3):
        for name, one in known.items():
            one.sparse.grad = torch.randn(6, 4)
            mean[name] = 0.85 * mean[name] + 0.15 * last[name]
            last[name] = (one.sparse * one.sparse.grad).detach().abs()
        watch.observe()
        for name in known:
            torch.testing.assert_close(watch.mean[name], mean[name])
    scores = torch.cat([mean[name].mean(1) for name in known])
    best = set(scores.topk(4).indices.tolist())
    assert watch.prune(4 / 12) == pytest.approx(4 / 12)
    left = torch.cat([(one.sparse != 0).any(1) for one in known.values()])
    assert set(left.nonzero()[:, 0].tolist()) == best


def test_all_maps_are_ranked_together() -> None:
    known = maps()
    watch = Sensitivity(known)
    for scale, one in zip((1.0, 100.0), known.values(), strict=True):
        one.sparse.grad = torch.full((6, 4), scale)
    watch.observe(), watch.observe()
    watch.prune(0.5)
    left = [int((one.sparse != 0).any(1).sum()) for one in known.values()]
    assert left == [0, 6]
