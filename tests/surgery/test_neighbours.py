"""Samples as models read them, and neighbours, held against loops and the specified numbers."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from hosts import tiny_model
from polypath.errors import InputError
from polypath.language import attach
from polypath.routing import record
from polypath.surgery.neighbours import (
    Batch,
    Sample,
    agreement,
    answers,
    batches,
    collate,
    kernel_weights,
    last_inputs,
    look,
    losses,
    manifold,
    neighbours,
    pooled,
    succeeds,
)

SAMPLES = [Sample([1, 2, 3, 4], [5]), Sample([9], [8, 7, 6]), Sample([3, 3], [1, 2])]


@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4),
    st.sampled_from(["left", "right"]),
)
def test_batches_are_read_off_where_prompts_end(sizes: list, side: str) -> None:
    samples = [
        Sample([i * 10 + t for t in range(asked)], [100 + i * 10 + t for t in range(told)])
        for i, (asked, told) in enumerate(sizes)
    ]
    batch = collate(samples, side)
    tokens, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"]
    assert tokens.flatten()[batch.places].tolist() == [own.prompt[-1] for own in samples]
    for i, own in enumerate(samples):
        text = [*own.prompt, *own.answer]
        real = mask[i].bool()
        assert tokens[i][real].tolist() == text[:-1]
        assert batch.inputs["position_ids"][i][real].tolist() == list(range(len(text) - 1))
        rows = batch.rows[batch.owner == i]
        assert tokens.flatten()[rows].tolist() == text[len(own.prompt) - 1 : -1]
        assert batch.wanted[batch.owner == i].tolist() == list(own.answer)
        assert bool(mask[i, -1 if side == "left" else 0])


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3).filter(any), min_size=1))
def test_last_inputs_are_where_a_row_is_true_last(rows: list) -> None:
    wanted = [max(i for i, one in enumerate(row) if one) for row in rows]
    assert last_inputs(torch.tensor(rows)).tolist() == wanted


def test_what_is_said_is_judged_token_by_token() -> None:
    model = tiny_model("Olmoe")
    batch = collate(SAMPLES)
    logits = answers(model, batch)
    nats, right = losses(logits, batch), succeeds(logits, batch)
    for i, own in enumerate(SAMPLES):
        alone = model(torch.tensor([[*own.prompt, *own.answer]])).logits[0]
        said = alone[len(own.prompt) - 1 : -1]
        torch.testing.assert_close(nats[i], F.cross_entropy(said, torch.tensor(own.answer)))
        assert bool(right[i]) == (said.argmax(1).tolist() == list(own.answer))
    told = Batch(
        {}, torch.arange(2), torch.arange(3), torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1])
    )
    said = torch.tensor([[2.0, 1], [1, 2], [2, 1]])
    assert succeeds(said, told).tolist() == [True, False]


@pytest.mark.parametrize("kind", ["Olmoe", "Qwen3Moe", "DeepseekV3", "Mixtral"])
def test_vectors_are_softmaxes_at_the_last_input_whatever_the_padding(kind: str) -> None:
    model = attach(tiny_model(kind))
    layers = {n: m for n, m in model.named_modules() if type(m).__name__ == "MoE"}
    left = look(model, layers, iter([collate(SAMPLES, "left")]))
    seen = look(model, layers, batches(SAMPLES, 2, collate))
    torch.testing.assert_close(left.joined, seen.joined, rtol=1e-4, atol=1e-5)
    for i, own in enumerate(SAMPLES):
        with record(model) as routes, torch.no_grad():
            model(torch.tensor([own.prompt]))
        for name, routing in routes.joined().items():
            wanted = routing.scores[-1].softmax(-1)
            torch.testing.assert_close(seen.vectors[name][i], wanted, rtol=1e-4, atol=1e-5)
    assert seen.joined.shape == (3, 8 * len(layers)) and seen.joined.dtype == torch.float32


def test_own_embeddings_are_means_over_prompts_that_saw_no_answer() -> None:
    model = tiny_model("Olmoe")
    found = pooled(model, SAMPLES, 2)
    for own, z in zip(SAMPLES, found, strict=True):
        with torch.no_grad():
            asked = model(torch.tensor([own.prompt]), output_hidden_states=True)
        mean = asked.hidden_states[1][0].mean(0)
        torch.testing.assert_close(z, mean / mean.norm(), rtol=1e-4, atol=1e-5)
    others = [Sample(own.prompt, [11, 12]) for own in SAMPLES]
    assert torch.equal(pooled(model, others, 2), found)


EXAMPLE = torch.tensor([[0.0, 0], [1, 0], [0, 2], [3, 0]])
ABLE = torch.tensor([False, True, True, False])
ROUTING = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])


@pytest.mark.parametrize("k", [2, 3])
def test_the_worked_example(k: int) -> None:
    table = neighbours(EXAMPLE, ABLE, k, sigma=1.0)
    assert table.indices[0, :2].tolist() == [1, 2]
    # κ = .6065, .1353: only samples 1 and 2 are successful.
    torch.testing.assert_close(
        table.weights[0, :2], torch.tensor([0.8176, 0.1824]).double(), rtol=0, atol=5e-5
    )
    assert table.weights[0, 2:].sum() == 0
    assert float(manifold(ROUTING, table)[0]) == pytest.approx(0.173237, abs=1e-6)
    mean = table.mean(ROUTING)[0]
    torch.testing.assert_close(
        mean, torch.tensor([0.508787, 0.263515, 0.227698]), rtol=0, atol=1e-6
    )
    spread = manifold(ROUTING, table)[0] - (ROUTING[0] - mean).square().sum()
    assert float(spread) == pytest.approx(0.116334, abs=1e-6)
    logits = ROUTING.log().requires_grad_()
    manifold(logits.softmax(1), table)[0].backward()
    wanted = torch.tensor([0.115971, -0.068756, -0.047215])
    torch.testing.assert_close(logits.grad[0], wanted, rtol=0, atol=1e-6)
    assert float(logits.grad[0].sum()) == pytest.approx(0, abs=1e-7)
    assert not logits.grad[1:].any()  # neighbours get none


def brute(z: Tensor, able: Tensor, k: int, sigma: float, epsilon: float | None) -> list[dict]:
    """Each sample's neighbours and weights, by the equations as they read."""
    found = []
    for i in range(len(z)):
        kappa = {
            j: math.exp(-float((z[i] - z[j]).square().sum()) / (2 * sigma**2))
            for j in range(len(z))
            if j != i and able[j]
        }
        if epsilon is None:
            near = sorted(kappa, key=kappa.__getitem__, reverse=True)[:k]
        else:
            near = [j for j in kappa if kappa[j] >= epsilon]
        total = sum(kappa[j] for j in near)
        found.append({j: kappa[j] / total for j in near})
    return found


@given(
    st.integers(1, 9),
    st.integers(1, 4),
    st.sampled_from([0.5, 1.0, 3.0]),
    st.sampled_from([None, 0.3, 0.5, 0.7]),
    st.integers(0, 10**6),
)
def test_neighbours_are_those_of_the_equations(
    n: int, k: int, sigma: float, epsilon: float | None, seed: int
) -> None:
    order = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 3, generator=order).double()
    able = torch.rand(n, generator=order) < 0.7
    table = neighbours(z, able, k, epsilon, sigma)
    for i, wanted in enumerate(brute(z, able, k, sigma, epsilon)):
        filled = table.weights[i] > 0
        got = dict(
            zip(table.indices[i][filled].tolist(), table.weights[i][filled].tolist(), strict=True)
        )
        assert got.keys() == wanted.keys()
        assert all(got[j] == pytest.approx(wanted[j], rel=1e-6) for j in wanted)
        assert bool(table.some[i]) == bool(wanted)


def test_without_a_width_it_is_the_median_distance() -> None:
    z = torch.tensor([[0.0], [1], [3], [7]])
    # Of the nearest two: 1 3, 1 2, 2 3, 4 6.
    assert neighbours(z, torch.ones(4, dtype=torch.bool), 2).sigma == pytest.approx(2)
    alike = neighbours(torch.zeros(4, 2), torch.ones(4, dtype=torch.bool), 2)
    torch.testing.assert_close(alike.weights, torch.full((4, 2), 0.5).double())


@given(st.lists(st.floats(0, 50), min_size=1, max_size=5), st.floats(0.2, 5), st.floats(0, 1e4))
def test_weights_sum_to_one_and_only_differences_count(
    distances: list, sigma: float, more: float
) -> None:
    squared = torch.tensor([distances]).double()
    weights = kernel_weights(squared, sigma)
    assert float(weights.sum()) == pytest.approx(1)
    torch.testing.assert_close(kernel_weights(squared + more, sigma), weights, rtol=0, atol=1e-6)


def test_width_goes_from_the_nearest_to_all_alike() -> None:
    squared = torch.tensor([[1.0, 4.0, 9.0]]).double()
    torch.testing.assert_close(kernel_weights(squared, 1e6), torch.full((1, 3), 1 / 3).double())
    for narrow in (1e-3, 1e-160):
        assert kernel_weights(squared + 1e4, narrow).tolist() == [[1, 0, 0]]


def test_a_narrower_ball_is_not_larger_and_an_empty_one_pulls_nobody() -> None:
    z = torch.randn(30, 4)
    able = torch.rand(30) < 0.6
    sizes = [
        (neighbours(z, able, 3, epsilon, 1.0).weights > 0).sum(1)
        for epsilon in (1e-9, 0.1, 0.3, 0.5, 0.7, 1.0)
    ]
    for wide, narrow in pairwise(sizes):
        assert (narrow <= wide).all()
    assert (sizes[0] == able.sum() - able.int()).all() and not sizes[-1].any()
    for table in (
        neighbours(z, able, 3, 1.0, 1.0),
        neighbours(z, torch.zeros(30, dtype=torch.bool), 3),
    ):
        vectors = torch.randn(30, 5, requires_grad=True)
        far = manifold(vectors, table)
        assert not far.any() and not table.mean(vectors).any() and not table.some.any()


def test_who_does_as_its_neighbours_is_not_pulled() -> None:
    logits = torch.randn(1, 6).repeat(8, 1).requires_grad_()
    table = neighbours(torch.randn(8, 3), torch.ones(8, dtype=torch.bool))
    far = manifold(logits.softmax(1), table)
    far.sum().backward()
    assert not far.any() and not logits.grad.any()


def test_wrong_samples_are_pulled_and_never_pulled_towards() -> None:
    z, able = torch.randn(40, 3), torch.rand(40) < 0.5
    table = neighbours(z, able)
    assert table.some.all()
    assert able[table.indices].all()
    spoilt = torch.randn(40, 5)
    spoilt[~able] = torch.nan
    assert table.mean(spoilt).isfinite().all()


def test_neighbours_far_from_zero_are_told_apart() -> None:
    z = torch.tensor([[1.0], [1 + 2e-6], [1 + 5e-6]]).double() + 100
    table = neighbours(z, torch.ones(3, dtype=torch.bool), 1)
    assert table.indices[:, 0].tolist() == [1, 0, 1]


@given(st.integers(2, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_agreement_is_the_share_of_common_neighbours(n: int, k: int, seed: int) -> None:
    order = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(n, 3, generator=order).double() for _ in range(2))

    def near(space: Tensor, i: int) -> set[int]:
        return set(
            sorted(set(range(n)) - {i}, key=lambda j: float((space[i] - space[j]).norm()))[:k]
        )

    shares = [len(near(one, i) & near(other, i)) / min(k, n - 1) for i in range(n)]
    assert agreement(one, other, k) == pytest.approx(sum(shares) / n)
    assert agreement(one, 3 * one + 1, k) == 1


def test_a_sample_alone_agrees_with_nobody() -> None:
    assert math.isnan(agreement(torch.zeros(1, 2), torch.zeros(1, 2)))


def test_what_cannot_be_is_refused() -> None:
    z, able = torch.randn(4, 2), torch.ones(4, dtype=torch.bool)
    with pytest.raises(InputError, match="empty prompt or answer"):
        Sample([1], [])
    with pytest.raises(InputError, match=r"\(3,\)"):
        neighbours(z, able[:3])
    for wrong in ({"k": 0}, {"epsilon": 0.0}, {"epsilon": 1.5}, {"sigma": 0.0}):
        with pytest.raises(InputError, match="are right"):
            neighbours(z, able, **wrong)
    with pytest.raises(InputError, match="not a transformers model"):
        pooled(torch.nn.Linear(2, 2), SAMPLES, 2)
