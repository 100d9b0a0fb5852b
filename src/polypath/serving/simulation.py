"""A server in numbers: a trace through a queue and a cache, timed by costs that were measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from scipy.optimize import nnls

from polypath.errors import InputError
from polypath.serving.caches import ExpertCache
from polypath.serving.queues import Batch, Queue, Unit
from polypath.serving.traces import Request


@dataclass(frozen=True)
class Costs:
    """Seconds that one batch takes through all layers, from measurements (see `fit`).

    batch: whatever is in it. token: for each of its tokens. touched: for each expert that serves
    it, in all layers. loaded: for each of these that was not in memory.
    overlapped: loading goes on beside computing; the longer of both counts, not their sum.
    """

    batch: float
    token: float
    touched: float
    loaded: float
    overlapped: bool = False

    def seconds(self, tokens: int, touched: int, loaded: int) -> float:
        computing = self.batch + self.token * tokens + self.touched * touched
        loading = self.loaded * loaded
        return max(computing, loading) if self.overlapped else computing + loading

    @classmethod
    def fit(cls, counts: Sequence[tuple[int, int, int]], seconds: Sequence[float]) -> Costs:
        """The costs, none of them negative, that explain timed batches best.

        counts: tokens, touched and loaded of each batch, which were computed and loaded in turn.
        Errors count relative to what was measured. Raises InputError where the batches do not
        tell the four apart.
        """
        took = np.asarray(seconds, dtype=float)
        rows = np.column_stack([np.ones(len(counts)), np.asarray(counts, dtype=float)])
        if np.linalg.matrix_rank(rows) < rows.shape[1]:
            raise InputError(
                f"Costs.fit: {len(counts)} batches do not tell costs apart; tokens, touched and "
                "loaded have to vary independently"
            )
        found, _ = nnls(rows / took[:, None], np.ones(len(took)))
        batch, token, touched, loaded = map(float, found)
        return cls(batch, token, touched, loaded)


@dataclass(frozen=True)
class Spread:
    """Of seconds: the mean, and the percentiles 50, 95 and 99; NaN where there is nothing."""

    mean: float
    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not len(values):
            return cls(*[float("nan")] * 4)
        found = np.asarray(values)
        return cls(float(found.mean()), *map(float, np.percentile(found, [50, 95, 99])))


@dataclass(frozen=True)
class Served:
    """What came of serving a trace.

    seconds: from the first arrival until all is served. tokens, batches: how many were served.
    request: from a request's arrival to its last token. stay: from when it got a place. first: from
        its arrival until its prompt is served. token: from when a generated token joins the queue
        until it is served.
    hit_rate: of the cache. touched, loaded: experts in the mean batch. waiting: tokens that the
        mean batch left in the queue. longest_wait: how many batches a unit was passed over for.
    """

    seconds: float
    tokens: int
    batches: int
    request: Spread
    stay: Spread
    token: Spread
    first: Spread
    hit_rate: float
    touched: float
    loaded: float
    waiting: float
    longest_wait: int

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


class _Active:
    """A request that is being served: the unit of it that waits, and those after it."""

    def __init__(self, number: int, request: Request, piece: int, clock: float) -> None:
        self.arrival = request.arrival
        self.placed = clock
        self.joined = clock
        self._units = _units(number, request, piece)
        self.unit = next(self._units)

    def advance(self) -> bool:
        """On to the next unit; False if there is none."""
        following = next(self._units, None)
        if following is not None:
            self.unit = following
        return following is not None


def _units(number: int, request: Request, piece: int) -> Iterator[Unit]:
    """The units of a request in turn: its prompt in pieces, and each token after it."""
    for start in range(0, len(request.prompt), piece):
        yield Unit(number, request.prompt[start : start + piece], prompt=True, start=start)
    for start, expert in enumerate(request.generated, len(request.prompt)):
        yield Unit(number, (expert,), start=start)


class _Server:
    """What a simulation knows between two batches."""

    def __init__(self, trace: Sequence[Request], queue: Queue, piece: int, active: int) -> None:
        self.queue = queue
        self.piece = piece
        self.most = active
        self.coming = deque(sorted(enumerate(trace), key=lambda pair: pair[1].arrival))
        self.start = self.clock = self.coming[0][1].arrival
        self.active: dict[int, _Active] = {}
        self.request: list[float] = []
        self.stay: list[float] = []
        self.token: list[float] = []
        self.first: list[float] = []

    def admit(self) -> bool:
        """Whoever has come joins, while there are places; False when all is served."""
        if not self.active and self.coming:
            self.clock = max(self.clock, self.coming[0][1].arrival)
        while self.coming and len(self.active) < self.most:
            number, request = self.coming[0]
            if request.arrival > self.clock:
                break
            self.coming.popleft()
            self.active[number] = _Active(number, request, self.piece, self.clock)
            self._join(self.active[number])
        return bool(self.active)

    def finish(self, batch: Batch) -> None:
        """A batch was served by now; what follows its units joins the queue."""
        for unit in batch.units:
            one = self.active[unit.request]
            if not unit.prompt:
                self.token.append(self.clock - one.joined)
            further = one.advance()
            if unit.prompt and not (further and one.unit.prompt):
                self.first.append(self.clock - one.arrival)
            if further:
                self._join(one)
            else:
                self.request.append(self.clock - one.arrival)
                self.stay.append(self.clock - one.placed)
                del self.active[unit.request]

    def _join(self, one: _Active) -> None:
        one.joined = self.clock
        self.queue.add([one.unit])


def simulate(
    trace: Sequence[Request],
    queue: Queue,
    cache: ExpertCache[int],
    room: int,
    costs: Costs,
    active: int | None = None,
    piece: int | None = None,
    guess: int = 0,
) -> Served:
    """Serve a trace in batches of at most `room` tokens, one after another.

    queue: an empty one. cache: serves the experts of each batch, an expert of all layers as one. A
        policy that looks ahead is told what the queue holds, in the order in which it would be
        served, and nothing of tokens that are still to be generated.
    guess: the policy is told so many batches instead, as they come if each token is followed by
        one for the same expert, see `Queue.upcoming`; 0 for only what is known.
    active: how many requests are served at once, None for all that have come; others wait for a
        place. Each has one unit in the queue, so a saturated server that generates has a backlog
        of (active - room) / room batches.
    piece: prompts are cut into pieces of so many tokens at most, `room` by default, which follow
        one another, as in chunked prefill (Sarathi, Agrawal et al. 2023).
    A token joins the queue when the one before it is served.
    Raises InputError for no requests, a queue that is not empty, no room, no place or no piece.
    """
    active = len(trace) if active is None else active
    piece = room if piece is None else piece
    if not trace or len(queue) or min(room, active, piece, 1 + guess) < 1:
        raise InputError(
            f"simulate: {len(trace)} requests, {len(queue)} tokens queued beforehand, room={room}, "
            f"active={active}, piece={piece}, guess={guess}; requests, an empty queue, 1 at least "
            "of the next three and no less than 0 of the last are needed"
        )
    server = _Server(trace, queue, piece, active)
    counts = []
    longest = 0
    while server.admit():
        batch = queue.take(room)
        waiting = len(queue)
        loaded = _loads(cache, batch, _later(queue, room, batch, guess))
        counts.append((batch.tokens, len(batch.experts), loaded, waiting))
        longest = max(longest, *batch.waits)
        server.clock += costs.seconds(batch.tokens, len(batch.experts), loaded)
        server.finish(batch)
    totals = np.asarray(counts, dtype=float)
    _, touched, fetched, left = totals.mean(0).tolist()
    return Served(
        seconds=server.clock - server.start,
        tokens=int(totals[:, 0].sum()),
        batches=len(counts),
        request=Spread.of(server.request),
        stay=Spread.of(server.stay),
        token=Spread.of(server.token),
        first=Spread.of(server.first),
        hit_rate=1 - fetched / touched,
        touched=touched,
        loaded=fetched,
        waiting=left,
        longest_wait=longest,
    )


def _later(queue: Queue, room: int, batch: Batch, guess: int) -> Iterable[Batch]:
    """The batches after this one, as far as they are known or guessed."""
    return islice(queue.upcoming(room, batch), guess) if guess else queue.upcoming(room)


def _loads(cache: ExpertCache[int], batch: Batch, later: Iterable[Batch]) -> int:
    """How many experts of a batch have to be loaded."""
    if cache.policy.foresees:
        cache.forget()
        for following in later:
            cache.foresee(following.experts)
    return sum(not access.hit for access in cache.serve(batch.experts))
