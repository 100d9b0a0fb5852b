"""What unlearning changes, and what it leaves; limiting cases; where it stops and what it tells."""

import math
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

import polypath as pp
from hosts import VOCABULARY, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.routing import routed_layers
from polypath.surgery.attribution import affinity, targets
from polypath.surgery.freezing import changed, fingerprints
from polypath.surgery.objectives import GA, GDIFF, NPO, RMU, Seen, next_token_losses
from polypath.surgery.unlearn import Unlearned, Unlearning, unlearn

KINDS = ["Olmoe", "Mixtral", "Qwen3Moe", "DeepseekV3"]
DECAYED = Unlearning(steps=3, learning_rate=1e-2, weight_decay=0.5)


def adopted(kind: str = "Olmoe", **changes: Any) -> Any:
    torch.manual_seed(0)
    return attach(tiny_model(kind, **changes))


def reading(seed: int, length: int = 6) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (3, length), generator=drawn)
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


FORGET, RETAIN = [reading(0), reading(1)], [reading(2), reading(3)]


def mean_loss(model: Any, batches: list[dict[str, Tensor]]) -> Tensor:
    return torch.stack([own[0][own[1]].mean() for own in map(_losses(model), batches)]).mean()


def _losses(model: Any) -> Any:
    return lambda batch: next_token_losses(model, batch)


@dataclass(frozen=True)
class Nothing:
    """An objective without a gradient, so that the anchor is alone."""

    reads: ClassVar[tuple[Any, ...]] = ()

    def __call__(self, seen: Seen) -> Tensor:
        return 0.0 * seen.forget.mean()


@pytest.mark.parametrize("objective", [GA(), GDIFF(), NPO(), RMU()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_one_expert_and_its_router_change_and_nothing_else_does(kind: str, objective: Any) -> None:
    """Property 3: bit for bit, weight decay and all; within stacks expert by expert."""
    model = adopted(kind)
    before, first = fingerprints(model), deepcopy(model.state_dict())
    done = unlearn(model, FORGET, RETAIN, replace(DECAYED, objective=objective))
    (aim,) = done.targets
    stack = f"{aim.layer}.experts."
    moved = changed(before, fingerprints(model))
    assert moved == [
        f"{stack}down_proj",
        f"{stack}gate_up_proj",
        f"{aim.layer}.router.scorer.weight",
    ]
    for name in moved[:2]:
        now = model.state_dict()[name]
        others = [expert for expert in range(8) if expert != aim.expert]
        assert torch.equal(now[others], first[name][others])
        assert not torch.equal(now[aim.expert], first[name][aim.expert])
    assert done.checks[0].held and done.checks[0].measured == 0
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_read_by_transformers_alone(kind: str, tmp_path: Path) -> None:
    model = adopted(kind)
    unlearn(model, FORGET, config=DECAYED)
    with torch.no_grad():
        logits = model(**FORGET[0]).logits
        pp.save_pretrained(model, tmp_path / "saved")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
        assert not routed_layers(plain)
        torch.testing.assert_close(plain(**FORGET[0]).logits, logits, rtol=1e-4, atol=1e-5)
        again = pp.from_pretrained(tmp_path / "saved")
        assert torch.equal(again(**FORGET[0]).logits, logits)


@pytest.mark.parametrize("router", ["top-k", "recurrent", "similarity"])
def test_layers_that_were_put_in_can_be_unlearnt_too(router: str) -> None:
    torch.manual_seed(0)
    routed = RoutedLayers(router, num_experts=4, k=2, hidden=8, losses={})
    model = attach(tiny_model("Llama"), routed)
    before = fingerprints(model)
    done = unlearn(model, FORGET, config=DECAYED)
    (aim,) = done.targets
    moved = changed(before, fingerprints(model))
    assert {name for name in moved if ".experts." in name} == {
        f"{aim.layer}.experts.{name}" for name in ("gate_up_proj", "down_proj")
    }
    assert all(name.startswith(f"{aim.layer}.") for name in moved) and done.checks[0].held


def test_the_anchor_alone_moves_the_router_of_its_layer_alone() -> None:
    """Property 5."""
    model = adopted("DeepseekV3")
    before = fingerprints(model)
    config = Unlearning(objective=Nothing(), steps=60, learning_rate=3e-2)
    done = unlearn(model, FORGET, config=config)
    (aim,) = done.targets
    assert changed(before, fingerprints(model)) == [f"{aim.layer}.router.scorer.weight"]
    told = [step.anchor for step in done.history]
    assert all(step.loss == 0 for step in done.history)
    assert told[-1] < 0.2 * told[0] and done.history[-1].gate > 0.7 > done.history[0].gate
    gate = done.affinities_after[aim.layer][aim.expert]
    assert gate > done.affinities[aim.layer][aim.expert] == pytest.approx(aim.affinity)


def test_the_mean_form_pulls_less_by_the_number_of_experts() -> None:
    told = []
    for reduction in ("sum", "mean"):
        config = Unlearning(objective=Nothing(), steps=1, reduction=reduction)
        told.append(unlearn(adopted(), FORGET, config=config).history[0].anchor)
    assert told[0] == pytest.approx(8 * told[1])


def ascended(model: Any, parameters: list[nn.Parameter], config: Unlearning) -> None:
    """Plain gradient ascent with AdamW, written out."""
    rate, decay = config.learning_rate, config.weight_decay
    optimiser = torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
    for step in range(config.steps):
        read = FORGET[step % len(FORGET)]
        labels = read["input_ids"].masked_fill(read["attention_mask"] == 0, -100)
        optimiser.zero_grad()
        (-model(**read, labels=labels).loss).backward()
        optimiser.step()


@pytest.mark.parametrize("scope", ["all", "experts", "routers", "every expert"])
def test_limits_are_plain_ascent(scope: Any) -> None:
    """Property 6: all parameters, or every expert with its router and no anchor."""
    model, plain = adopted("Mixtral").double(), adopted("Mixtral").double()
    layers = list(routed_layers(plain).values())
    every = {
        "all": [*plain.parameters()],
        "experts": [p for layer in layers for p in layer.experts.parameters()],
        "routers": [p for layer in layers for p in layer.router.parameters()],
    }
    every["every expert"] = every["experts"] + every["routers"]
    config = (
        replace(DECAYED, scope=scope)
        if scope != "every expert"
        else replace(DECAYED, count=24, within_layer=False, anchor=0.0)
    )
    done = unlearn(model, FORGET, config=config)
    assert done.trained == sum(p.numel() for p in every[scope])
    ascended(plain, every[scope], config)
    for (name, now), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(now, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_no_anchor_is_the_plain_objective_on_one_expert() -> None:
    """Property 6, α → 0: what an optimiser of whole stacks with masked gradients does."""
    model, plain = adopted().double(), adopted().double()
    config = Unlearning(steps=3, learning_rate=1e-2, anchor=0.0)
    aim = targets(affinity(model, FORGET))[0]
    layer = plain.get_submodule(aim.layer)
    chosen = [layer.experts.gate_up_proj, layer.experts.down_proj]
    for stack in chosen:
        mask = torch.zeros_like(stack)
        mask[aim.expert] = 1.0
        stack.register_hook(lambda grad, mask=mask: grad * mask)
    ascended(plain, [*chosen, layer.router.scorer.weight], config)
    unlearn(model, FORGET, config=config)
    for (name, now), wanted in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(now, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_npo_is_held_against_the_model_as_it_was() -> None:
    """Property 7; a reference that is the model itself would stay at 2/β ln 2."""
    config = Unlearning(objective=NPO(beta=0.05, retain=0.0), steps=30, learning_rate=1e-2)
    losses = [step.loss for step in unlearn(adopted(), FORGET, config=config).history]
    start = 2 / 0.05 * math.log(2)
    assert losses[0] == pytest.approx(start, rel=1e-6)
    assert losses[-1] < 0.8 * start


def test_npo_first_steps_where_ascent_on_summed_losses_does() -> None:
    """Property 7, for the gradient: AdamW's first step tells its signs."""

    @dataclass(frozen=True)
    class Summed:
        reads: ClassVar[tuple[Any, ...]] = ()

        def __call__(self, seen: Seen) -> Tensor:
            return -seen.forget.summed().mean()

    models = [adopted().double() for _ in range(2)]
    for model, objective in zip(models, (NPO(retain=0.0), Summed()), strict=True):
        config = Unlearning(objective=objective, steps=1, learning_rate=1e-2, anchor=0.0)
        unlearn(model, FORGET, config=config)
    for first, second in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_choices_below_the_target_stay(kind: str) -> None:
    """Property 8."""
    model = adopted(kind)
    names = list(routed_layers(model))
    config = replace(DECAYED, targets=[(names[-1], 3)], steps=10, learning_rate=5e-2)
    done = unlearn(model, FORGET, config=config)
    assert list(done.overlap) == names
    assert all(done.overlap[name] == 1.0 for name in names[:-1])
    assert done.overlap[names[-1]] < 1


def test_ascent_forgets_and_the_report_says_how() -> None:
    model = adopted("Qwen3Moe")
    first = float(mean_loss(model, FORGET).detach())
    config = Unlearning(steps=5, learning_rate=1e-2)
    done = unlearn(model, FORGET, config=config)
    assert mean_loss(model, FORGET) > first
    (aim,) = done.targets
    numbers = 3 * 12 * 16 + 8 * 16
    assert done.trained == numbers and done.share == numbers / done.before.parameters
    assert done.before == done.after and done.operation == "unlearn"
    assert done.moves[0].part == f"expert {aim.expert} of {aim.layer}"
    assert f"{aim.affinity:.3g}" in done.moves[0].was and "rank 1 of 16" in done.moves[0].was
    assert [move.part for move in done.moves[1:]] == [
        "matrices of the targets",
        "routers of their layers",
    ]
    assert f"{numbers:,} numbers" in done.notes[0] and "5 steps" in done.notes[1]
    assert done.settings["objective"]["name"] == "GA" and done.settings["steps"] == 5
    assert len(done.history) == 5 and done.curve == [] and done.stopped == "all steps taken"


def test_it_stops_at_the_goal_and_keeps_the_curve(tmp_path: Path) -> None:
    model = adopted()
    model.train()
    seen: list[bool] = []

    def efficacy(model: Any) -> float:
        seen.append(model.training or torch.is_grad_enabled())
        return -float(mean_loss(model, FORGET).detach())

    def utility(model: Any) -> float:
        return -float(mean_loss(model, RETAIN).detach())

    goal = efficacy(model) - 1.0
    seen.clear()
    config = Unlearning(steps=200, learning_rate=1e-2, goal=goal, every=3)
    done = unlearn(
        model, FORGET, RETAIN, config, efficacy, lambda m: -float(mean_loss(m, RETAIN).detach())
    )
    assert done.stopped == "goal reached" and not any(seen) and model.training
    taken = len(done.history)
    assert taken % 3 == 0 and [point.step for point in done.curve] == list(range(0, taken + 1, 3))
    assert done.curve[-1].efficacy <= goal < min(point.efficacy for point in done.curve[:-1])
    assert done.curve[-1].efficacy == pytest.approx(efficacy(model.eval()), rel=1e-5)
    done.save(tmp_path)
    assert Unlearned.read(tmp_path) == done


def test_a_goal_that_is_reached_before_takes_no_step() -> None:
    model = adopted()
    before = fingerprints(model)
    done = unlearn(model, FORGET, config=replace(DECAYED, goal=0.5), efficacy=lambda m: 0.5)
    assert done.stopped == "goal reached" and not done.history
    assert not changed(before, fingerprints(model))


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Breaks:
        reads: ClassVar[tuple[Any, ...]] = ()

        def __call__(self, seen: Seen) -> Tensor:
            return -seen.forget.mean() * (1.0 if seen.forget.nats[0, 0] == first else torch.nan)

    model = adopted()
    with torch.no_grad():
        first = float(next_token_losses(model, FORGET[0])[0][0, 0])
    done = unlearn(model, FORGET[:1], config=replace(DECAYED, objective=Breaks()))
    assert done.stopped == "loss not finite" and len(done.history) == 1
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    done.save(tmp_path)
    assert Unlearned.read(tmp_path) == done


def test_gradients_of_before_do_not_count() -> None:
    fresh, stale = adopted(), adopted()
    mean_loss(stale, RETAIN).backward()
    for model in (fresh, stale):
        unlearn(model, FORGET, config=replace(DECAYED, steps=1))
    for first, second in zip(fresh.parameters(), stale.parameters(), strict=True):
        assert torch.equal(first, second)


class Classifier(nn.Module):
    """No language model: x (B, 6) to logits (B, 3) over one residual routed layer."""

    def __init__(self) -> None:
        super().__init__()
        from polypath.language import build_stack

        routed = RoutedLayers(num_experts=4, k=2, hidden=5, losses={})
        self.routed = build_stack(routed, 6, 5, 1)[0]
        self.leave = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(x + self.routed(x))


def class_losses(model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
    losses = F.cross_entropy(model(batch["x"]), batch["labels"], reduction="none")[:, None]
    return losses, torch.ones_like(losses, dtype=torch.bool)


def test_what_is_no_language_model_brings_its_losses() -> None:
    model = Classifier()
    batch = {"x": torch.randn(50, 6), "labels": torch.randint(3, (50,))}
    first = float(class_losses(model, batch)[0].mean().detach())
    config = Unlearning(steps=20, learning_rate=1e-2)
    done = unlearn(model, [batch], [batch], config, losses=class_losses)
    assert float(class_losses(model, batch)[0].mean().detach()) > first
    assert done.trained == 3 * 5 * 6 + 4 * 6


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scope": "expertz"}, "did you mean 'expert'"),
        ({"reduction": "max"}, "unknown reduction"),
        ({"steps": 0}, "steps=0"),
        ({"count": 0}, "count=0"),
        ({"anchor": -1.0}, "anchor=-1"),
        ({"learning_rate": 0.0}, "learning_rate=0"),
        ({"targets": ()}, "targets is empty"),
    ],
)
def test_settings_that_cannot_be_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Unlearning(**values)


def test_what_is_missing_is_told() -> None:
    model = adopted()
    with pytest.raises(InputError, match="no batches to forget"):
        unlearn(model, [])
    with pytest.raises(InputError, match="GDIFF reads what is to be retained"):
        unlearn(model, FORGET, config=Unlearning(objective=GDIFF()))
    with pytest.raises(InputError, match="a goal needs"):
        unlearn(model, FORGET, config=Unlearning(goal=0.5))
    with pytest.raises(InputError, match="experts 0 to 7, not 8"):
        name = next(iter(routed_layers(model)))
        unlearn(model, FORGET, config=Unlearning(targets=[(name, 8)]))
    with pytest.raises(InputError, match="no routed layers"):
        unlearn(tiny_model("Olmoe"), FORGET)
