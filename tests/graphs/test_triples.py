import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.errors import InputError
from polypath.graphs import Incoming
from polypath.graphs.triples import (
    KnowledgeGraph,
    Known,
    Removal,
    as_queries,
    inverse,
    with_inverses,
)

SIZES = st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 20), st.integers(0, 99))


def drawn(sizes: tuple[int, ...]) -> KnowledgeGraph:
    entities, relations, count, seed = sizes
    torch.manual_seed(seed)
    limits = torch.tensor([entities, relations, entities])
    facts = (torch.rand(count, 3) * limits).long().unique(dim=0)
    facts = facts[torch.randperm(len(facts))]
    names = [f"e{n}" for n in range(entities)], [f"r{n}" for n in range(relations)]
    return KnowledgeGraph(facts, *names)


def small() -> KnowledgeGraph:
    facts = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 0, 2]])
    return KnowledgeGraph(facts, ["ada", "bob", "eve"], ["knows", "likes"])


@given(SIZES)
def test_a_fact_is_two_edges(sizes: tuple) -> None:
    graph = drawn(sizes)
    edges = graph.edges()
    found = {*zip(*map(Tensor.tolist, (edges.sources, edges.types, edges.targets)), strict=True)}
    count = len(graph.relations)
    wanted = {(h, r, t) for h, r, t in graph.facts.tolist()}
    wanted |= {(t, r + count, h) for h, r, t in graph.facts.tolist()}
    assert found == wanted and edges.num_types == graph.num_types == 2 * count
    assert [graph.fact(key) for key in graph.keys(graph.facts)] == [
        tuple(fact) for fact in graph.facts.tolist()
    ]
    every = with_inverses(graph.facts, count)
    assert torch.equal(inverse(inverse(every, count), count), every)


def test_facts_are_told_in_words() -> None:
    graph = small()
    assert graph.named(graph.facts[1]) == "bob likes eve"
    assert graph.named([2, 3, 1]) == "eve likes⁻¹ bob"


def test_a_row_of_candidates_is_a_query() -> None:
    rows = torch.tensor([[[0, 1, 2], [0, 1, 4]], [[3, 0, 2], [1, 0, 2]], [[0, 1, 2], [0, 1, 2]]])
    heads, relations, tails = as_queries(rows, 2)
    assert heads.tolist() == [0, 2, 0] and relations.tolist() == [1, 2, 1]
    assert tails.tolist() == [[2, 4], [3, 1], [2, 2]]
    # Turned once more, the second row is asked for its heads as an inverse relation.
    again = as_queries(inverse(rows[:2], 2), 2)
    assert again[0].tolist() == [0, 2] and again[1].tolist() == [1, 2]
    assert torch.equal(again[2], tails[:2])
    with pytest.raises(InputError, match="row 1 of candidates has several heads and several tails"):
        as_queries(torch.tensor([[[0, 0, 1], [0, 0, 2]], [[0, 0, 1], [1, 0, 2]]]), 2)
    with pytest.raises(InputError, match="row 0"):
        as_queries(torch.tensor([[[0, 0, 1], [0, 1, 1]]]), 2)


@given(SIZES)
def test_known_tails_are_those_of_facts(sizes: tuple) -> None:
    graph = drawn(sizes)
    known, count = Known(graph, graph.facts), len(graph.relations)
    asked = torch.cartesian_prod(torch.arange(graph.num_nodes), torch.arange(2 * count))
    found = known.mask(*asked.unbind(1))
    facts = {tuple(fact) for fact in with_inverses(graph.facts, count).tolist()}
    for (head, relation), row in zip(asked.tolist(), found.tolist(), strict=True):
        assert row == [(head, relation, tail) in facts for tail in range(graph.num_nodes)]


def test_negatives_are_strict_and_equally_likely() -> None:
    facts = torch.tensor([[0, 0, 1], [0, 0, 4], [5, 0, 2], [0, 1, 3]])
    graph = KnowledgeGraph(facts, list("abcdef"), ["r", "s"])
    known = Known(graph, facts[:2], facts[2:])
    asked = torch.tensor([0, 2, 3]), torch.tensor([0, 2, 1])
    drawn = known.negatives(*asked, 6000, torch.Generator().manual_seed(0))
    allowed = [{0, 2, 3, 5}, {0, 1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}]
    for row, fits in zip(drawn, allowed, strict=True):
        counts = torch.bincount(row, minlength=6)
        assert set(counts.nonzero()[:, 0].tolist()) == fits
        wanted = torch.full((len(fits),), 6000 / len(fits))
        torch.testing.assert_close(counts[counts > 0].float(), wanted, rtol=0.12, atol=0)
    same = known.negatives(*asked, 6000, torch.Generator().manual_seed(0))
    assert torch.equal(same, drawn)
    full = KnowledgeGraph(torch.tensor([[0, 0, 0], [0, 0, 1]]), ["a", "b"], ["r"])
    with pytest.raises(InputError, match="every entity is a known tail of a r"):
        Known(full, full.facts).negatives(*[torch.tensor([0])] * 2, 1, torch.Generator())


@given(SIZES, st.integers(1, 4), st.booleans())
def test_removed_edges_are_those_of_the_batch(sizes: tuple, rows: int, of_facts: bool) -> None:
    graph = drawn(sizes)
    count = len(graph.relations)
    heads, types = torch.randint(graph.num_nodes, (rows,)), torch.randint(2 * count, (rows,))
    tails = torch.randint(graph.num_nodes, (rows, 3))
    removal = Removal(graph.edges())
    found = removal.facts(heads, types, tails) if of_facts else removal.pairs(heads, tails)
    every = with_inverses(graph.facts, count).tolist()
    gone = set()
    for head, kind, row in zip(heads.tolist(), types.tolist(), tails.tolist(), strict=True):
        for tail in row:
            for h, r, t in every:
                same = kind == r or not of_facts
                turned = (kind + count) % (2 * count) == r or not of_facts
                if ((h, t) == (head, tail) and same) or ((h, t) == (tail, head) and turned):
                    gone.add((h, r, t))
    left = [fact for fact in every if tuple(fact) not in gone]
    left = torch.tensor(left, dtype=torch.int64).reshape(-1, 3)
    wanted = Incoming.of(left[:, [0, 2]].T, graph.num_nodes, left[:, 1].clone(), 2 * count)
    for name in ("starts", "sources", "types"):
        assert torch.equal(getattr(found, name), getattr(wanted, name))
    assert len(removal.edges.sources) == 2 * len(graph.facts)  # the whole graph is as it was


def test_wrong_facts_are_told() -> None:
    names = ["a", "b"], ["r"]
    with pytest.raises(InputError, match=r"facts \(2,\) of torch.int64; \(T, 3\)"):
        KnowledgeGraph(torch.tensor([0, 1]), *names)
    with pytest.raises(InputError, match="facts name entity 2; ids are 0 … 1"):
        KnowledgeGraph(torch.tensor([[0, 0, 2]]), *names)
    with pytest.raises(InputError, match="facts name relation -1; ids are 0 … 0"):
        KnowledgeGraph(torch.tensor([[0, -1, 1]]), *names)
    with pytest.raises(InputError, match="1 facts are there twice, one of them a r b"):
        KnowledgeGraph(torch.tensor([[0, 0, 1], [1, 0, 1], [0, 0, 1]]), *names)
    with pytest.raises(InputError, match="known facts name entity 7"):
        Known(small(), torch.tensor([[7, 0, 0]]))
