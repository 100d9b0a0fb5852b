"""Selections and the selection bias against brute force."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draws import Problem, problems, scores_of
from polypath.errors import InputError
from polypath.routing import (
    All,
    ExpertChoice,
    FirstCome,
    LinearScorer,
    PerSlice,
    RoutingContext,
    SelectionBias,
    TopK,
    TopKRouter,
    update_biases,
)
from polypath.routing.selection import within_capacity
from references import expert_choice, in_best_groups, queue, top_k

NOTHING = RoutingContext()


def assert_ranks_alike(experts: torch.Tensor, slow: list[list[int]], ranking: torch.Tensor):
    """The same experts but for ties: distinct, equally ranked, as many."""
    for row, expected, ranks in zip(experts.tolist(), slow, ranking.tolist(), strict=True):
        filled = [e for e in row if e >= 0]
        assert len(set(filled)) == len(filled)
        assert [ranks[e] for e in filled] == [ranks[e] for e in expected if e >= 0]
        assert row[len(filled) :] == [-1] * (len(row) - len(filled)), "empty slots come last"


@given(problems(), st.booleans())
def test_top_k_takes_the_highest(problem: Problem, ties: bool) -> None:
    scores = scores_of(problem, ties)
    experts = TopK(problem.k)(scores, scores.softmax(-1), NOTHING)
    assert experts.shape == (len(scores), problem.k)
    assert_ranks_alike(experts, [top_k(row, problem.k) for row in scores.tolist()], scores)


@given(st.integers(0, 5), st.integers(15, 70), st.booleans(), st.data())
def test_top_k_of_many_experts(things: int, num_experts: int, ties: bool, data) -> None:
    k = data.draw(st.integers(1, num_experts))
    scores = torch.randn(things, num_experts)
    scores = scores.round() if ties else scores
    scores[torch.rand(scores.shape) < data.draw(st.sampled_from([0.0, 0.5, 1.0]))] = -torch.inf
    experts = TopK(k)(scores, scores.softmax(-1), NOTHING)
    assert experts.shape == (things, k)
    assert_ranks_alike(experts, [top_k(row, k) for row in scores.tolist()], scores)


@given(problems(), st.booleans())
def test_biased_top_k_ranks_probability_and_bias(problem: Problem, ties: bool) -> None:
    scores, bias = scores_of(problem, ties), SelectionBias(problem.num_experts)
    bias.value.copy_(torch.randn(problem.num_experts).round())
    probabilities = scores.sigmoid()
    experts = TopK(problem.k, bias)(scores, probabilities, NOTHING)
    ranking = (probabilities + bias.value).masked_fill(scores == -torch.inf, -torch.inf)
    assert_ranks_alike(experts, [top_k(row, problem.k) for row in ranking.tolist()], ranking)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_grouped_top_k_stays_in_the_best_groups(groups: int, size: int, data) -> None:
    best = data.draw(st.integers(1, groups))
    k = data.draw(st.integers(1, best * size))
    scores = torch.randn(data.draw(st.integers(0, 5)), groups * size, dtype=torch.float64)
    experts = TopK(k, groups=groups, best_groups=best)(scores, scores.sigmoid(), NOTHING)
    slow = [top_k(in_best_groups(row, groups, best), k) for row in scores.tolist()]
    assert experts.tolist() == slow


def test_a_group_without_candidates_is_never_best() -> None:
    scores = torch.tensor([[-torch.inf, -torch.inf, -torch.inf, 0.3]])
    experts = TopK(1, groups=2, best_groups=1)(scores, scores.softmax(-1), NOTHING)
    assert experts.tolist() == [[3]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(0), "k=0 experts; k must be ≥ 1"),
        (lambda: TopK(1, groups=2, best_groups=3), "best_groups=3 of groups=2"),
        (lambda: TopK(5)(torch.rand(2, 4), torch.rand(2, 4), NOTHING), "k=5 of 4 experts"),
        (lambda: TopK(1, None, 3)(torch.rand(2, 4), torch.rand(2, 4), NOTHING), "4 experts do not"),
        (
            lambda: TopK(3, None, 2, 1)(torch.rand(2, 4), torch.rand(2, 4), NOTHING),
            "k=3 of 4 experts within 1 of 2 groups",
        ),
        (lambda: ExpertChoice(0.0), "factor=0.0; it must be positive"),
    ],
)
def test_what_cannot_be_chosen_is_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@given(problems(), st.floats(0.1, 4))
def test_expert_choice_takes_each_experts_best(problem: Problem, factor: float) -> None:
    scores = scores_of(problem)
    probabilities = scores.softmax(-1).nan_to_num()
    experts = ExpertChoice(factor)(scores, probabilities, problem.context())
    counted = torch.tensor(problem.counted, dtype=torch.bool)
    wanted = probabilities.masked_fill(scores == -torch.inf, -torch.inf)
    wanted = wanted.masked_fill(~counted[:, None], -torch.inf)
    capacity = math.ceil(factor * int(counted.sum()) / problem.num_experts)
    pairs = [(t, e) for t, row in enumerate(experts.tolist()) for e in row if e >= 0]
    assert len(pairs) == len(set(pairs))
    assert set(pairs) == expert_choice(wanted, capacity)
    if problem.candidates is None:
        taken = [sum(e == expert for _, e in pairs) for expert in range(problem.num_experts)]
        assert taken == [min(capacity, int(counted.sum()))] * problem.num_experts


@given(problems())
def test_all_chooses_every_expert_that_may_be_chosen(problem: Problem) -> None:
    scores = scores_of(problem)
    experts = All()(scores, scores, NOTHING)
    for row, ranks in zip(experts.tolist(), scores.tolist(), strict=True):
        assert row == [e if ranks[e] > -math.inf else -1 for e in range(problem.num_experts)]


def choices(things: int, slots: int, num_experts: int) -> torch.Tensor:
    """(T, K) with distinct experts in each row and some slots empty."""
    experts = torch.rand(things, num_experts).argsort(-1)[:, :slots]
    return experts.masked_fill(torch.rand(experts.shape) < 0.2, -1)


@given(st.integers(0, 9), st.integers(1, 5), st.floats(0.1, 2), st.data())
def test_capacity_serves_as_a_queue_does(things: int, num_experts: int, factor: float, data):
    experts = choices(things, data.draw(st.integers(1, num_experts)), num_experts)
    room = math.ceil(factor * experts.numel() / num_experts)
    kept = within_capacity(experts, num_experts, factor)
    assert kept.tolist() == queue(experts.tolist(), room)


@given(st.integers(0, 9), st.floats(0.1, 2))
def test_capacity_neither_counts_nor_serves_padding(things: int, factor: float) -> None:
    experts, mask = choices(things, 2, 4), torch.rand(things) < 0.6
    kept = within_capacity(experts, 4, factor, mask)
    assert torch.equal(kept[mask], within_capacity(experts[mask], 4, factor))
    assert (kept[~mask] == -1).all()


def test_capacity_for_all_drops_nothing() -> None:
    experts = torch.zeros(6, 1, dtype=torch.int64)
    assert torch.equal(within_capacity(experts, 4, 4.0), experts)
    assert within_capacity(experts, 4, 1.0).flatten().tolist() == [0, 0, -1, -1, -1, -1]


# The bias of loss-free balancing


def biased(rate: float = 0.125) -> tuple[TopKRouter, SelectionBias]:
    router = TopKRouter(3, 4, 2, gate="sigmoid", bias_rate=rate)
    return router, router.selection.bias


def test_bias_moves_against_the_load_of_all_micro_batches() -> None:
    router, bias = biased()
    parts = [torch.randn(size, 3) for size in (5, 2, 9)]
    loads = sum(router(part, NOTHING).load() for part in parts)
    update_biases(router)
    mean = loads.sum() / 4
    expected = [0.125 * (int(mean > n) - int(mean < n)) for n in loads]
    assert bias.value.tolist() == expected
    assert bias.seen is None, "the next step starts from nothing"


def test_bias_does_not_count_padding() -> None:
    router, bias = biased()
    x, mask = torch.randn(8, 3), torch.tensor([True, False] * 4)
    routing = router(x, RoutingContext(mask=mask))
    assert torch.equal(bias.seen, routing.load().long())
    assert bias.seen.sum() == 2 * mask.sum()


def test_bias_sees_training_alone() -> None:
    router, bias = biased()
    with torch.no_grad():
        router(torch.randn(5, 3), NOTHING)
    router.eval()(torch.randn(5, 3), NOTHING)
    assert bias.seen is None


def test_bias_keeps_its_precision_in_a_cast_model() -> None:
    router, bias = biased(rate=1e-3)
    bias.value.fill_(0.5)
    router.bfloat16()
    for _ in range(3):
        router(torch.randn(1000, 3).bfloat16(), NOTHING)
    assert bias.seen.sum() == 6000
    update_biases(router)
    assert bias.value.dtype == torch.float32
    assert set(bias.value.tolist()) <= {torch.tensor(0.5).add(d).item() for d in (-1e-3, 0, 1e-3)}


def test_bias_is_saved_and_what_it_saw_is_not() -> None:
    router, _ = biased()
    assert [name for name in router.state_dict() if "bias" in name] == ["selection.bias.value"]


def test_bias_evens_out_a_skewed_router() -> None:
    scorer = LinearScorer(3, 4, bias=True)
    torch.nn.init.normal_(scorer.weight)
    torch.nn.init.constant_(scorer.bias[:2], 2.0)
    router = TopKRouter(3, 4, 2, scorer, gate="sigmoid", bias_rate=0.01)
    x = torch.randn(400, 3)

    def busiest() -> float:
        load = router(x, NOTHING).load()
        return float(load.max() / load.mean())

    before = busiest()
    for _ in range(200):
        update_biases(router)
        after = busiest()
    assert before > 1.7
    assert after < 1.1


@pytest.mark.parametrize(("naive", "drifts"), [(False, False), (True, True)])
def test_experts_left_out_now_and_then_do_not_drift(naive: bool, drifts: bool) -> None:
    """Even traffic, half of the experts closed in half of the steps (ERNIE 5.0, elastic width)."""
    generator, rate = torch.Generator().manual_seed(0), 1e-3
    bias = SelectionBias(8, rate)
    selection = TopK(2, bias).train()
    for step in range(200):
        probabilities = torch.rand(512, 8, generator=generator)
        scores = probabilities.clone()
        if step % 2:
            scores[:, :4] = -torch.inf
        selection(scores, probabilities, RoutingContext())
        if naive:  # as if whoever was not chosen had starved
            bias.open = torch.ones(8, dtype=torch.int64)
        bias.update()
    apart = float(bias.value[:4].mean() - bias.value[4:].mean()) / rate
    assert (apart > 20) == drifts and (drifts or abs(apart) < 5)


@given(
    sequences=st.integers(1, 3),
    length=st.integers(1, 6),
    experts=st.integers(1, 4),
    room=st.integers(1, 4),
    seed=st.integers(0, 9),
)
def test_first_come_fills_the_room_of_each_sequence_in_order(
    sequences: int, length: int, experts: int, room: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(sequences * length, experts, generator=generator)
    context = RoutingContext(shape=(sequences, length))
    found = FirstCome(room)(scores, scores, context)
    for s in range(sequences):
        left = [room] * experts
        for t in range(length):
            best = int(scores[s * length + t].argmax())
            left[best] -= 1
            wanted = best if left[best] >= 0 else -1
            assert found[s * length + t].tolist() == [wanted]
    with pytest.raises(InputError, match="room=0"):
        FirstCome(0)


def test_first_come_does_not_take_what_may_not_be_chosen() -> None:
    scores = torch.tensor([[-math.inf, -math.inf], [0.0, -math.inf]])
    assert FirstCome(2)(scores, scores, NOTHING).tolist() == [[-1], [0]]


@given(copies=st.integers(1, 4), k=st.integers(1, 4), seed=st.integers(0, 9))
def test_per_slice_takes_the_best_copy_of_each_position(copies: int, k: int, seed: int) -> None:
    scores = torch.randn(5, copies * k, generator=torch.Generator().manual_seed(seed))
    found = PerSlice(k)(scores, scores, NOTHING)
    for row, own in zip(found.tolist(), scores, strict=True):
        for position, expert in enumerate(row):
            alike = range(position, copies * k, k)
            assert expert == max(alike, key=lambda e: float(own[e]))
    with pytest.raises(InputError, match="no copies of k=3 slices"):
        PerSlice(3)(torch.zeros(1, 4), torch.zeros(1, 4), NOTHING)
