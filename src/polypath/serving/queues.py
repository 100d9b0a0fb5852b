"""What waits to be served, and which of it goes into the next batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple

from polypath.errors import InputError, unknown


@dataclass(frozen=True)
class Unit:
    """What is served in one piece: a generated token, or tokens of a prompt, which attend together.

    request: whose it is. experts: the expert of each of its tokens, the same in all layers.
    prompt: whether its tokens are a prompt's. start: the place of its first token in the request.
    Raises InputError without tokens, or for a generated one with several.
    """

    request: int
    experts: tuple[int, ...]
    prompt: bool = False
    start: int = 0

    def __post_init__(self) -> None:
        if not self.experts or (len(self.experts) > 1 and not self.prompt):
            raise InputError(
                f"Unit of request {self.request}: {len(self.experts)} tokens; "
                "a prompt needs one at least, and generated tokens are units of one each"
            )

    def __len__(self) -> int:
        return len(self.experts)

    @cached_property
    def lead(self) -> int:
        """The expert of most of its tokens, the first of equals."""
        counts = Counter(self.experts)
        return min(counts, key=lambda expert: (-counts[expert], expert))


@dataclass
class Batch:
    """Units that are served together. waits: for how many batches each was passed over."""

    units: list[Unit] = field(default_factory=list)
    waits: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(map(len, self.units))

    @property
    def experts(self) -> list[int]:
        """The experts that serve it, each once, ascending."""
        return sorted({expert for unit in self.units for expert in unit.experts})


class _Waiting(NamedTuple):
    number: int
    round: int
    unit: Unit


class _Line:
    """Units in the order in which they came, prompts and generated tokens apart.

    A prompt that finds too little room lets generated tokens pass, but no other prompt.
    """

    def __init__(self) -> None:
        self.prompts: deque[_Waiting] = deque()
        self.generated: deque[_Waiting] = deque()
        self.tokens = 0

    def __copy__(self) -> _Line:
        other = _Line()
        other.prompts, other.generated = self.prompts.copy(), self.generated.copy()
        other.tokens = self.tokens
        return other

    def add(self, waiting: _Waiting) -> None:
        (self.prompts if waiting.unit.prompt else self.generated).append(waiting)
        self.tokens += len(waiting.unit)

    def fits(self, room: int, first: str | None = None) -> _Waiting | None:
        """The unit that is next to leave for this much room, or None.

        first: "prompts" or "generated", if one kind goes before the other, however late it came.
        """
        prompt = self.prompts[0] if self.prompts and len(self.prompts[0].unit) <= room else None
        token = self.generated[0] if self.generated and room else None
        if prompt is None or token is None:
            return prompt or token
        if first is None:
            return min(prompt, token)
        return prompt if first == "prompts" else token

    def remove(self, waiting: _Waiting) -> None:
        """Take out what `fits` gave."""
        (self.prompts if waiting.unit.prompt else self.generated).popleft()
        self.tokens -= len(waiting.unit)


class Queue(ABC):
    """What waits; `take` makes a batch of it. Its length is the number of tokens that wait."""

    def __init__(self) -> None:
        self._numbers = 0
        self._rounds = 0

    @abstractmethod
    def _line(self, unit: Unit) -> _Line:
        """The line in which a unit waits."""

    @abstractmethod
    def _lines(self) -> Iterable[_Line]:
        """All lines."""

    @abstractmethod
    def _choose(self, room: int) -> Iterator[tuple[_Line, _Waiting]]:
        """Who goes next, and from which line; the caller takes each out before it asks on."""

    @abstractmethod
    def __copy__(self) -> Queue: ...

    def __len__(self) -> int:
        return sum(line.tokens for line in self._lines())

    def add(self, units: Iterable[Unit]) -> None:
        """Units join, in this order."""
        for unit in units:
            self._line(unit).add(_Waiting(self._numbers, self._rounds, unit))
            self._numbers += 1

    def take(self, room: int) -> Batch:
        """The next batch, of at most `room` tokens; what is in it waits no more.

        Raises InputError for less than one token, or for a prompt that no batch has room for.
        """
        self._check(room)
        batch = Batch()
        for line, waiting in self._choose(room):
            line.remove(waiting)
            batch.units.append(waiting.unit)
            batch.waits.append(self._rounds - waiting.round)
        self._rounds += 1
        return batch

    def upcoming(self, room: int, after: Batch | None = None) -> Iterator[Batch]:
        """The batches that would be taken one after another if nothing joined any more.

        after: the batch that is being served, to guess what joins: each unit of it, and of the
            batches that follow, is followed by a token for the expert of its last one. There is
            then no end of batches. Steady routing mostly keeps to it; nothing unknown is read.
        """
        other = copy(self)
        while True:
            if after is not None:
                other.add(Unit(unit.request, unit.experts[-1:]) for unit in after.units)
            if not len(other):
                return
            batch = other.take(room)
            yield batch
            after = None if after is None else batch

    def _check(self, room: int) -> None:
        if room < 1:
            raise InputError(f"a batch of room={room}; room for 1 token at least is needed")
        for line in self._lines():
            if line.prompts and len(line.prompts[0].unit) > room:
                unit = line.prompts[0].unit
                raise InputError(
                    f"{len(unit)} tokens of the prompt of request {unit.request} in one piece, and "
                    f"room for {room} in a batch; cut prompts into pieces of that size at most"
                )


class ArrivalQueue(Queue):
    """First come, first served.

    first: "prompts" or "generated" to serve all of these before the others, as prefill- and
        decoding-prioritised servers do; by default only the order counts.
    A prompt that finds too little room lets generated tokens pass; it goes first next time.
    """

    def __init__(self, first: Literal["prompts", "generated"] | None = None) -> None:
        super().__init__()
        if first not in (None, "prompts", "generated"):
            raise unknown("kind of unit", str(first), ("prompts", "generated"))
        self._first = first
        self._all = _Line()

    def __copy__(self) -> ArrivalQueue:
        other = ArrivalQueue(self._first)
        other._numbers, other._rounds, other._all = self._numbers, self._rounds, copy(self._all)
        return other

    def _line(self, unit: Unit) -> _Line:
        return self._all

    def _lines(self) -> Iterable[_Line]:
        return (self._all,)

    def _choose(self, room: int) -> Iterator[tuple[_Line, _Waiting]]:
        while waiting := self._all.fits(room, self._first):
            yield self._all, waiting
            room -= len(waiting.unit)


class ExpertQueues(Queue):
    """One queue for each expert; the longest goes first, all of it, or as much as fits.

    Until the room or the queues are exhausted; of equally long queues the one whose first unit
    came first. Tokens of a prompt are not torn apart: they wait for the expert of most of them, and
    bring the others along; queues of experts that serve the batch anyway go before longer ones.
    max_wait: a unit that was passed over for so many batches goes before all others, the earliest
        first; 0 is first come, first served. Units wait longer only where more of them are
        due than there is room. None: rare experts may wait for ever.
    Raises InputError for a negative max_wait.
    Source: Read-ME (Cai et al. 2024), algorithm 1; the bound on waiting is ours.
    """

    def __init__(self, max_wait: int | None = None) -> None:
        super().__init__()
        if max_wait is not None and max_wait < 0:
            raise InputError(f"ExpertQueues: max_wait={max_wait}; 0 or more batches, or None")
        self._max_wait = max_wait
        self._experts: dict[int, _Line] = {}

    def __copy__(self) -> ExpertQueues:
        other = ExpertQueues(self._max_wait)
        other._numbers, other._rounds = self._numbers, self._rounds
        other._experts = {expert: copy(line) for expert, line in self._experts.items()}
        return other

    def _line(self, unit: Unit) -> _Line:
        return self._experts.setdefault(unit.lead, _Line())

    def _lines(self) -> Iterable[_Line]:
        return self._experts.values()

    def lengths(self) -> dict[int, int]:
        """How many tokens wait in the queue of each expert that ever had one."""
        return {expert: line.tokens for expert, line in sorted(self._experts.items())}

    def _choose(self, room: int) -> Iterator[tuple[_Line, _Waiting]]:
        serving: set[int] = set()
        for line, waiting in self._due(room):
            yield line, waiting
            room -= len(waiting.unit)
            serving.update(waiting.unit.experts)
        while (longest := self._longest(room, serving)) is not None:
            while (following := longest.fits(room)) is not None:
                yield longest, following
                room -= len(following.unit)
                serving.update(following.unit.experts)

    def _due(self, room: int) -> Iterator[tuple[_Line, _Waiting]]:
        """Those that have waited as long as they may, the earliest first."""
        if self._max_wait is None:
            return
        until = self._rounds - self._max_wait
        while True:
            first: tuple[_Waiting, _Line] | None = None
            for line in self._lines():
                waiting = line.fits(room)
                if waiting is None or waiting.round > until:
                    continue
                if first is None or waiting.number < first[0].number:
                    first = waiting, line
            if first is None:
                return
            yield first[1], first[0]
            room -= len(first[0].unit)

    def _longest(self, room: int, serving: set[int]) -> _Line | None:
        """The queue to empty next, of those from which something fits."""
        best, found = None, None
        for expert, line in self._experts.items():
            if waiting := line.fits(room):
                rank = (expert in serving, line.tokens, -waiting.number)
                if best is None or rank > best:
                    best, found = rank, line
        return found
