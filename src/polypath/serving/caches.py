"""Which experts stay in memory: a cache, its policies, and traces run through it."""

from __future__ import annotations

import heapq
import random
import sys
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

from torch import Tensor

from polypath.errors import InputError, unknown

K = TypeVar("K", bound=Hashable)

NEVER = sys.maxsize
"""The place of an access that nobody knows of."""


class Policy(ABC, Generic[K]):
    """Who leaves a full cache; it is told of every access.

    foresees: whether it reads what `foresee` tells.
    """

    foresees = False

    @abstractmethod
    def enter(self, key: K) -> None:
        """`key` was asked for and came in."""

    @abstractmethod
    def use(self, key: K) -> None:
        """`key` was asked for and was there."""

    @abstractmethod
    def leave(self) -> K:
        """The key that leaves, of one at least."""

    def foresee(self, keys: Iterable[K]) -> None:
        """These will be asked for, in this order, after what was foreseen before."""

    def forget(self) -> None:
        """Nothing is foreseen any more."""


class FIFO(Policy[K]):
    """Whoever came first leaves first."""

    def __init__(self) -> None:
        self._order: OrderedDict[K, None] = OrderedDict()

    def enter(self, key: K) -> None:
        self._order[key] = None

    def use(self, key: K) -> None:
        pass

    def leave(self) -> K:
        return self._order.popitem(last=False)[0]


class LRU(FIFO[K]):
    """Whoever was used least recently leaves first."""

    def use(self, key: K) -> None:
        self._order.move_to_end(key)


class Random(Policy[K]):
    """Anyone leaves, each as likely as another."""

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._keys: list[K] = []

    def enter(self, key: K) -> None:
        self._keys.append(key)

    def use(self, key: K) -> None:
        pass

    def leave(self) -> K:
        place = self._random.randrange(len(self._keys))
        self._keys[place], self._keys[-1] = self._keys[-1], self._keys[place]
        return self._keys.pop()


class Belady(Policy[K]):
    """Whoever is asked for last, or never, as far as is foreseen; of equals the least recent.

    It knows only what `foresee` told: with the whole future it makes the fewest misses that a
    cache can make, with nothing it is LRU. An access uses up the first foreseen one of its key.
    O(log capacity) a step. Source: Belady 1966; Read-ME (Cai et al. 2024), section on caching.
    """

    foresees = True

    def __init__(self) -> None:
        self._clock = 0
        self._end = 0
        self._known: dict[K, deque[int]] = {}
        self._inside: dict[K, tuple[int, int]] = {}  # key: (-place of its next access, last use)
        self._heap: list[tuple[int, int, K]] = []  # of these, with some that are no longer true

    def enter(self, key: K) -> None:
        places = self._known.get(key)
        if places:
            places.popleft()
        self._clock += 1
        self._rank(key, self._clock)

    use = enter

    def leave(self) -> K:
        while True:
            *entry, key = heapq.heappop(self._heap)
            if self._inside.get(key) == tuple(entry):
                del self._inside[key]
                return key

    def foresee(self, keys: Iterable[K]) -> None:
        for key in keys:
            places = self._known.setdefault(key, deque())
            places.append(self._end)
            self._end += 1
            if len(places) == 1 and key in self._inside:
                self._rank(key, self._inside[key][1])

    def forget(self) -> None:
        self._known.clear()
        self._inside = {key: (-NEVER, used) for key, (_, used) in self._inside.items()}
        self._tidy()

    def _rank(self, key: K, used: int) -> None:
        places = self._known.get(key)
        self._inside[key] = (-places[0] if places else -NEVER, used)
        heapq.heappush(self._heap, (*self._inside[key], key))
        if len(self._heap) > 4 * len(self._inside) + 64:
            self._tidy()

    def _tidy(self) -> None:
        self._heap = [(*entry, key) for key, entry in self._inside.items()]
        heapq.heapify(self._heap)


POLICIES: dict[str, Callable[[], Policy]] = {
    "lru": LRU,
    "fifo": FIFO,
    "random": Random,
    "belady": Belady,
}


class Access(NamedTuple, Generic[K]):
    """What an access did. evicted: who left for it, or None."""

    key: K
    hit: bool
    evicted: K | None


class ExpertCache(Generic[K]):
    """At most `capacity` experts, by any key; a miss lets its expert in, and another one out.

    policy: "lru", "fifo", "random" (of seed 0), "belady", or a `Policy` of this cache alone.
    It counts `hits`, `misses` and `evictions`; it holds keys, not weights.
    Raises InputError for a capacity below 1 or an unknown policy.
    """

    def __init__(self, capacity: int, policy: str | Policy[K] = "lru") -> None:
        if capacity < 1:
            raise InputError(f"ExpertCache: capacity={capacity}; at least 1 expert is needed")
        if isinstance(policy, str):
            if policy not in POLICIES:
                raise unknown("cache policy", policy, POLICIES)
            policy = POLICIES[policy]()
        self.capacity = capacity
        self.policy = policy
        self.hits = self.misses = self.evictions = 0
        self._inside: set[K] = set()

    def __len__(self) -> int:
        return len(self._inside)

    def __contains__(self, key: object) -> bool:
        return key in self._inside

    def __iter__(self) -> Iterator[K]:
        return iter(self._inside)

    @property
    def hit_rate(self) -> float:
        """Hits over accesses, NaN before the first."""
        accesses = self.hits + self.misses
        return self.hits / accesses if accesses else float("nan")

    def access(self, key: K) -> Access[K]:
        """Ask for one expert; it is inside then."""
        if key in self._inside:
            self.hits += 1
            self.policy.use(key)
            return Access(key, True, None)
        self.misses += 1
        evicted = None
        if len(self._inside) == self.capacity:
            evicted = self.policy.leave()
            self._inside.remove(evicted)
            self.evictions += 1
        self._inside.add(key)
        self.policy.enter(key)
        return Access(key, False, evicted)

    def serve(self, keys: Iterable[K]) -> list[Access[K]]:
        """Ask for the experts of a batch, each once, those that are inside first.

        In a batch their order is free, and so none of them leaves before it was used.
        """
        ordered = sorted(keys, key=lambda key: key not in self._inside)  # else as they were given
        return [self.access(key) for key in ordered]

    def foresee(self, keys: Iterable[K]) -> None:
        """Tell the policy what will be asked for, after what it was told before.

        Only what is known may be told: what is queued, not what will be generated.
        """
        self.policy.foresee(keys)

    def forget(self) -> None:
        """What was foreseen and has not come is not known any more."""
        self.policy.forget()


def follow(
    cache: ExpertCache[K], trace: Sequence[K], horizon: int | None = None
) -> Iterator[Access[K]]:
    """Every access of a trace in turn.

    horizon: how many accesses after the present one are known; None for all.
    """
    known = 0
    for place, key in enumerate(trace):
        until = len(trace) if horizon is None else min(place + 1 + horizon, len(trace))
        if cache.policy.foresees and known < until:
            cache.foresee(trace[known:until])
            known = until
        yield cache.access(key)


def replay(
    trace: Sequence[K] | Tensor,
    capacity: int,
    policy: str | Policy[K] = "lru",
    horizon: int | None = None,
) -> ExpertCache[K]:
    """A cache, empty at first, after a trace: read its `hit_rate`, `hits` and `misses`.

    trace: keys, or (N,) integers. horizon: see `follow`; only "belady" looks ahead.
    Raises InputError for a negative horizon, and as ExpertCache does.
    """
    if horizon is not None and horizon < 0:
        raise InputError(f"replay: horizon={horizon}; 0 or more accesses ahead, or None for all")
    keys: Sequence = trace.tolist() if isinstance(trace, Tensor) else trace
    cache: ExpertCache[K] = ExpertCache(capacity, policy)
    for _ in follow(cache, keys, horizon):
        pass
    return cache


@dataclass(eq=False)
class Load:
    """An expert that is to be copied into a slot, once `after` visits are over."""

    expert: int
    slot: int
    after: int
    done: bool = False


@dataclass(eq=False)
class Visit:
    """Experts that serve together: the slot of each, and the loads that filled the slots."""

    slots: dict[int, int] = field(default_factory=dict)
    loads: list[Load] = field(default_factory=list)


class Slots:
    """Who lies in which place of memory at which visit, decided before anything is copied.

    cache: of experts. spare: slots beside those of the cache, for experts on their way: whoever
    leaves can still be used while who comes is copied. over: how many of the planned visits are.
    """

    def __init__(self, cache: ExpertCache[int], spare: int = 0) -> None:
        self.cache = cache
        self.count = cache.capacity + spare
        self.over = 0
        self._planned = 0
        self._places: dict[int, int] = {}
        self._filled: dict[int, Load] = {}  # slot: what fills it last
        self._free = deque(range(self.count))  # the one that was freed first is filled first
        self._needed = [0] * self.count  # slot: the number of the last visit that needs it

    def plan(self, experts: Iterable[int]) -> tuple[list[Visit], list[Load]]:
        """The visits in which these experts serve, each once, and the loads that are new.

        Those that are inside come first, and compute while the others are loaded. If memory has no
        room for all, each visit takes half of the cache at most, so that the next can be loaded.
        """
        accesses = self.cache.serve(experts)
        capacity = self.cache.capacity
        most = capacity if len(accesses) <= capacity else max(1, capacity // 2)
        visits: list[Visit] = []
        loads: list[Load] = []
        hits = True
        for expert, hit, evicted in accesses:
            if evicted is not None:
                self._free.append(self._places.pop(evicted))
            slot = self._places[expert] if hit else self._free.popleft()
            taken = not hit and self._needed[slot] == self._planned
            if not visits or len(visits[-1].slots) == most or hits != hit or taken:
                visits.append(Visit())
                self._planned += 1
            hits = hit
            if not hit:
                self._places[expert] = slot
                self._filled[slot] = Load(expert, slot, self._needed[slot])
                loads.append(self._filled[slot])
            self._needed[slot] = self._planned
            visits[-1].slots[expert] = slot
            visits[-1].loads.append(self._filled[slot])
        return visits, loads
