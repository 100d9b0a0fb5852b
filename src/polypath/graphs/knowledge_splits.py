"""Facts to train on, to validate on and to test on, of one graph or of two without common entities.

Shapes: T facts (head, relation, tail).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs.triples import KnowledgeGraph, Known, check_facts


@dataclass(frozen=True, eq=False)
class KnowledgeSplit:
    """A graph to train on, and one on which tests are asked; the same, or one of other entities.

    train: messages and, without `learnt`, what is learnt. valid: (T, 3) facts of its entities to
    validate on. inference: messages when tests are asked. test: (T, 3) facts of its entities.
    aside: (T, 3) facts of it that are only known: neither messages nor questions, and no rivals.
    learnt: (T, 3) facts of `train`'s entities to learn instead of its own.
    Raises InputError for a leak: a fact of one part in another, an entity of both graphs where
    these are two, and a relation that is asked for but never trained.
    """

    train: KnowledgeGraph
    valid: Tensor
    inference: KnowledgeGraph
    test: Tensor
    aside: Tensor
    learnt: Tensor | None = None

    def __post_init__(self) -> None:
        train, inference = self.train, self.inference
        if list(train.relations) != list(inference.relations):
            raise InputError("the graphs of a split have different relations; they share them all")
        check_facts("facts to validate on", self.valid, train)
        check_facts("facts to test on", self.test, inference)
        check_facts("facts set aside", self.aside, inference)
        common = set(train.entities) & set(inference.entities)
        if common and not self.transductive:
            raise InputError(
                f"{len(common)} entities are in both graphs, one of them {min(common)!r}; a model "
                "would be tested on what it has seen"
            )
        check_facts("facts to learn", self.lessons, train)
        _apart(train, "validate on", self.valid, "train on", train.facts)
        _apart(train, "validate on", self.valid, "train on", self.lessons)
        _apart(inference, "test on", self.test, "pass messages on", inference.facts)
        if self.transductive:
            _apart(train, "test on", self.test, "validate on", self.valid)
            _apart(train, "test on", self.test, "train on", self.lessons)
        asked = torch.cat([self.valid[:, 1], self.test[:, 1]]).unique()
        new = asked[~torch.isin(asked, self.lessons[:, 1])]
        if len(new):
            raise InputError(
                f"{len(new)} relations are asked for without a fact to train on, one of them "
                f"{train.relations[int(new[0])]!r}"
            )

    @property
    def lessons(self) -> Tensor:
        """(T, 3): the facts to train on."""
        return self.train.facts if self.learnt is None else self.learnt

    @property
    def transductive(self) -> bool:
        return self.inference is self.train

    def known(self) -> tuple[Known, Known]:
        """What is known when validating and when testing: all facts of either graph."""
        tested = Known(self.inference, self.whole.facts)
        if self.transductive:
            return tested, tested
        return Known(self.train, self.train.facts, self.lessons, self.valid), tested

    @property
    def whole(self) -> KnowledgeGraph:
        """All facts about the entities that tests are asked of."""
        facts = [self.inference.facts, self.test, self.aside]
        if self.transductive:
            facts += [self.lessons, self.valid]
        return self.inference.with_facts(torch.cat(facts).unique(dim=0))


def _apart(graph: KnowledgeGraph, one: str, facts: Tensor, other: str, others: Tensor) -> None:
    keys = graph.keys(facts)
    found = keys[torch.isin(keys, graph.keys(others))]
    if len(found):
        raise InputError(
            f"{len(found)} facts to {one} are among those to {other}, one of them "
            f"{graph.named(graph.fact(found[0]))}; a model would know the answer"
        )


def hold_out(
    graph: KnowledgeGraph, share: float, generator: torch.Generator
) -> tuple[KnowledgeGraph, Tensor]:
    """The graph without a share of its facts, about, and these facts (T, 3), drawn at random.

    Each entity and each relation keeps a fact. A fact and the same fact backwards, as a symmetric
    relation has it, stay together. Raises InputError where nothing can be held out.
    """
    facts: list[list[int]] = graph.facts.tolist()
    places = {tuple(fact): number for number, fact in enumerate(facts)}
    entities = Counter(end for head, _, tail in facts for end in (head, tail))
    relations = Counter(relation for _, relation, _ in facts)
    held: set[int] = set()
    for number in torch.randperm(len(facts), generator=generator).tolist():
        if len(held) >= round(share * len(facts)):
            break
        head, relation, tail = facts[number]
        both = {number, places.get((tail, relation, head), number)}
        ends = Counter({head: len(both)}) + Counter({tail: len(both)})
        spared = all(entities[end] > count for end, count in ends.items())
        if number not in held and spared and relations[relation] > len(both):
            held |= both
            entities -= ends
            relations[relation] -= len(both)
    if not held:
        raise InputError(
            f"hold_out: a share {share} of {len(facts)} facts is nothing, or each is the last of "
            "an entity or a relation"
        )
    mask = torch.zeros(len(facts), dtype=torch.bool)
    mask[list(held)] = True
    return graph.with_facts(graph.facts[~mask]), graph.facts[mask]


def split_facts(
    graph: KnowledgeGraph, generator: torch.Generator, valid: float = 0.1, test: float = 0.1
) -> KnowledgeSplit:
    """A split of one graph's facts, with shares to validate and to test on; see `hold_out`."""
    rest, tested = hold_out(graph, test, generator)
    share = valid * len(graph.facts) / len(rest.facts)
    train, validated = hold_out(rest, share, generator)
    return KnowledgeSplit(train, validated, train, tested, graph.facts[:0])


def split_entities(
    graph: KnowledgeGraph,
    trained: Sequence[bool],
    generator: torch.Generator,
    share: float = 0.1,
) -> KnowledgeSplit:
    """Train on some entities and test on the others; facts that join the two are left out.

    trained: which entities are of the graph to train on, N. share: of the facts of either graph
    that are asked for. Relations without facts to train on are left out of the other graph.
    Raises InputError where a part would be empty.
    """
    if len(trained) != graph.num_nodes:
        raise InputError(f"{len(trained)} entities are told apart; the graph has {graph.num_nodes}")
    heads, tails = torch.tensor(trained)[graph.facts[:, [0, 2]]].unbind(1)
    train, validated = hold_out(_about(graph, graph.facts[heads & tails]), share, generator)
    known = torch.isin(graph.facts[:, 1], train.facts[:, 1])
    others = _about(graph, graph.facts[~heads & ~tails & known])
    inference, tested = hold_out(others, share, generator)
    return KnowledgeSplit(train, validated, inference, tested, tested[:0])


def _about(graph: KnowledgeGraph, facts: Tensor) -> KnowledgeGraph:
    """Some facts, and the entities that are in them."""
    used, ids = facts[:, [0, 2]].unique(return_inverse=True)
    own = torch.stack([ids[:, 0], facts[:, 1], ids[:, 1]], 1)
    return KnowledgeGraph(own, [graph.entities[n] for n in used.tolist()], graph.relations)
