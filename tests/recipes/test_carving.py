from typing import Any

import pytest
import torch

from hosts import tiny_model
from polypath.language.families import decoder_of
from polypath.recipes.carving import (
    Half,
    PerLayer,
    at_random,
    bits,
    pooled,
    repeats,
    tied,
    told,
    tune_layers,
    usage,
)
from polypath.recipes.dense_hosts import scores
from polypath.surgery.calibration import calibrate
from polypath.surgery.convert import convert, dense_layers
from polypath.surgery.freezing import changed, fingerprints
from polypath.surgery.readme import ReadMe, domain_masks
from polypath.surgery.tuning import Tuning


def seen(model: Any) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: calibrate(model, [torch.randint(low, low + 30, (3, 9), generator=generator)])
        for name, low in (("low", 0), ("high", 30))
    }


def windows() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return {
        name: torch.randint(low, low + 30, (4, 10), generator=generator)
        for name, low in (("low", 0), ("high", 30))
    }


def test_half_width_keeps_what_is_most_active_in_the_mean() -> None:
    model = tiny_model("Llama")
    known = seen(model)
    sizes = pooled(known)
    dense = dense_layers(decoder_of(model))[0]
    torch.testing.assert_close(
        sizes[0], (known["low"].dense[0].mean() + known["high"].dense[0].mean()) / 2
    )
    rows = torch.randn(5, 16)
    mask = domain_masks(sizes[0][None], 0.5)[0]
    wanted = (dense.hidden(rows) * mask) @ dense.matrix("down").T
    convert(model, Half(sizes, 0.5))
    layer = decoder_of(model).routed()[0]
    torch.testing.assert_close(layer(rows), wanted, rtol=1e-4, atol=1e-5)


def test_being_told_the_domain_runs_its_expert_alone() -> None:
    model = tiny_model("Llama")
    convert(model, ReadMe(seen(model), width=16, heads=2))
    test = windows()
    found = told(model, test)
    scorer = next(iter(decoder_of(model).routed().values())).router.scorer
    for expert, (name, own) in enumerate(test.items()):
        with torch.no_grad():
            scorer.leave.weight.zero_()
            scorer.leave.bias.zero_()
            scorer.leave.bias[expert] = 1.0
        assert scores(model, own)["bits"] == pytest.approx(found[name], rel=1e-5)
    assert repeats(model, test) == 1.0 and usage(model, test)[0] == [0.0, 1.0]
    assert set(bits(model, test)) == {"low", "high"}


def test_routers_of_layers_learn_and_nothing_else() -> None:
    dense, model = tiny_model("Llama"), tiny_model("Llama")
    model.load_state_dict(dense.state_dict())
    method = PerLayer(seen(dense))
    convert(model, method)
    before = fingerprints(model)
    generator = torch.Generator().manual_seed(0)
    losses: list[float] = []
    stream = iter(lambda: torch.randint(61, (4, 10), generator=generator), None)
    tuning = Tuning(steps=30, learning_rate=1e-2, warmup=2)
    tune_layers(model, dense, method.masks, stream, tuning, lambda step, loss: losses.append(loss))
    moved = changed(before, fingerprints(model))
    assert moved and all("router" in name for name in moved) and losses[-1] < losses[0]
    assert 0 <= tied(model, windows()) <= 1


def test_masks_at_random_follow_the_seed() -> None:
    known = seen(tiny_model("Llama"))
    one, again, other = (at_random(known, seed)["low"].dense[0].sizes for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other)
