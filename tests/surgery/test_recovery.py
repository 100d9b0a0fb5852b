from typing import Any

import pytest
import torch
from torch.nn import functional as F

from hosts import tiny_model
from polypath import attach
from polypath.errors import InputError
from polypath.routing import routed_layers
from polypath.surgery.calibration import calibrate
from polypath.surgery.compress import compressed, split_experts
from polypath.surgery.freezing import changed, fingerprints
from polypath.surgery.merge import Merge, merge
from polypath.surgery.recovery import (
    Recovery,
    distillation,
    frozen_routers,
    recover,
    score_rows,
)


def logits_of(model: Any, batch: torch.Tensor) -> torch.Tensor:
    return model(input_ids=batch[:, :-1], use_cache=False).logits


def loss_of(logits: torch.Tensor, batch: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def stream() -> Any:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield torch.randint(61, (4, 16), generator=generator)


def pair(kind: str = "Olmoe") -> tuple[Any, Any]:
    teacher = attach(tiny_model(kind, attention_dropout=0.5))
    student = attach(tiny_model(kind, attention_dropout=0.5))
    student.load_state_dict(teacher.state_dict())
    return teacher, student


def test_distillation_is_the_equation() -> None:
    student, teacher = torch.randn(2, 3, 5), torch.randn(2, 3, 5)
    q, p = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    far = (q * (q / p).log()).sum(-1)
    torch.testing.assert_close(distillation(student, teacher, 2.0), far.mean())
    counted = torch.tensor([[True, False, True], [False, False, True]])
    torch.testing.assert_close(distillation(student, teacher, 2.0, counted), far[counted].mean())
    assert float(distillation(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)


def test_routers_and_the_teacher_stay_and_dropout_is_off(texts: dict) -> None:
    """Property 10."""
    teacher, student = pair()
    merge(student, calibrate(student, texts["one"]), Merge(4))
    before, was = fingerprints(teacher), fingerprints(student)
    losses: list[float] = []
    config = Recovery(steps=12, learning_rate=3e-3, warmup=2)
    recover(
        student,
        teacher,
        stream(),
        logits_of,
        loss_of,
        config,
        lambda step, loss: losses.append(loss),
    )
    assert changed(before, fingerprints(teacher)) == []
    moved = changed(was, fingerprints(student))
    assert moved and not [name for name in moved if "router" in name or "groups" in name]
    assert [name for name in moved if "experts.bank" in name]
    assert not student.training and losses[-1] < losses[0]
    assert all(p.requires_grad for p in student.parameters())
    again_teacher, again = pair()
    again_teacher.load_state_dict(teacher.state_dict())
    with frozen_routers(again) as trained:
        held = {id(p) for layer in routed_layers(again).values() for p in layer.router.parameters()}
        assert not held & {id(p) for p in trained}


def test_a_recovered_student_is_nearer_to_its_teacher(texts: dict) -> None:
    teacher, student = pair()
    merge(student, calibrate(student, texts["one"]), Merge(3))
    test = next(stream())

    def far() -> float:
        with torch.no_grad():
            return float(distillation(logits_of(student, test), logits_of(teacher, test), 2.0))

    start = far()
    config = Recovery(steps=40, learning_rate=3e-3, weight=5.0, warmup=4)
    recover(student, teacher, stream(), logits_of, lambda logits, batch: 0 * logits.sum(), config)
    assert far() < 0.7 * start


def test_rows_go_while_it_recovers(texts: dict) -> None:
    teacher, student = pair()
    merge(student, calibrate(student, texts["one"]), Merge(4))
    split_experts(student, 2)
    recover(student, teacher, stream(), logits_of, loss_of, Recovery(steps=25, kept=0.2))
    maps = compressed(student).values()
    every = sum(len(one.sparse) for one in maps)
    left = sum(int((one.sparse != 0).any(1).sum()) for one in maps)
    assert left == round(0.2 * every)


def test_rows_can_be_chosen_without_training(texts: dict) -> None:
    _, student = pair()
    split_experts(student, 2)
    low = {name: one.u.detach().clone() for name, one in compressed(student).items()}
    left = score_rows(student, stream(), 3, logits_of, loss_of, 0.5)
    assert left == pytest.approx(0.5, abs=0.01)
    assert all(torch.equal(low[name], one.u) for name, one in compressed(student).items())


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"steps": 0}, {"kept": 0.0}, {"start": 0.6, "end": 0.5}):
        with pytest.raises(InputError, match="recovery"):
            Recovery(**wrong)
