import math
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.serving import (
    ArrivalQueue,
    Batch,
    Belady,
    Costs,
    ExpertCache,
    ExpertQueues,
    Queue,
    Request,
    Spread,
    simulate,
)

EACH = Costs(batch=1.0, token=0.0, touched=0.0, loaded=0.0)
ALL = Costs(batch=0.5, token=0.25, touched=1.0, loaded=8.0)


class Watched(ExpertQueues):
    """Keeps every batch, and what waited behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[Batch] = []
        self.behind: list[Counter[int]] = []
        self.waiting: Counter[int] = Counter()

    def add(self, units: Iterable) -> None:
        units = list(units)
        self.waiting.update(expert for unit in units for expert in unit.experts)
        super().add(units)

    def take(self, room: int) -> Batch:
        batch = super().take(room)
        self.batches.append(batch)
        self.waiting.subtract(expert for unit in batch.units for expert in unit.experts)
        self.behind.append(+self.waiting)
        return batch


class Told(Belady):
    """Keeps what it is told before each batch, and who leaves for which."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[set[int]] = []
        self.left: list[tuple[int, int]] = []

    def forget(self) -> None:
        self.told.append(set())
        super().forget()

    def foresee(self, keys: Iterable[int]) -> None:
        keys = list(keys)
        self.told[-1].update(keys)
        super().foresee(keys)

    def leave(self) -> int:
        key = super().leave()
        self.left.append((len(self.told), key))
        return key


@st.composite
def traces(draw: st.DrawFn) -> list[Request]:
    experts = st.lists(st.integers(0, 4), max_size=7).map(tuple)
    return [
        Request(draw(st.integers(0, 20)), draw(experts.filter(len)), draw(experts))
        for _ in range(draw(st.integers(1, 8)))
    ]


def test_a_trace_worked_by_hand() -> None:
    trace = [Request(1.0, (0, 0, 1), (2,)), Request(5.0, (2,), (2, 0))]
    served = simulate(trace, ArrivalQueue(), ExpertCache(2, "lru"), room=2, costs=ALL)
    # clock   batch          touched  loads       takes
    #  1      0 0            1        0           0.5 + 0.5 + 1 + 8 = 10
    # 11      1 | 2          2        1, 2 (0 out)  0.5 + 0.5 + 2 + 16 = 19
    # 30      2 | 2          1                    0.5 + 0.5 + 1 = 2
    # 32      0              1        0 (1 out)   0.5 + 0.25 + 1 + 8 = 9.75
    assert served.seconds == pytest.approx(40.75)
    assert (served.tokens, served.batches) == (7, 4)
    assert served.tokens_per_second == pytest.approx(7 / 40.75)
    assert served.first == Spread.of([29.0, 25.0])
    assert served.token == Spread.of([2.0, 2.0, 9.75])
    assert served.request == Spread.of([31.0, 36.75])
    assert served.stay == Spread.of([31.0, 30.75])  # the second got its place at 11
    assert served.hit_rate == pytest.approx(1 - 4 / 5)
    assert (served.touched, served.loaded) == (5 / 4, 4 / 4)
    assert served.longest_wait == 0


@given(traces(), st.integers(1, 6), st.sampled_from([1, 2, None]), st.sampled_from([1, None]))
def test_every_token_is_served_once_after_the_one_before_it(
    trace: list[Request], room: int, active: int | None, piece: int | None
) -> None:
    queue = Watched()
    served = simulate(trace, queue, ExpertCache(2, "belady"), room, ALL, active, piece)
    piece = piece or room
    assert served.tokens == sum(map(len, trace))
    assert served.batches == len(queue.batches)
    places: dict[int, list[tuple[int, int]]] = {}
    for number, batch in enumerate(queue.batches):
        assert batch.tokens <= room
        for unit in batch.units:
            request = trace[unit.request]
            whole = request.prompt + request.generated
            assert unit.experts == whole[unit.start : unit.start + len(unit)]
            assert unit.prompt == (unit.start < len(request.prompt))
            places.setdefault(unit.request, []).append((number, unit.start))
            assert len(unit) == 1 or len(unit) == min(piece, len(request.prompt) - unit.start)
    for request, own in places.items():
        assert all(a < b and s < t for (a, s), (b, t) in pairwise(own))
        assert own[0][1] == 0
        assert len(own) == math.ceil(len(trace[request].prompt) / piece) + len(
            trace[request].generated
        )
    if active == 1:
        assert served.touched <= room and all(len(b.units) == 1 for b in queue.batches)


@given(traces(), st.integers(1, 6))
def test_belady_is_told_what_is_queued_and_no_more(trace: list[Request], room: int) -> None:
    queue, policy = Watched(), Told()
    simulate(trace, queue, ExpertCache(2, policy), room, EACH)
    assert policy.told == [set(behind) for behind in queue.behind]


def test_tokens_still_to_be_generated_change_nothing_before_they_are() -> None:
    random = np.random.default_rng(0)
    start = [tuple(random.integers(5, size=10).tolist()) for _ in range(12)]

    def evicted(end: int) -> list[tuple[int, int]]:
        policy = Told()
        trace = [Request(0.0, (0,), own + (end,) * 10) for own in start]
        simulate(trace, ArrivalQueue(), ExpertCache(2, policy), 4, EACH)
        return policy.left

    one, other = evicted(0), evicted(4)
    # A prompt and ten tokens, three batches each time: `end` is queued after the 31st batch.
    until = sum(batch <= 31 for batch, _ in one)
    assert until > 20
    assert one[:until] == other[:until]
    assert one[until:] != other[until:]


@pytest.mark.parametrize("backlog", [0, 1, 3])
def test_first_come_makes_each_token_wait_for_the_backlog(backlog: int) -> None:
    room = 4
    active = room * (1 + backlog)
    trace = [Request(0.0, (0,), (0,) * 300) for _ in range(active)]
    served = simulate(trace, ArrivalQueue(), ExpertCache(1), room, EACH, active)
    assert served.token.p50 == served.token.p99 == 1 + backlog
    assert served.waiting == pytest.approx(backlog * room, rel=0.02)
    assert served.longest_wait == backlog
    assert served.tokens_per_second == pytest.approx(room)


def test_a_server_for_one_at_a_time_is_the_queue_of_the_books() -> None:
    """M/D/1, Pollaczek and Khinchine: waiting is load / (2 (1 - load)) services in the mean."""
    random = np.random.default_rng(0)
    for load in (0.3, 0.6, 0.8):
        arrivals = (random.exponential(size=10_000) / load).cumsum()
        trace = [Request(arrival, (0,), ()) for arrival in arrivals.tolist()]
        served = simulate(trace, ArrivalQueue(), ExpertCache(1), 1, EACH)
        assert served.request.mean == pytest.approx(1 + load / (2 * (1 - load)), rel=0.08)
        assert served.tokens_per_second == pytest.approx(load, rel=0.03)
        assert served.first == served.request and math.isnan(served.token.mean)


def test_a_backlog_lets_batching_by_expert_touch_fewer() -> None:
    random = np.random.default_rng(0)
    trace = [Request(0.0, (0,), tuple(random.integers(7, size=60).tolist())) for _ in range(64)]

    def run(queue: Queue, active: int) -> tuple[float, float]:
        served = simulate(trace, queue, ExpertCache(3, "belady"), 16, ALL, active)
        return served.touched, served.tokens_per_second

    assert run(ExpertQueues(), 16) == run(ArrivalQueue(), 16)
    by_expert, plain = run(ExpertQueues(), 64), run(ArrivalQueue(), 64)
    assert by_expert[0] < 0.6 * plain[0] and by_expert[1] > 1.3 * plain[1]
    assert run(ExpertQueues(max_wait=0), 64) == plain


def test_a_guess_makes_up_for_what_the_queue_does_not_say() -> None:
    """Steady routing by expert: who was just served is not queued, and is most likely to be next.

    So with the queue alone Belady does worse than LRU, and with a guess better.
    """
    random = np.random.default_rng(0)

    def steady() -> tuple[int, ...]:
        fresh = random.integers(5, size=60)
        moved = np.maximum.accumulate(np.where(random.random(60) < 0.03, np.arange(60), 0))
        return tuple(fresh[moved].tolist())

    trace = [Request(0.0, (0,), steady()) for _ in range(100)]

    def hits(policy: str, guess: int = 0) -> float:
        cache = ExpertCache[int](3, policy)
        return simulate(trace, ExpertQueues(), cache, 16, EACH, active=32, guess=guess).hit_rate

    assert hits("belady") < hits("lru") < hits("belady", guess=4)
    assert hits("lru", guess=4) == hits("lru")


def test_costs_are_found_in_timed_batches() -> None:
    random = np.random.default_rng(0)
    counts = [tuple(row) for row in random.integers(1, 17, size=(80, 3)).tolist()]
    truth = Costs(batch=1e-2, token=1e-3, touched=2e-3, loaded=9e-3)
    noise = random.lognormal(sigma=0.02, size=len(counts))
    found = Costs.fit(counts, [truth.seconds(*c) * e for c, e in zip(counts, noise, strict=True)])
    for name in ("batch", "token", "touched", "loaded"):
        assert getattr(found, name) == pytest.approx(getattr(truth, name), rel=0.1)
    without = Costs(batch=1e-2, token=0.0, touched=2e-3, loaded=9e-3)
    found = Costs.fit(counts, [without.seconds(*c) for c in counts])
    assert found.token == pytest.approx(0.0, abs=1e-9) and found.token >= 0


def test_overlap_takes_the_longer_of_both() -> None:
    plain = Costs(batch=1.0, token=0.5, touched=2.0, loaded=3.0)
    overlapped = Costs(batch=1.0, token=0.5, touched=2.0, loaded=3.0, overlapped=True)
    assert (plain.seconds(4, 2, 1), overlapped.seconds(4, 2, 1)) == (10.0, 7.0)
    assert (plain.seconds(4, 2, 5), overlapped.seconds(4, 2, 5)) == (22.0, 15.0)


def test_bad_input_is_refused() -> None:
    trace = [Request(0.0, (0,), ())]
    with pytest.raises(InputError, match=r"0 requests"):
        simulate([], ArrivalQueue(), ExpertCache(1), 1, EACH)
    with pytest.raises(InputError, match=r"active=0"):
        simulate(trace, ArrivalQueue(), ExpertCache(1), 1, EACH, active=0)
    with pytest.raises(InputError, match=r"guess=-1"):
        simulate(trace, ArrivalQueue(), ExpertCache(1), 1, EACH, guess=-1)
    with pytest.raises(InputError, match=r"piece=0"):
        simulate(trace, ArrivalQueue(), ExpertCache(1), 1, EACH, piece=0)
    with pytest.raises(InputError, match=r"8 tokens of the prompt of request 0 in one piece"):
        simulate([Request(0.0, (0,) * 9, ())], ArrivalQueue(), ExpertCache(1), 4, EACH, piece=8)
    with pytest.raises(InputError, match=r"room=0"):
        simulate(trace, ArrivalQueue(), ExpertCache(1), 0, EACH)
    with pytest.raises(InputError, match=r"3 batches do not tell costs apart"):
        Costs.fit([(1, 1, 1), (2, 1, 1), (3, 2, 1)], [1.0, 1.0, 1.0])
