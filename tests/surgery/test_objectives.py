"""Objectives against their equations, their gradients against each other, the anchor by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hosts import VOCABULARY, tiny_model
from polypath.errors import InputError
from polypath.language import attach
from polypath.routing import MoE, Routing, TopKRouter, given, routed_layers
from polypath.surgery.attribution import Aim
from polypath.surgery.objectives import (
    GA,
    GDIFF,
    NPO,
    RMU,
    Look,
    Seen,
    anchored,
    look,
    next_token_losses,
)


def adopted(kind: str = "Olmoe") -> Any:
    torch.manual_seed(0)
    return attach(tiny_model(kind)).double()


def reading(count: int = 3, length: int = 6, seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(VOCABULARY, (count, length), generator=drawn)
    mask = torch.ones_like(ids)
    mask[0, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def nats(values: list[list[float]]) -> Look:
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    return Look(losses, losses > 0)


def value(scalar: Tensor) -> float:
    return float(scalar.detach())


def test_losses_are_those_of_transformers() -> None:
    model, read = adopted(), reading()
    labels = read["input_ids"].masked_fill(read["attention_mask"] == 0, -100)
    wanted = model(**read, labels=labels).loss
    found, counts = next_token_losses(model, read)
    assert int(counts.sum()) == 2 + 5 + 5
    torch.testing.assert_close(found[counts].mean(), wanted.double(), rtol=1e-5, atol=0)
    of_labels, same = next_token_losses(model, read | {"labels": labels})
    assert torch.equal(of_labels, found) and torch.equal(same, counts)
    labels = labels.masked_fill(torch.arange(6)[None] < 4, -100)
    found, counts = next_token_losses(model, read | {"labels": labels})
    assert int(counts.sum()) == 4 and not found[~counts].any()


def test_a_look_is_of_what_counts() -> None:
    model, read = adopted(), reading()
    name = list(routed_layers(model))[1]
    found = look(model, read, name, next_token_losses)
    assert not any(block._forward_hooks for block in model.model.layers)
    losses, counts = next_token_losses(model, read)
    torch.testing.assert_close(found.mean(), losses[counts].mean())
    torch.testing.assert_close(found.summed(), (losses * counts).sum(1))
    states = model(**read, output_hidden_states=True).hidden_states[2]
    assert found.hidden is not None
    torch.testing.assert_close(found.hidden, states[read["attention_mask"] != 0])


def test_ascent_and_difference_as_they_read() -> None:
    forget, retain = nats([[1.0, 2.0], [3.0, 0.0]]), nats([[0.5, 0.5]])
    assert value(GA()(Seen(forget))) == -2.0
    assert value(GDIFF(retain=3.0)(Seen(forget, retain))) == -2.0 + 3 * 0.5
    assert GA().reads == () and GDIFF().reads == ("retain",)


def test_npo_starts_at_two_ln_two_over_beta_with_the_gradient_of_ascent() -> None:
    forget = nats([[1.0, 2.0], [3.0, 0.5]])
    before = Look(forget.nats.detach(), forget.counts)
    loss = NPO(retain=0.0)(Seen(forget, forget_before=before))
    assert value(loss) == pytest.approx(2 / 0.001 * math.log(2)) == pytest.approx(1386.294)
    loss.backward()
    ascent = nats([[1.0, 2.0], [3.0, 0.5]])
    (-ascent.summed().mean()).backward()
    torch.testing.assert_close(forget.nats.grad, ascent.nats.grad)


def test_npo_fades_as_losses_rise_above_the_reference() -> None:
    beta, sizes = 0.1, []
    for gained in (0.0, 5.0, 50.0):
        forget = nats([[1.0 + gained, 2.0]])
        seen = Seen(forget, nats([[0.25]]), Look(torch.tensor([[1.0, 2.0]]), forget.counts))
        loss = NPO(beta, retain=2.0)(seen)
        wanted = -2 / beta * math.log(1 / (1 + math.exp(-beta * gained))) + 2 * 0.25
        assert value(loss) == pytest.approx(wanted)
        loss.backward()
        sizes.append(float(forget.nats.grad.abs().max()))
        assert sizes[-1] == pytest.approx(2 / (1 + math.exp(beta * gained)))
    assert sizes[0] == pytest.approx(1) and sizes[0] > sizes[1] > sizes[2]
    assert NPO(retain=0.0).reads == ("forget_before",) and NPO().reads[1] == "retain"


def test_rmu_steers_forgotten_states_and_holds_retained_ones() -> None:
    rmu = RMU(steering=4.0, retain=3.0, seed=5)
    u = rmu.direction(6)
    assert float(u.norm()) == pytest.approx(1) and bool((u >= 0).all())
    assert torch.equal(u, RMU(seed=5).direction(6)) and not torch.equal(u, RMU().direction(6))
    forget, retain, was = (torch.randn(count, 6) for count in (4, 5, 5))
    none = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    looks = [Look(*none, hidden) for hidden in (forget, retain, was)]
    found = rmu(Seen(looks[0], looks[1], retain_before=looks[2]))
    far = sum(float((row - 4 * u).norm()) ** 2 for row in forget) / 4
    kept = sum(float((a - b).norm()) ** 2 for a, b in zip(retain, was, strict=True)) / 5
    assert float(found) == pytest.approx(far + 3 * kept, rel=1e-5)
    at = [Look(*none, hidden) for hidden in (4 * u.expand(4, 6), was, was)]
    assert float(rmu(Seen(at[0], at[1], retain_before=at[2]))) == pytest.approx(0, abs=1e-10)


def test_what_is_missing_is_named() -> None:
    one = nats([[1.0]])
    with pytest.raises(InputError, match="no block that gives states"):
        RMU()(Seen(one, one, retain_before=one))
    with pytest.raises(InputError, match="needs retain"):
        GDIFF()(Seen(one))


class Fixed(nn.Module):
    """Scores whose softmax is what it was made of."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(probabilities.log())

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.scores.expand(len(x), -1)


class Nothing(nn.Module):
    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        return torch.zeros_like(x)


def anchor_of(probabilities: Tensor, reduction: Any, *experts: int) -> float:
    count = len(probabilities)
    model = nn.ModuleDict()
    model["routed"] = MoE(TopKRouter(3, count, 1, Fixed(probabilities), gate="softmax"), Nothing())
    aims = [Aim("routed", expert, 0.0, 1) for expert in experts]
    with anchored(model, aims, reduction) as anchor:
        model["routed"](torch.randn(5, 3))
        return value(anchor())


def test_the_anchor_by_hand() -> None:
    gates = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert anchor_of(gates, "sum", 3) == pytest.approx(0.50)
    assert anchor_of(gates, "mean", 3) == pytest.approx(0.125)
    even = torch.full((64,), 1 / 64, dtype=torch.float64)
    assert anchor_of(even, "sum", 7) == pytest.approx(0.984375)
    assert anchor_of(even, "mean", 7) == pytest.approx(0.01538, abs=1e-5)
    perfect = torch.tensor([1e-30, 1.0, 1e-30, 1e-30], dtype=torch.float64)
    assert anchor_of(perfect, "sum", 1) == pytest.approx(0, abs=1e-12)
    assert anchor_of(gates, "sum", 2, 3) == pytest.approx(0.01 + 0.04 + 0.49 + 0.36)


def test_the_anchor_leaves_padding_out_and_is_the_mean_over_layers() -> None:
    model = adopted("Mixtral")
    names = list(routed_layers(model))
    aims = [Aim(names[0], 2, 0.0, 1), Aim(names[2], 5, 0.0, 2)]
    read = reading()
    with anchored(model, aims) as anchor:
        model(**read)
        found = value(anchor())
    terms = []
    for aim in aims:
        p = model.get_submodule(aim.layer).last.scores.softmax(-1)
        wanted = F.one_hot(torch.tensor(aim.expert), 8)
        far = (p - wanted).square().sum(1)[read["attention_mask"].flatten() != 0]
        terms.append(value(far.mean()))
    assert found == pytest.approx(sum(terms) / 2)
    with anchored(model, aims) as anchor, pytest.raises(InputError, match="no layer has run"):
        anchor()


def test_the_anchor_reaches_the_routers_below_and_its_own_only() -> None:
    """Where all wants gradients; with only the target's layer trainable, its router is left."""
    model = adopted("Qwen3Moe")
    first, last = routed_layers(model)
    with anchored(model, [Aim(last, 1, 0.0, 1)]) as anchor:
        model(**reading())
        anchor().backward()
    layer = model.get_submodule(last)
    assert layer.router.scorer.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in layer.experts.parameters())
    assert model.get_submodule(first).experts.down_proj.grad.abs().sum() > 0
    assert model.lm_head.weight.grad is None


def test_the_context_of_a_block_comes_first() -> None:
    """What is left out by a `given` mask is left out of anchors too."""
    gates = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
    model = nn.ModuleDict()
    model["routed"] = MoE(TopKRouter(3, 3, 1, Fixed(gates), gate="softmax"), Nothing())
    nothing = torch.zeros(5, dtype=torch.bool)
    with anchored(model, [Aim("routed", 0, 0.0, 1)]) as anchor, given(mask=nothing):
        model["routed"](torch.randn(5, 3))
        with pytest.raises(InputError, match="had a target"):
            anchor()
