import math
from typing import Any

import pytest
import torch
from torch import nn

from hosts import tiny_model
from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.routing import routed_layers
from polypath.surgery.calibration import calibrate
from polypath.surgery.convert import convert
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.freezing import changed, fingerprints
from polypath.surgery.granular import Granular
from polypath.surgery.readme import ReadMe
from polypath.surgery.tuning import (
    FactorLoss,
    Tuning,
    domain_target,
    fit,
    next_token,
    scorer_of,
    teachers_of,
    training_only,
    tune_experts,
    tune_factored,
    tune_granular,
    tune_pregated,
    tune_router,
    watching,
)

FAST = Tuning(steps=8, learning_rate=3e-3, warmup=2)


def stream() -> Any:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(61, (4, 10), generator=generator)


def test_rates_rise_and_fall() -> None:
    tuning = Tuning(steps=100, learning_rate=1.0, warmup=10, floor=0.1)
    assert [tuning.rate(step) for step in (0, 9, 10)] == pytest.approx([0.1, 1.0, 1.0])
    assert tuning.rate(55) == pytest.approx(0.1 + 0.9 * 0.5)
    assert tuning.rate(100) == pytest.approx(0.1)
    with pytest.raises(InputError, match="steps=0"):
        Tuning(steps=0)


def test_careful_parameters_move_a_tenth_at_first() -> None:
    fast, slow = nn.Parameter(torch.zeros(1, 1)), nn.Parameter(torch.zeros(1, 1))
    moves: list[float] = []
    tuning = Tuning(steps=40, learning_rate=0.1, warmup=0, weight_decay=0.0, clip=1e9)

    def after(step: int, loss: float) -> None:
        moves.append(float(slow.detach() / fast.detach()))

    fit([fast, slow], lambda step: (fast + slow).sum(), tuning, after, [slow])
    assert moves[0] == pytest.approx(0.1) and moves[-1] > 0.8


def test_only_some_parameters_train_inside_the_block() -> None:
    model = tiny_model("Llama")
    chosen = list(model.lm_head.parameters())
    with training_only(model, chosen):
        assert model.training
        assert [p for p in model.parameters() if p.requires_grad] == chosen
    assert not model.training and all(p.requires_grad for p in model.parameters())


def test_factored_models_learn_in_experts_and_routers_alone() -> None:
    model = tiny_model("Llama")
    teachers, kind = teachers_of(model)
    convert(model, FactorLLM(4, 2))
    before = fingerprints(model)
    kept = {i: [None if w is None else w.clone() for w in own] for i, own in teachers.items()}
    losses: list[float] = []
    tune_factored(
        model, teachers, kind, stream(), FAST, after=lambda step, loss: losses.append(loss)
    )
    moved = changed(before, fingerprints(model))
    assert moved and all(".mlp.experts." in name or ".mlp.router." in name for name in moved)
    assert any("router" in name for name in moved) and all(map(math.isfinite, losses))
    for index, own in kept.items():
        for then, now in zip(own, teachers[index], strict=True):
            assert then is None or torch.equal(then, now)


def test_without_its_loss_the_router_stays_as_it_was_drawn() -> None:
    """What the released code does: the task alone gives a hard gate nothing."""
    model = tiny_model("Llama")
    teachers, kind = teachers_of(model)
    convert(model, FactorLLM(4, 2))
    before = fingerprints(model)
    tune_factored(model, teachers, kind, stream(), FAST, FactorLoss(route=0.0, balance=0.0))
    assert not [name for name in changed(before, fingerprints(model)) if "router" in name]


def test_taught_routers_agree_with_the_label_more_than_chance() -> None:
    """FactorLLM, property 8."""
    from polypath.recipes.factorllm import agreement
    from polypath.surgery.factorllm import PriorApproximate

    torch.manual_seed(0)
    model = tiny_model("Llama")
    teachers, kind = teachers_of(model)
    convert(model, FactorLLM(4, 2))
    known = {f"model.layers.{i}.mlp": weights for i, weights in teachers.items()}
    label = PriorApproximate(known, kind, 2)
    ids = torch.randint(61, (16, 12))
    start = agreement(model, label, ids)
    tuning = Tuning(steps=60, learning_rate=1e-2, warmup=2)
    tune_factored(model, teachers, kind, stream(), tuning, FactorLoss(route=1.0, balance=0.0))
    assert agreement(model, label, ids) > max(0.6, start)


def test_granular_models_learn_in_routed_layers_and_the_head_alone() -> None:
    model = tiny_model("Llama", tie_word_embeddings=False)
    convert(model, Granular(2, 2))
    before = fingerprints(model)
    batches = stream()
    tune_granular(
        model, lambda step: next_token(model, next(batches)), FAST, model.lm_head.parameters()
    )
    moved = changed(before, fingerprints(model))
    assert all(".mlp." in name or name.startswith("lm_head") for name in moved)
    assert {name.split(".")[-3] for name in moved if "router" in name} == {"router"}
    layer = next(iter(routed_layers(model).values()))
    one, other = layer.experts.down_proj[0], layer.experts.down_proj[2]
    assert not torch.equal(one, other)  # property 10: copies part


def readme() -> tuple[Any, Any, ReadMe]:
    dense, model = tiny_model("Llama"), tiny_model("Llama")
    model.load_state_dict(dense.state_dict())
    generator = torch.Generator().manual_seed(1)
    seen = {
        name: calibrate(dense, [torch.randint(low, low + 30, (3, 9), generator=generator)])
        for name, low in (("low", 0), ("high", 30))
    }
    method = ReadMe(seen, width=16, heads=2)
    convert(model, method)
    return model, dense, method


def test_targets_are_the_overlaps_of_all_layers(ids: torch.Tensor) -> None:
    _, dense, method = readme()
    with watching(dense) as seen, torch.no_grad():
        dense(input_ids=ids)
    overlap = torch.zeros(ids.numel(), 2)
    for index, masks in method.masks.items():
        kept = int(masks[0].sum())
        top = torch.zeros_like(seen[index]).scatter_(1, seen[index].abs().topk(kept).indices, 1.0)
        overlap += top @ masks.T.float() / len(method.masks)
    found = domain_target(dense, method.masks, ids)
    torch.testing.assert_close(found, overlap.softmax(-1))
    assert not decoder_of(dense).mlp(0).down_proj._forward_pre_hooks


def test_each_stage_trains_its_own_part() -> None:
    model, dense, method = readme()
    before, was = fingerprints(model), fingerprints(dense)
    losses: list[float] = []
    tuning = Tuning(steps=40, learning_rate=1e-2, warmup=2)
    tune_router(
        model, dense, method.masks, stream(), tuning, lambda step, loss: losses.append(loss)
    )
    moved = changed(before, fingerprints(model))
    assert moved and all("router" in name for name in moved)
    assert losses[-1] < losses[0] and changed(was, fingerprints(dense)) == []
    middle = fingerprints(model)
    tune_experts(model, stream(), FAST)
    moved = changed(middle, fingerprints(model))
    assert moved and not [name for name in moved if "router" in name]
    assert "model.embed_tokens.weight" in moved


def test_rounds_train_both_in_turn() -> None:
    model, dense, method = readme()
    before, steps = fingerprints(model), []
    tuning = Tuning(steps=24, learning_rate=1e-3)
    tune_pregated(
        model, dense, method.masks, stream(), tuning, 2, lambda step, loss: steps.append(step)
    )
    assert len(steps) == 24
    moved = changed(before, fingerprints(model))
    assert any("router" in name for name in moved) and any("experts" in name for name in moved)
    with pytest.raises(InputError, match="no router ahead"):
        scorer_of(dense)
