from functools import cache
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.serving import Belady, ExpertCache, Random, follow, replay
from polypath.serving.caches import POLICIES, Slots

WORKED = [0, 1, 2, 0, 1, 3, 0, 1, 2, 3, 0, 1]
SKEWED = [0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05]

traces = st.lists(st.integers(0, 5), max_size=60)
capacities = st.integers(1, 6)


def optimum(trace: list[int], capacity: int) -> int:
    """The most hits of any way to evict, by trying all of them."""

    @cache
    def most(place: int, inside: frozenset[int]) -> int:
        if place == len(trace):
            return 0
        key = trace[place]
        if key in inside:
            return 1 + most(place + 1, inside)
        if len(inside) < capacity:
            return most(place + 1, inside | {key})
        return max(most(place + 1, inside - {left} | {key}) for left in inside)

    return most(0, frozenset())


def farthest(trace: list[int], capacity: int, horizon: int) -> list[int | None]:
    """Who leaves at each access, by looking through the known future every time."""
    last: dict[int, int] = {}
    inside: set[int] = set()
    left: list[int | None] = []
    for place, key in enumerate(trace):
        known = trace[place + 1 : place + 1 + horizon]
        victim = None
        if key not in inside and len(inside) == capacity:
            victim = max(
                inside, key=lambda e: (known.index(e) if e in known else len(trace), -last[e])
            )
            inside.remove(victim)
        inside.add(key)
        last[key] = place
        left.append(victim)
    return left


@pytest.mark.parametrize(("capacity", "lru", "belady"), [(2, 0, 3), (3, 4, 6)])
def test_the_worked_trace(capacity: int, lru: int, belady: int) -> None:
    assert replay(WORKED, capacity, "lru").hits == lru
    assert replay(torch.tensor(WORKED), capacity, "belady").hits == belady
    assert replay(WORKED, 4, "fifo").hits == len(WORKED) - 4


@pytest.mark.parametrize(
    ("policy", "rates"),
    [("lru", [36.7, 52.5, 66.9, 80.2]), ("belady", [51.6, 69.8, 81.4, 90.0])],
)
def test_published_rates_of_independent_draws(policy: str, rates: list[float]) -> None:
    draws = np.random.default_rng(0).choice(7, 2000, p=SKEWED).tolist()
    found = [100 * replay(draws, capacity, policy).hit_rate for capacity in range(2, 6)]
    assert found == pytest.approx(rates, abs=1.0)


def test_even_draws_leave_nothing_to_choose_without_foresight() -> None:
    draws = np.random.default_rng(0).integers(5, size=20_000).tolist()
    for policy in ("lru", "fifo", "random"):
        assert replay(draws, 2, policy).hit_rate == pytest.approx(2 / 5, abs=0.01)


@pytest.mark.parametrize("capacity", [1, 2, 3, 4, 5])
def test_lru_of_independent_draws_has_a_closed_form(capacity: int) -> None:
    """King 1971: how likely each order of recency is, times the draws that it serves."""
    expected = 0.0
    for order in permutations(SKEWED, capacity):
        likely, left = 1.0, 1.0
        for p in order:
            likely, left = likely * p / left, left - p
        expected += likely * sum(order)
    draws = np.random.default_rng(0).choice(7, 40_000, p=SKEWED).tolist()
    assert replay(draws, capacity, "lru").hit_rate == pytest.approx(expected, abs=0.01)


@given(st.lists(st.integers(0, 4), max_size=11), st.integers(1, 4))
def test_belady_is_the_optimum(trace: list[int], capacity: int) -> None:
    assert replay(trace, capacity, "belady").hits == optimum(trace, capacity)


@given(traces, capacities)
def test_no_policy_has_more_hits_than_belady(trace: list[int], capacity: int) -> None:
    best = replay(trace, capacity, "belady")
    for policy in POLICIES:
        other = replay(trace, capacity, policy)
        assert other.hits <= best.hits
        assert other.hits + other.misses == len(trace)
        assert other.evictions == max(0, other.misses - capacity)
        assert len(other) == min(capacity, len(set(trace)))


@given(traces, capacities, st.integers(0, 60))
def test_belady_does_as_a_search_through_the_known_future(
    trace: list[int], capacity: int, horizon: int
) -> None:
    cache: ExpertCache[int] = ExpertCache(capacity, Belady())
    evicted = [access.evicted for access in follow(cache, trace, horizon)]
    assert evicted == farthest(trace, capacity, horizon)


@given(traces, traces, traces, capacities, st.integers(0, 8))
def test_belady_never_looks_beyond_its_horizon(
    seen: list[int], one: list[int], other: list[int], capacity: int, horizon: int
) -> None:
    decided = max(0, len(seen) - horizon)

    def accesses(future: list[int]) -> list[tuple]:
        cache: ExpertCache[int] = ExpertCache(capacity, "belady")
        return list(follow(cache, seen + future, horizon))[:decided]

    assert accesses(one) == accesses(other)


@given(traces, capacities)
def test_belady_without_foresight_is_lru(trace: list[int], capacity: int) -> None:
    blind = list(follow(ExpertCache(capacity, "belady"), trace, 0))
    assert blind == list(follow(ExpertCache(capacity, "lru"), trace))


@given(traces, capacities, st.integers(0, 8))
def test_what_is_foreseen_anew_is_as_what_is_foreseen_on(
    trace: list[int], capacity: int, horizon: int
) -> None:
    cache: ExpertCache[int] = ExpertCache(capacity, "belady")
    accesses = []
    for place, key in enumerate(trace):
        cache.forget()
        cache.foresee(trace[place + 1 : place + 1 + horizon])
        accesses.append(cache.access(key))
    assert accesses == list(follow(ExpertCache(capacity, "belady"), trace, horizon))


@given(st.lists(st.sets(st.integers(0, 6), min_size=1), max_size=20), capacities)
def test_a_batch_uses_who_is_inside_before_anyone_leaves(
    batches: list[set[int]], capacity: int
) -> None:
    for policy in POLICIES:
        cache: ExpertCache[int] = ExpertCache(capacity, policy)
        for batch in batches:
            inside = {key for key in batch if key in cache}
            accesses = cache.serve(sorted(batch))
            assert {access.key for access in accesses if access.hit} == inside
            assert {access.key for access in accesses} == batch


def test_random_is_seeded_and_spreads() -> None:
    draws = np.random.default_rng(0).integers(9, size=300).tolist()
    one, same, other = (
        [access.evicted for access in follow(ExpertCache(4, Random(seed)), draws)]
        for seed in (0, 0, 1)
    )
    assert one == same != other
    cache: ExpertCache[int] = ExpertCache(4, Random(0))
    places = [0] * 4
    for key in range(4, 4004):
        if key == 4:
            cache.serve(range(4))
        order = sorted(cache)
        evicted = cache.access(key).evicted
        assert evicted is not None
        places[order.index(evicted)] += 1
    assert min(places) > 900  # 1000 each, standard deviation 27


@given(
    st.lists(st.sets(st.integers(0, 6), min_size=1), max_size=20),
    capacities,
    st.integers(0, 2),
    st.booleans(),
)
def test_slots_hold_what_a_visit_needs(
    batches: list[set[int]], capacity: int, spare: int, eager: bool
) -> None:
    """Loads are carried out as early as is allowed, or as late; each visit finds its experts."""
    for policy in POLICIES:
        slots = Slots(ExpertCache(capacity, policy), spare)
        counted: ExpertCache[int] = ExpertCache(capacity, policy)
        plans, hits = [], []
        for batch in batches:
            accesses = counted.serve(sorted(batch))
            hits.append({access.key for access in accesses if access.hit})
            plans.append(slots.plan(sorted(batch)))
            assert [load.expert for load in plans[-1][1]] == [
                access.key for access in accesses if not access.hit
            ]
        memory: dict[int, int] = {}
        pending = [load for _, loads in plans for load in loads]
        for batch, inside, (visits, _) in zip(batches, hits, plans, strict=True):
            assert sorted(e for visit in visits for e in visit.slots) == sorted(batch)
            assert all(set(v.slots) <= inside or not set(v.slots) & inside for v in visits)
            assert len(batch) > capacity or policy in ("fifo", "random") or len(visits) <= 2
            for visit in visits:
                for load in list(pending):
                    if load.after <= slots.over and (eager or load in visit.loads):
                        memory[load.slot] = load.expert
                        pending.remove(load)
                for expert, slot in visit.slots.items():
                    assert memory[slot] == expert
                slots.over += 1
        assert set(memory) <= set(range(capacity + spare)) and not pending


def test_a_spare_slot_takes_who_comes_while_all_others_are_used() -> None:
    """All experts inside serve the batch: without a spare slot, a load waits for one of them."""
    for spare, waits in ((0, True), (1, False)):
        slots = Slots(ExpertCache(3, "belady"), spare)
        slots.plan([0, 1, 2])
        before = slots.plan([0, 1, 2])
        assert not before[1]
        visits, (load,) = slots.plan([0, 1, 2, 3])
        planned = 2 + len(visits)
        assert (load.after > 2) == waits and load.after < planned


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"capacity=0; at least 1"):
        ExpertCache(0)
    with pytest.raises(InputError, match=r"did you mean 'belady'"):
        ExpertCache(2, "beladi")
    with pytest.raises(InputError, match=r"horizon=-1"):
        replay([1], 1, "belady", -1)
    assert np.isnan(replay([], 1).hit_rate)
