"""Alignment: what changes and what does not, held against plain loops and the specification."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, OlmoeConfig

from hosts import tiny_model
from polypath.errors import InputError
from polypath.experts.mixed import ExpertList
from polypath.language import RoutedLayers, attach, build_stack, from_pretrained, save_pretrained
from polypath.routing import MoE, routed_layers
from polypath.routing.gates import HardGate
from polypath.surgery import changed, fingerprints
from polypath.surgery.align import (
    AlignConfig,
    Aligned,
    Manifold,
    align,
    in_float32,
    oracle,
    routers,
    tune,
)
from polypath.surgery.neighbours import (
    Batch,
    Sample,
    answers,
    batches,
    chosen_layers,
    collate,
    look,
    losses,
    manifold,
    neighbours,
    orders,
)

KINDS = ["Olmoe", "Qwen3Moe", "DeepseekV3", "Mixtral"]
FAST: dict[str, Any] = {"steps": 6, "batch": 5, "learning_rate": 0.02}


def tasks(count: int, seed: int = 0) -> list[Sample]:
    """Prompts that end with one of three words, which is what they are near by; random answers."""
    order = torch.Generator().manual_seed(seed)
    made = []
    for i in range(count):
        task = i % 3
        text = torch.randint(10, 60, (2 + i % 2,), generator=order).tolist()
        answer = torch.randint(10, 60, (1 + i % 2,), generator=order).tolist()
        z = F.one_hot(torch.tensor(task), 4) + 0.1 * torch.randn(4, generator=order)
        made.append(Sample([*text, task], answer, z))
    return made


def known(model: nn.Module, samples: list[Sample], share: int = 2) -> list[Sample]:
    """The samples, every so manieth with the answer that the model itself gives."""
    found = []
    for i, own in enumerate(samples):
        if i % share == 0:
            with torch.no_grad():
                said = int(model(torch.tensor([own.prompt])).logits[0, -1].argmax())
            own = Sample(own.prompt, [said], own.embedding)
        found.append(own)
    return found


def host(kind: str = "Olmoe", **changes: Any) -> tuple[Any, list[Sample]]:
    model = attach(tiny_model(kind, **changes))
    return model, known(model, tasks(13))


@pytest.mark.parametrize("kind", KINDS)
def test_only_routers_of_the_chosen_layers_change(kind: str, tmp_path: Path) -> None:
    model, samples = host(kind)
    before = fingerprints(model)
    last = list(routed_layers(model))[-1]
    report = align(model, samples, AlignConfig(layers=1, **FAST), held_out=samples[:4])
    assert changed(before, fingerprints(model)) == [f"{last}.router.scorer.weight"]
    assert report.layers == [last] and report.trained == 8 * 16
    assert report.share == 8 * 16 / sum(p.numel() for p in model.parameters())
    assert [move.part for move in report.moves] == [f"router of {last}"]
    assert report.checks[0].measured == 0 and report.checks[0].held
    assert report.before == report.after  # as many parameters, as many met
    report.save(tmp_path)
    assert Aligned.read(tmp_path) == report
    assert not any(parameter.grad is not None for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_the_result(kind: str, tmp_path: Path) -> None:
    model, samples = host(kind)
    read = torch.randint(60, (2, 7))
    with torch.no_grad():
        start = model(read).logits
    align(model, samples, AlignConfig(**FAST))
    save_pretrained(model, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert not routed_layers(plain)
    with torch.no_grad():
        now = model(read).logits
        torch.testing.assert_close(plain(read).logits, now, rtol=1e-4, atol=1e-5)
        assert torch.equal(from_pretrained(tmp_path)(read).logits, now)
    assert (now - start).abs().max() > 1e-3


def test_without_the_manifold_it_is_plain_router_tuning() -> None:
    model, samples = host()
    other = deepcopy(model)
    config = AlignConfig(layers=2, weight=0, **FAST)
    report = align(model, samples, config)
    rows = [layer.router.scorer.weight for layer in list(routed_layers(other).values())[-2:]]
    other.requires_grad_(False)
    optimiser = torch.optim.Adam([row.requires_grad_() for row in rows], lr=0.02)
    for drawn in orders(len(samples), 5, 6, 0):
        batch = collate([samples[i] for i in drawn])
        said = other(**batch.inputs, use_cache=False).logits.flatten(0, 1)[batch.rows]
        nats = F.cross_entropy(said.float(), batch.wanted, reduction="none")
        sums = torch.zeros(len(drawn)).index_add(0, batch.owner, nats)
        (sums / torch.bincount(batch.owner)).mean().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert not changed(fingerprints(other), fingerprints(model))
    assert [step.manifold for step in report.history] == [None] * 6


def pulled(model: nn.Module, samples: list[Sample], which: int = 2) -> tuple[Any, Any, Any]:
    layers = chosen_layers(model, which)
    seen = look(model, layers, batches(samples, 5, collate))
    table = neighbours(torch.stack([own.embedding for own in samples]), seen.right)
    return Manifold(layers, table.means(seen.vectors), table.some), table, seen


def penalty(model: nn.Module, term: Manifold, samples: list[Sample], drawn: list[int]) -> Any:
    batch = collate([samples[i] for i in drawn])
    with term(0, torch.tensor(drawn), batch.places) as after:
        answers(model, batch)
    return after()


def test_the_pull_is_equation_7_but_for_the_neighbours_own_spread() -> None:
    model, samples = host()
    term, table, seen = pulled(model, samples)
    assert table.some.all() and len(seen.vectors) == 2
    drawn = [7, 0, 3]
    found = penalty(model, term, samples, drawn)
    spread = sum(
        manifold(own, table) - (own - table.mean(own)).square().sum(1)
        for own in seen.vectors.values()
    )
    torch.testing.assert_close(
        found + spread[drawn].mean(), manifold(seen.joined, table)[drawn].mean()
    )


def test_gradients_reach_routers_alone_and_experts_that_were_not_chosen() -> None:
    model, samples = host("Mixtral")  # a softmax over the chosen: others get none from the task
    model.requires_grad_(False)
    term, _, _ = pulled(model, samples, 1)
    layer = next(iter(term.layers.values()))
    weight = layer.router.scorer.weight.requires_grad_()
    batch = collate([samples[4]])
    with term(0, torch.tensor([4]), batch.places) as after:
        said = answers(model, batch)
    far = after()
    routing = layer.last
    assert routing is not None
    own, task = (
        torch.autograd.grad(what, [weight, routing.scores], retain_graph=True)
        for what in (far, losses(said, batch).mean())
    )
    place = int(batch.places[0])
    unchosen = [e for e in range(8) if e not in routing.experts[place].tolist()]
    assert len(unchosen) == 5
    assert (own[1][place, unchosen] != 0).all() and not task[1][place, unchosen].any()
    assert (own[0][unchosen].abs().sum(1) > 0).all()
    others = [t for t in range(len(routing)) if t != place]
    assert not own[1][others].any()  # of no other token
    assert not term.means[next(iter(term.layers))].requires_grad
    # In closed form: (diag(r) - r rᵀ) · 2 (r - r̄).
    r, mean = routing.scores[place].softmax(-1), next(iter(term.means.values()))[4]
    wanted = (torch.diag(r) - torch.outer(r, r)) @ (2 * (r - mean))
    torch.testing.assert_close(own[1][place], wanted.detach(), rtol=1e-3, atol=1e-6)


def test_other_tokens_scores_do_not_enter_the_pull() -> None:
    model, samples = host()
    term, _, _ = pulled(model, samples, 1)
    layer = next(iter(term.layers.values()))
    drawn = [2, 5]
    places = collate([samples[i] for i in drawn]).places
    plain = penalty(model, term, samples, drawn)

    def found(at: Callable[[int], bool]) -> torch.Tensor:
        def shake(scorer: nn.Module, args: Any, scores: torch.Tensor) -> torch.Tensor:
            rows = torch.tensor([at(t) for t in range(len(scores))])
            return scores + rows[:, None] * torch.randn(scores.shape)

        handle = layer.router.scorer.register_forward_hook(shake)
        far = penalty(model, term, samples, drawn)
        handle.remove()
        return far

    assert torch.equal(found(lambda t: t not in places), plain)
    assert not torch.equal(found(lambda t: t in places), plain)


def test_who_has_no_neighbours_is_left_alone() -> None:
    model, samples = host()
    layers = chosen_layers(model, 1)
    name = next(iter(layers))
    means = {name: torch.rand(2, 8)}
    some, none, both = (
        penalty(model, Manifold(layers, means, torch.tensor(mask)), samples, [0, 1]).detach()
        for mask in ([True, False], [False, False], [True, True])
    )
    assert float(none) == 0 < float(some) < float(both)
    alone = penalty(model, Manifold(layers, means, torch.tensor([True, True])), samples, [0])
    torch.testing.assert_close(2 * some, alone.detach())


def test_neighbours_are_looked_at_again_every_so_many_steps() -> None:
    model, samples = host()
    term, table, seen = pulled(model, samples)
    asked = []

    def renew() -> dict:
        asked.append(1)
        return table.means(look(model, term.layers, batches(samples, 5, collate)).vectors)

    fresh = Manifold(term.layers, term.means, table.some, renew, every=2)
    tune(model, routers(model, 2), samples, AlignConfig(**FAST | {"steps": 7}), fresh)
    assert len(asked) == 3  # before steps 2, 4 and 6
    name = next(iter(seen.vectors))
    assert not torch.equal(fresh.means[name], table.mean(seen.vectors[name]))
    model, samples = host()
    stale = deepcopy(model)
    align(model, samples, AlignConfig(refresh=2, **FAST))
    align(stale, samples, AlignConfig(**FAST))
    assert changed(fingerprints(model), fingerprints(stale))


def test_inference_costs_what_it_did() -> None:
    model, samples = host()
    batch = collate(samples)

    def work() -> int:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            answers(model, batch)
        return counter.get_total_flops()

    before = work()
    align(model, samples, AlignConfig(**FAST))
    assert work() == before > 0


def test_routing_comes_to_agree_with_embeddings_also_where_it_was_not_trained() -> None:
    model = attach(tiny_model("Olmoe"))
    samples, others = known(model, tasks(45), 1), known(model, tasks(45, seed=1), 1)
    settings = AlignConfig(neighbours=9, weight=50, steps=30, batch=15, learning_rate=0.02)
    report = align(model, samples, settings, held_out=others)
    assert report.held_out is not None
    for change in (report.samples, report.held_out):
        assert change.success[0] == 1
        assert change.agreement[1] > change.agreement[0]
    assert report.manifold[1] < 0.5 * report.manifold[0]
    assert report.history[-1].manifold < report.history[0].manifold  # type: ignore[operator]


def test_own_embeddings_serve_where_none_are_given() -> None:
    model, samples = host()
    bare = [Sample(own.prompt, own.answer) for own in samples]
    report = align(model, bare, AlignConfig(epsilon=0.5, **FAST), held_out=bare)
    assert report.samples == report.held_out and report.sigma > 0
    with pytest.raises(InputError, match="12 of 13 samples have embeddings"):
        align(model, [*samples[:12], bare[12]], AlignConfig(**FAST))


def test_the_share_that_is_trained_is_the_papers() -> None:
    config = OlmoeConfig(
        vocab_size=50304,
        hidden_size=2048,
        intermediate_size=1024,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_experts=64,
        num_experts_per_tok=8,
    )
    with torch.device("meta"):
        model = attach(AutoModelForCausalLM.from_config(config))
    total = sum(parameter.numel() for parameter in model.parameters())
    assert total == pytest.approx(6.92e9, rel=1e-3)
    assert 100 * routers(model).count() / total == pytest.approx(0.0095, abs=5e-5)
    assert 100 * routers(model, 16).count() / total == pytest.approx(0.0304, abs=1e-4)


@given(st.integers(1, 9), st.integers(1, 5), st.integers(1, 20))
def test_every_sample_has_its_turn_before_any_has_another(n: int, size: int, steps: int) -> None:
    drawn = torch.cat(list(orders(n, size, steps, 3))).tolist()
    assert len(list(orders(n, size, steps, 3))) == steps
    for start in range(0, len(drawn), n):
        epoch = drawn[start : start + n]
        assert len(set(epoch)) == len(epoch)
    assert drawn == torch.cat(list(orders(n, size, steps, 3))).tolist()


def test_half_precision_moves_by_steps_that_it_could_not_hold() -> None:
    model, samples = host()
    model = model.to(torch.bfloat16)
    weight = chosen_layers(model, 1).popitem()[1].router.scorer.weight
    before = weight.detach().clone()
    with in_float32([weight]):
        assert weight.dtype == torch.float32
    assert torch.equal(weight, before)
    # Adam's steps of 1e-4 round to none of a weight of 0.3 in bfloat16; forty are felt.
    align(model, samples, AlignConfig(layers=1, steps=40, batch=6, learning_rate=1e-4))
    assert weight.dtype == torch.bfloat16
    assert float((weight != before).double().mean()) > 0.5


class Choice(nn.Module):
    """One layer of two experts that copy x[:, :2], or swap it; says the first two of y."""

    def __init__(self, first: float) -> None:
        super().__init__()
        routed = RoutedLayers(num_experts=2, k=2, losses={})
        self.layer: MoE = build_stack(routed, 3, 4, 1)[0]
        same, swap = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.layer.experts = ExpertList([same, swap])
        with torch.no_grad():
            same.weight.copy_(torch.eye(3))
            swap.weight.copy_(torch.eye(3)[[1, 0, 2]])
            self.layer.router.scorer.weight.copy_(torch.tensor([[0.0, 0, first], [0, 0, 0]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)[:, :2]


def points(samples: list[tuple[list[float], int]]) -> Batch:
    x, y = (torch.tensor(own) for own in zip(*samples, strict=True))
    return Batch({"x": x}, torch.arange(len(x)), torch.arange(len(x)), y, torch.arange(len(x)))


def test_the_oracle_finds_who_should_serve_and_leaves_the_model() -> None:
    model = Choice(0.4)
    # Copied, the first is right; the others have to be swapped.
    samples = [([2.0, 0, 1], 0), ([2.0, 0, 1], 1), ([0.0, 2, 1], 0)]
    start = look(model, chosen_layers(model, 5), batches(samples, 3, points))
    assert start.right.tolist() == [True, False, False]
    before = fingerprints(model)
    for size in (1, 3):
        best = oracle(model, samples, steps=30, size=size, collate=points)
        assert best.right.all()
        assert (best.joined.argmax(1) == torch.tensor([0, 1, 1])).all()
        assert best.joined.max(1).values.min() > 0.9
    assert not changed(before, fingerprints(model))
    again = look(model, chosen_layers(model, 5), batches(samples, 3, points))
    assert torch.equal(again.joined, start.joined)
    assert torch.equal(oracle(model, samples, steps=0, collate=points).joined, start.joined)


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_never_does_worse(kind: str) -> None:
    model, samples = host(kind)
    layers = chosen_layers(model, 5)
    start = look(model, layers, batches(samples, 13, collate))
    best = oracle(model, samples, steps=10)
    assert best.right.sum() >= start.right.sum()
    assert best.vectors.keys() == layers.keys() and not torch.equal(best.joined, start.joined)


def test_what_cannot_be_is_refused() -> None:
    model, samples = host()
    for wrong in ({"steps": 0}, {"neighbours": 0}, {"weight": -1}, {"refresh": 0}, {"batch": 0}):
        with pytest.raises(InputError, match="or more is right"):
            AlignConfig(**wrong)
    with pytest.raises(InputError, match="learning_rate=0"):
        AlignConfig(learning_rate=0)
    with pytest.raises(InputError, match="no samples"):
        align(model, [])
    with pytest.raises(InputError, match="unknown routed layer"):
        align(model, samples, AlignConfig(layers=["nowhere"]))
    with pytest.raises(InputError, match="0 routed layers of Linear"):
        align(nn.Linear(2, 2), samples)
    wrong_ones = [Sample(own.prompt, [60], own.embedding) for own in samples]
    with pytest.raises(InputError, match="no sample has a successful neighbour"):
        align(model, wrong_ones, AlignConfig(**FAST))
    align(model, wrong_ones, AlignConfig(**FAST | {"steps": 1}, successful=False))
    with pytest.raises(InputError, match="not finite"):
        model.lm_head.weight.data.fill_(torch.nan)
        align(model, samples, AlignConfig(weight=0, **FAST))


def test_routers_that_cannot_learn_are_refused() -> None:
    routed = RoutedLayers(router="hash", num_experts=4, losses={})
    hashed = attach(tiny_model("Llama"), routed)
    with pytest.raises(InputError, match="no parameters to train"):
        align(hashed, tasks(3))
    model, samples = host()
    below, last = list(routed_layers(model).values())[-2:]
    last.router = below.router
    with pytest.raises(InputError, match="no parameters to train"):
        align(model, samples, AlignConfig(layers=1))
    model = Choice(0.4)
    model.layer.router.gate = HardGate()
    with pytest.raises(InputError, match="no gradient"):
        oracle(model, [([2.0, 0, 1], 0)], collate=points)
    model.layer.router = nn.Identity()
    with pytest.raises(InputError, match="no scorer"):
        oracle(model, [([2.0, 0, 1], 0)], collate=points)
