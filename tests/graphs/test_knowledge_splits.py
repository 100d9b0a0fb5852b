from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.graphs.knowledge_splits import (
    KnowledgeSplit,
    hold_out,
    split_entities,
    split_facts,
)
from polypath.graphs.triples import KnowledgeGraph


def graph_of(seed: int, entities: int = 12, count: int = 60) -> KnowledgeGraph:
    torch.manual_seed(seed)
    facts = (torch.rand(count, 3) * torch.tensor([entities, 2, entities])).long()
    facts = torch.cat([facts, facts[:9, [2, 1, 0]]]).unique(dim=0)
    return KnowledgeGraph(facts, [f"e{n}" for n in range(entities)], ["r", "s"])


def as_set(facts: torch.Tensor) -> set[tuple[int, ...]]:
    return {tuple(fact) for fact in facts.tolist()}


@given(st.integers(0, 99), st.sampled_from([0.05, 0.2, 0.9]))
def test_a_held_out_share_leaves_everything_a_fact(seed: int, share: float) -> None:
    graph = graph_of(seed)
    kept, held = hold_out(graph, share, torch.Generator().manual_seed(seed))
    assert as_set(kept.facts) | as_set(held) == as_set(graph.facts)
    assert not as_set(kept.facts) & as_set(held)
    assert kept.facts[:, [0, 2]].unique().tolist() == graph.facts[:, [0, 2]].unique().tolist()
    assert kept.facts[:, 1].unique().tolist() == graph.facts[:, 1].unique().tolist()
    if share < 0.5:
        assert abs(len(held) - round(share * len(graph.facts))) <= 1
    for head, relation, tail in held.tolist():
        if (tail, relation, head) in as_set(graph.facts):
            assert (tail, relation, head) in as_set(held)
    again = hold_out(graph, share, torch.Generator().manual_seed(seed))[1]
    assert torch.equal(again, held)


@given(st.integers(0, 99))
def test_splits_of_facts_know_all(seed: int) -> None:
    graph = graph_of(seed)
    split = split_facts(graph, torch.Generator().manual_seed(seed), 0.1, 0.15)
    assert split.transductive
    parts = [as_set(part) for part in (split.train.facts, split.valid, split.test)]
    assert set().union(*parts) == as_set(graph.facts) and sum(map(len, parts)) == len(graph.facts)
    for known in split.known():
        mask = known.mask(graph.facts[:, 0], graph.facts[:, 1])
        assert mask[torch.arange(len(mask)), graph.facts[:, 2]].all()


@given(st.integers(0, 99))
def test_splits_of_entities_share_none(seed: int) -> None:
    graph = graph_of(seed, 24, 200)
    trained = [n < 14 for n in range(24)]
    split = split_entities(graph, trained, torch.Generator().manual_seed(seed))
    assert not split.transductive
    assert not set(split.train.entities) & set(split.inference.entities)
    found = set()
    for part, facts in (
        (split.train, split.train.facts),
        (split.train, split.valid),
        (split.inference, split.inference.facts),
        (split.inference, split.test),
    ):
        found |= {part.named(fact) for fact in facts}
    wanted = {graph.named(fact) for fact in graph.facts if trained[fact[0]] == trained[fact[2]]}
    assert found == wanted
    tested = torch.cat([split.inference.facts, split.test]).tolist()
    assert sorted(split.whole.facts.tolist()) == sorted(tested)
    valid, test = split.known()
    assert valid.mask(split.valid[:, 0], split.valid[:, 1]).any(1).all()
    assert test.mask(split.test[:, 0], split.test[:, 1]).any(1).all()


def planted() -> KnowledgeSplit:
    return split_facts(graph_of(0), torch.Generator().manual_seed(0), 0.1, 0.1)


def test_leaks_are_caught() -> None:
    split = planted()
    with pytest.raises(InputError, match="1 facts to validate on are among those to train on"):
        replace(split, valid=torch.cat([split.valid, split.train.facts[:1]]))
    with pytest.raises(InputError, match="1 facts to test on are among those to validate on"):
        replace(split, test=torch.cat([split.test, split.valid[:1]]))
    with pytest.raises(InputError, match="facts to test on are among those to pass messages on"):
        replace(split, test=torch.cat([split.test, split.train.facts[3:4]]))
    with pytest.raises(InputError, match="facts to test on are among those to train on"):
        replace(split, learnt=split.test)
    copy = KnowledgeGraph(split.train.facts, split.train.entities, split.train.relations)
    with pytest.raises(InputError, match="12 entities are in both graphs, one of them 'e0'"):
        replace(split, inference=copy)


def test_lessons_may_be_other_facts_than_messages() -> None:
    split = planted()
    own = replace(split, learnt=split.train.facts[3:])
    assert torch.equal(own.lessons, split.train.facts[3:])
    assert torch.equal(split.lessons, split.train.facts)
    for one in (own, split):  # what is not learnt is known all the same
        assert sorted(one.whole.facts.tolist()) == sorted(graph_of(0).facts.tolist())


def test_wrong_splits_are_told() -> None:
    split = planted()
    with pytest.raises(InputError, match="different relations"):
        replace(split, inference=KnowledgeGraph(split.test, split.train.entities, ["r", "t"]))
    with pytest.raises(InputError, match=r"facts set aside \(1,\)"):
        replace(split, aside=torch.tensor([1]))
    only = split.train.with_facts(split.train.facts[split.train.facts[:, 1] == 0])
    asked = torch.tensor([[0, 1, 1]])
    with pytest.raises(InputError, match=r"1 relations are asked for without a fact .* 's'"):
        KnowledgeSplit(only, asked, only, asked[:0], asked[:0])
    with pytest.raises(InputError, match=r"hold_out: a share 0.0 of"):
        hold_out(graph_of(0), 0.0, torch.Generator())
    with pytest.raises(InputError, match="3 entities are told apart; the graph has 12"):
        split_entities(graph_of(0), [True] * 3, torch.Generator())
