"""Knowledge graphs: facts about entities, their inverses, what is known, and splits of facts.

Shapes: T facts (head, relation, tail), N entities, R relations, B queries, K candidates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.passing import Incoming


@dataclass(frozen=True, eq=False)
class KnowledgeGraph:
    """Facts, and the names of entities and relations.

    facts: (T, 3) int64: head, relation, tail. As a graph it has two edges a fact, from head to tail
    of the relation's type, and back of type relation + R, the inverse one.
    Raises InputError for other shapes, ids without a name, and a fact that is there twice.
    """

    facts: Tensor
    entities: Sequence[str]
    relations: Sequence[str]

    def __post_init__(self) -> None:
        check_facts("facts", self.facts, self)
        keys = self.keys(self.facts).sort().values
        twice = keys[1:][keys[1:] == keys[:-1]]
        if len(twice):
            raise InputError(
                f"{len(twice)} facts are there twice, one of them {self.named(self.fact(twice[0]))}"
            )

    @property
    def num_nodes(self) -> int:
        return len(self.entities)

    @property
    def num_types(self) -> int:
        """2 R: relations and their inverses."""
        return 2 * len(self.relations)

    @property
    def edge_index(self) -> Tensor:
        """(2, 2 T) int64: all facts, then their inverses."""
        return with_inverses(self.facts, len(self.relations))[:, [0, 2]].T.contiguous()

    @property
    def edge_type(self) -> Tensor:
        """(2 T,) int64."""
        return with_inverses(self.facts, len(self.relations))[:, 1]

    def edges(self) -> Incoming:
        """The graph that messages take."""
        return Incoming.of(self, num_types=self.num_types)

    def keys(self, facts: Tensor) -> Tensor:
        """(T,) int64: a number for each fact (T, 3)."""
        return (facts[:, 0] * self.num_types + facts[:, 1]) * self.num_nodes + facts[:, 2]

    def fact(self, key: Tensor | int) -> tuple[int, int, int]:
        """The fact of a key."""
        rest, tail = divmod(int(key), self.num_nodes)
        return *divmod(rest, self.num_types), tail

    def named(self, fact: Sequence[int] | Tensor) -> str:
        """A fact in words; an inverse relation has ⁻¹ behind it."""
        head, relation, tail = map(int, fact)
        return f"{self.entities[head]} {self.relation(relation)} {self.entities[tail]}"

    def relation(self, number: int) -> str:
        """The name of a relation, or of an inverse one."""
        count = len(self.relations)
        return self.relations[number % count] + ("⁻¹" if number >= count else "")

    def with_facts(self, facts: Tensor) -> KnowledgeGraph:
        """Other facts about the same entities."""
        return KnowledgeGraph(facts, self.entities, self.relations)


def check_facts(what: str, facts: Tensor, graph: KnowledgeGraph) -> None:
    """Raise InputError unless facts are (T, 3) int64 ids of the graph's entities and relations."""
    if facts.ndim != 2 or facts.shape[1] != 3 or facts.dtype != torch.int64:
        raise InputError(
            f"{what} {tuple(facts.shape)} of {facts.dtype}; (T, 3) of torch.int64 is right: head, "
            "relation, tail"
        )
    for kind, column, count in (
        ("entity", facts[:, [0, 2]], graph.num_nodes),
        ("relation", facts[:, 1], len(graph.relations)),
    ):
        wrong = column[(column < 0) | (column >= count)]
        if len(wrong):
            raise InputError(f"{what} name {kind} {int(wrong[0])}; ids are 0 … {count - 1} here")


def with_inverses(facts: Tensor, relations: int) -> Tensor:
    """(2 T, 3): facts (T, 3), then (tail, relation + R, head) of each."""
    return torch.cat([facts, inverse(facts, relations)])


def inverse(facts: Tensor, relations: int) -> Tensor:
    """(…, 3): each fact asked from its other end; what is inverse already is turned back."""
    turned = (facts[..., 1] + relations) % (2 * relations)
    return torch.stack([facts[..., 2], turned, facts[..., 0]], -1)


def as_queries(candidates: Tensor, relations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Heads (B,), relations (B,) and tails (B, K) of rows of candidate facts (B, K, 3).

    The facts of a row share relation and head; or relation and tail, and are turned around then, so
    that one query answers them all. Raises InputError for a row that shares neither.
    """
    heads, kinds, tails = candidates.unbind(-1)
    same = [(column == column[:, :1]).all(1) for column in (heads, kinds, tails)]
    wrong = (~(same[1] & (same[0] | same[2]))).nonzero()[:, 0]
    if len(wrong):
        raise InputError(
            f"row {int(wrong[0])} of candidates has several heads and several tails, or several "
            "relations; a row asks one question"
        )
    turned = torch.where(same[0][:, None, None], candidates, inverse(candidates, relations))
    return turned[:, 0, 0], turned[:, 0, 1], turned[:, :, 2]


class Known:
    """Which tails are known for a query (head, relation), inverse relations too.

    facts: (T, 3), any number of times each. Raises InputError for ids out of range.
    """

    def __init__(self, graph: KnowledgeGraph, *facts: Tensor) -> None:
        every = torch.cat(facts)
        check_facts("known facts", every, graph)
        self._graph = graph
        self._keys = graph.keys(with_inverses(every, len(graph.relations))).unique()

    def _spans(self, heads: Tensor, relations: Tensor) -> tuple[Tensor, Tensor]:
        """Where the tails of each query are, from and to."""
        first = (heads * self._graph.num_types + relations) * self._graph.num_nodes
        bounds = torch.stack([first, first + self._graph.num_nodes])
        low, high = torch.searchsorted(self._keys, bounds)
        return low, high

    def mask(self, heads: Tensor, relations: Tensor) -> Tensor:
        """(B, N) bool: the known tails of queries (B,), (B,)."""
        low, high = self._spans(heads, relations)
        counts = high - low
        found = torch.zeros(len(heads), self._graph.num_nodes, dtype=torch.bool)
        rows = torch.arange(len(heads)).repeat_interleave(counts)
        places = torch.arange(len(rows)) + (low - counts.cumsum(0) + counts)[rows]
        found[rows, self._keys[places] % self._graph.num_nodes] = True
        return found

    def negatives(
        self, heads: Tensor, relations: Tensor, count: int, generator: torch.Generator
    ) -> Tensor:
        """(B, count) int64: tails that are not known for queries (B,), (B,); each equally likely.

        With replacement. Source: NBFNet, strict negatives. Raises InputError for a query of which
        every entity is a known tail.
        """
        free = ~self.mask(heads, relations)
        counts = free.sum(1)
        full = (counts == 0).nonzero()[:, 0]
        if len(full):
            head, relation = int(heads[full[0]]), int(relations[full[0]])
            raise InputError(
                f"every entity is a known tail of {self._graph.entities[head]} "
                f"{self._graph.relation(relation)}; there are no negatives"
            )
        drawn = torch.rand(len(heads), count, generator=generator, dtype=torch.float64)
        nth = (drawn * counts[:, None]).long() + 1
        return torch.searchsorted(free.cumsum(1), nth)


class Removal:
    """Takes edges out of a message graph for one batch: only a mask is made anew.

    edges: those of the whole graph.
    """

    def __init__(self, edges: Incoming) -> None:
        self.edges = edges
        self._targets = edges.targets
        self._sorted = {of_type: self._keys(of_type).sort() for of_type in (False, True)}

    def _keys(self, of_type: bool) -> Tensor:
        return self._key(self.edges.sources, self._targets, self.edges.types if of_type else None)

    def _key(self, sources: Tensor, targets: Tensor, types: Tensor | None) -> Tensor:
        key = sources * self.edges.num_nodes + targets
        return key if types is None else key * self.edges.num_types + types

    def pairs(self, heads: Tensor, tails: Tensor) -> Incoming:
        """Without the edges that join heads (B,) and tails (B, K), either way, of any type."""
        heads = heads[:, None].expand_as(tails)
        keys = [self._key(heads, tails, None), self._key(tails, heads, None)]
        return self._without(torch.cat(keys).flatten(), False)

    def facts(self, heads: Tensor, types: Tensor, tails: Tensor) -> Incoming:
        """Without the edges from heads (B,) to tails (B, K) of types (B,), and their inverses."""
        half = self.edges.num_types // 2
        heads, types = heads[:, None].expand_as(tails), types[:, None].expand_as(tails)
        keys = [
            self._key(heads, tails, types),
            self._key(tails, heads, (types + half) % self.edges.num_types),
        ]
        return self._without(torch.cat(keys).flatten(), True)

    def _without(self, gone: Tensor, of_type: bool) -> Incoming:
        keys, order = self._sorted[of_type]
        gone = gone.unique()
        low, high = torch.searchsorted(keys, gone), torch.searchsorted(keys, gone, right=True)
        counts = high - low
        begins = (low - counts.cumsum(0) + counts).repeat_interleave(counts)
        places = begins + torch.arange(len(begins))
        keep = torch.ones(len(keys), dtype=torch.bool)
        keep[order[places]] = False
        return self.edges.kept(keep)
