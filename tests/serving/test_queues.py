from collections import Counter, deque
from collections.abc import Iterable
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.serving import ArrivalQueue, Batch, ExpertQueues, Queue, Unit

SKEWED = [0.30, 0.20, 0.15, 0.12, 0.10, 0.08, 0.05]


def tokens(experts: Iterable[int]) -> list[Unit]:
    return [Unit(number, (int(expert),)) for number, expert in enumerate(experts)]


def served(batch: Batch) -> list[int]:
    return [expert for unit in batch.units for expert in unit.experts]


@st.composite
def units(draw: st.DrawFn, longest: int = 5) -> list[Unit]:
    """Prompts and generated tokens, each a request of its own, so that all differ."""
    made = []
    for number in range(draw(st.integers(0, 25))):
        prompt = draw(st.booleans())
        size = draw(st.integers(1, longest)) if prompt else 1
        experts = draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
        made.append(Unit(number, tuple(experts), prompt))
    return made


queues = st.sampled_from(
    [
        ArrivalQueue,
        lambda: ArrivalQueue("prompts"),
        lambda: ArrivalQueue("generated"),
        ExpertQueues,
        lambda: ExpertQueues(0),
        lambda: ExpertQueues(2),
    ]
)


def test_the_worked_queues() -> None:
    queue = ExpertQueues()
    queue.add(tokens([0] * 2 + [1] * 4 + [2] + [3] * 3))
    batch = queue.take(6)
    assert served(batch) == [1, 1, 1, 1, 3, 3]
    assert batch.experts == [1, 3]
    assert queue.lengths() == {0: 2, 1: 0, 2: 1, 3: 1}
    assert len(queue) == 4


def algorithm_1(queue: dict[int, deque[Unit]], room: int) -> list[Unit]:
    """As the paper has it, over tokens; of equals the queue whose first token came first."""
    batch: list[Unit] = []
    while room and any(queue.values()):
        expert = max(
            (e for e in queue if queue[e]), key=lambda e: (len(queue[e]), -queue[e][0].request)
        )
        count = min(len(queue[expert]), room)
        batch += [queue[expert].popleft() for _ in range(count)]
        room -= count
    return batch


@given(st.lists(st.lists(st.integers(0, 4), max_size=12), max_size=6), st.integers(1, 9))
def test_generated_tokens_are_batched_by_algorithm_1(arrivals: list[list[int]], room: int) -> None:
    queue = ExpertQueues()
    plain: dict[int, deque[Unit]] = {expert: deque() for expert in range(5)}
    number = 0
    for arrived in [*arrivals, [], []]:
        for expert in arrived:
            unit = Unit(number, (expert,))
            number += 1
            queue.add([unit])
            plain[expert].append(unit)
        assert queue.take(room).units == algorithm_1(plain, room)


@given(units(), st.integers(5, 9), st.integers(1, 6), queues)
def test_everything_is_served_once_and_in_order(
    waiting: list[Unit], room: int, at_once: int, make
) -> None:
    queue: Queue = make()
    total, taken, batches = sum(map(len, waiting)), [], 0
    joining = [waiting[i : i + at_once] for i in range(0, len(waiting), at_once)]
    while joining or len(queue):
        queue.add(joining.pop(0) if joining else [])
        before = len(queue)
        batch = queue.take(room)
        assert batch.tokens <= room and len(queue) == before - batch.tokens
        assert batch.tokens > 0 or before == 0
        taken += batch.units
        batches += 1
        assert batches < 200
    assert sorted(unit.request for unit in taken) == list(range(len(waiting)))
    assert sum(map(len, taken)) == total
    for key in {(unit.lead, unit.prompt) for unit in waiting}:
        own = [unit.request for unit in taken if (unit.lead, unit.prompt) == key]
        assert own == sorted(own)


@given(units(), st.integers(5, 9), queues)
def test_no_batch_has_room_for_what_it_left(waiting: list[Unit], room: int, make) -> None:
    queue: Queue = make()
    queue.add(waiting)
    while len(queue):
        batch = queue.take(room)
        left = {unit for later in queue.upcoming(room) for unit in later.units}
        next_of = {}  # prompts of a line do not pass each other
        for unit in sorted(left, key=lambda unit: unit.request):
            line = unit.lead if isinstance(queue, ExpertQueues) else None
            next_of.setdefault((line, unit.prompt), unit)
        assert all(len(unit) > room - batch.tokens for unit in next_of.values())


@given(units(), st.integers(5, 9))
def test_no_wait_at_all_is_first_come_first_served(waiting: list[Unit], room: int) -> None:
    plain, bounded = ArrivalQueue(), ExpertQueues(max_wait=0)
    generated = [unit for unit in waiting if not unit.prompt]
    plain.add(generated)
    bounded.add(generated)
    assert list(plain.upcoming(room)) == list(bounded.upcoming(room))
    bounded.add(waiting)  # prompts of other experts may pass one that finds too little room
    left = generated + waiting
    while len(bounded):
        batch = bounded.take(room)
        assert batch.units[0] == left[0]
        for unit in batch.units:
            left.remove(unit)


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 9))
def test_first_come_is_the_order_of_arrival(experts: list[int], room: int) -> None:
    queue = ArrivalQueue()
    waiting = tokens(experts)
    queue.add(waiting)
    batches = list(queue.upcoming(room))
    assert [unit for batch in batches for unit in batch.units] == waiting
    assert all(batch.tokens == room for batch in batches[:-1])


def test_a_prompt_stays_whole_and_brings_its_experts_along() -> None:
    queue = ExpertQueues()
    prompt = Unit(9, (1, 1, 2), prompt=True)
    queue.add([*tokens([0, 0, 0, 0, 3, 3, 3, 2]), prompt])
    # 0 is longest; the prompt does not fit into what is left, the tokens of 3 do.
    assert queue.take(6).units[4:] == tokens([0] * 4 + [3] * 3)[4:6]
    # Now the prompt is longest. It needs expert 2, whose token goes before the one of 3.
    batch = queue.take(4)
    assert batch.units == [prompt, Unit(7, (2,))]
    assert batch.experts == [1, 2]


def test_a_prompt_waits_for_room_while_tokens_pass_and_then_goes_first() -> None:
    first, long, second = Unit(0, (0,)), Unit(1, (0,) * 4, prompt=True), Unit(2, (1,))
    queue = ArrivalQueue()
    queue.add([first, long, second])
    assert queue.take(4).units == [first, second]
    queue.add(tokens([5, 6]))
    batch = queue.take(5)
    assert batch.units == [long, Unit(0, (5,))]
    assert batch.waits == [1, 0]


def test_prompts_or_generated_tokens_may_go_first() -> None:
    waiting = [Unit(0, (0,)), Unit(1, (1, 1), prompt=True), Unit(2, (2,)), Unit(3, (3,), True)]
    orders = {}
    for first in (None, "prompts", "generated"):
        queue = ArrivalQueue(first)
        queue.add(waiting)
        orders[first] = [unit.request for batch in queue.upcoming(2) for unit in batch.units]
    assert orders == {None: [0, 2, 1, 3], "prompts": [1, 3, 0, 2], "generated": [0, 2, 1, 3]}


def run(queue: Queue, backlog: int, rounds: int, seed: int = 0) -> tuple[float, int, int]:
    """Mean experts of a batch of 16, as many arrivals each round; longest wait; most served."""
    random = np.random.default_rng(seed)
    queue.add(tokens(random.choice(7, backlog, p=SKEWED)))
    experts, longest = 0, 0
    for _ in range(rounds):
        queue.add(tokens(random.choice(7, 16, p=SKEWED)))
        batch = queue.take(16)
        assert batch.tokens == 16
        experts += len(batch.experts)
        longest = max(longest, *batch.waits)
    return experts / rounds, longest, len(queue)


def test_without_a_backlog_batching_by_expert_changes_nothing() -> None:
    assert run(ExpertQueues(), 0, 300) == run(ArrivalQueue(), 0, 300)


def test_a_backlog_of_one_batch() -> None:
    unique, wait, left = run(ArrivalQueue(), 16, 1000)
    expected = sum(1 - (1 - p) ** 16 for p in SKEWED)  # 5.88
    assert unique == pytest.approx(expected, abs=0.05) == pytest.approx(5.89, abs=0.05)
    assert wait == 1 and left == 16
    runs = [run(ExpertQueues(), 16, 500, seed) for seed in range(4)]
    # The specification has 2.70 and 14 from one run, equals being broken by the expert's number;
    # here the queue that waits longest goes first.
    assert np.mean([unique for unique, _, _ in runs]) == pytest.approx(2.70, abs=0.15)
    assert np.median([wait for _, wait, _ in runs]) == pytest.approx(14, abs=3)


def test_a_bound_on_waiting_holds_and_costs_experts() -> None:
    free, _, _ = run(ExpertQueues(), 16, 500)
    found = {bound: run(ExpertQueues(bound), 16, 500) for bound in (1, 2, 4, 8)}
    for bound, (_, longest, _) in found.items():
        assert longest == bound
    unique = [found[bound][0] for bound in (1, 2, 4)]
    assert unique == sorted(unique, reverse=True) and unique[0] > 5.5
    assert unique[-1] < free + 0.1


@given(units(), st.integers(5, 9), queues)
def test_what_comes_next_is_foretold_and_nothing_moves(
    waiting: list[Unit], room: int, make
) -> None:
    queue: Queue = make()
    queue.add(waiting)
    queue.take(room)
    before = len(queue)
    foretold = list(queue.upcoming(room))
    assert len(queue) == before
    assert foretold == [queue.take(room) for _ in foretold]
    assert not len(queue)


@given(units(), st.integers(5, 9), queues)
def test_a_guess_is_what_happens_if_every_token_is_followed_by_its_like(
    waiting: list[Unit], room: int, make
) -> None:
    queue: Queue = make()
    queue.add(waiting)
    batch = queue.take(room)
    guessed = list(islice(queue.upcoming(room, batch), 12))
    assert len(queue) == sum(map(len, waiting)) - batch.tokens
    happened = []
    for _ in guessed:
        queue.add([Unit(unit.request, unit.experts[-1:]) for unit in batch.units])
        batch = queue.take(room)
        happened.append(batch)
    assert guessed == happened
    assert len(guessed) == (12 if waiting else 0)


def test_the_expert_of_most_tokens_leads() -> None:
    for experts in [(3, 1, 1), (2, 0, 0, 2), (5,)]:
        counts = Counter(experts)
        assert counts[Unit(0, experts, True).lead] == max(counts.values())
    assert Unit(0, (2, 0, 0, 2), True).lead == 0


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"request 3: 0 tokens"):
        Unit(3, (), prompt=True)
    with pytest.raises(InputError, match=r"units of one each"):
        Unit(3, (1, 2))
    with pytest.raises(InputError, match=r"max_wait=-1"):
        ExpertQueues(-1)
    with pytest.raises(InputError, match=r"unknown kind of unit 'prompt'"):
        ArrivalQueue("prompt")  # type: ignore[arg-type]
    for queue in (ArrivalQueue(), ExpertQueues()):
        with pytest.raises(InputError, match=r"room=0"):
            queue.take(0)
        queue.add([Unit(4, (0,) * 9, prompt=True)])
        with pytest.raises(InputError, match=r"9 tokens of the prompt of request 4 .* room for 8"):
            queue.take(8)
