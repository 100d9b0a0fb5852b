"""Trials on knowledge graphs and on links: what they read, train and tell."""

import math
import pickle
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from polypath.graphs.knowledge_splits import split_facts
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.saved_knowledge import SavedKnowledge
from polypath.graphs.triple_files import read_triples, write_triples
from polypath.graphs.triples import KnowledgeGraph, with_inverses
from polypath.recipes import triple_arms
from polypath.recipes.triple_arms import (
    CitationArm,
    Popularity,
    TripleArm,
    areas,
    example,
    on_citations,
    on_triples,
    read_split,
)
from reporters import Counting


def ring(entities: int = 30) -> KnowledgeGraph:
    """Who is next, and who is after that."""
    ids = torch.arange(entities)
    one = torch.stack([ids, torch.zeros_like(ids), ids.roll(-1)], 1)
    two = torch.stack([ids, torch.ones_like(ids), ids.roll(-2)], 1)
    names = [f"n.{n}" for n in range(entities)]
    return KnowledgeGraph(torch.cat([one, two]), names, ["next", "second"])


@pytest.fixture
def triples(tmp_path: Path) -> Path:
    path = tmp_path / "triples.tsv"
    write_triples(path, ring())
    return path


def test_a_file_is_split_by_the_seed(triples: Path) -> None:
    one, same, other = (read_split(triples, seed) for seed in (0, 0, 1))
    assert torch.equal(one.test, same.test) and not torch.equal(one.test, other.test)
    assert one.transductive


def test_popularity_counts_tails() -> None:
    graph = KnowledgeGraph(
        torch.tensor([[0, 0, 1], [2, 0, 1], [3, 0, 2], [1, 1, 3]]), list("abcd"), ["r", "s"]
    )
    scores = Popularity(graph)(graph.edges(), torch.tensor([0, 0, 0]), torch.tensor([0, 1, 2]))
    assert scores[0].argsort(descending=True)[:2].tolist() == [1, 2]
    assert scores[1].argmax() == 3
    every = with_inverses(graph.facts, 2)
    for row, kind in enumerate((0, 1, 2)):
        for tail in range(4):
            wanted = sum(r == kind and t == tail for _, r, t in every.tolist())
            assert int(scores[row, tail]) == wanted


@pytest.mark.parametrize("aggregate", ["pna", "sum", None])
def test_a_trial_tells_what_came_out(triples: Path, aggregate: Any, tmp_path: Path) -> None:
    reporter, models = Counting(), tmp_path / "models"
    facts, line = on_triples(TripleArm(triples, aggregate, 2, 16, models=models), 0, reporter)
    assert reporter.told == (0 if aggregate is None else 2)
    assert reporter.skipped == (2 if aggregate is None else 0)
    assert facts["sizes"]["relations"] == 2 and 0 < facts["test"]["mrr"] <= 1
    assert f"{facts['test']['mrr']:.3f}" in line
    assert ("walks" in facts) == (aggregate == "pna") == models.exists()
    if aggregate == "pna":
        graph, every = SavedKnowledge.load(models).graph, ring()
        assert {graph.named(f) for f in graph.facts} == {every.named(f) for f in every.facts}
    if aggregate is not None:
        assert len(facts["valids"]) == 2 and facts["epoch"] in (1, 2)


def test_an_example_is_a_walk_of_the_graph() -> None:
    split = split_facts(ring(), torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    found = example(NBFNet(NBFNetConfig(4, 8, 6)), split, 0)
    facts = {split.inference.named(fact) for fact in with_inverses(split.inference.facts, 2)}
    head, _, tail = found["fact"].split()
    assert found["fact"] in {split.inference.named(fact) for fact in split.test}
    assert found["walks"]
    for walk in found["walks"]:
        assert walk["edges"][0][0] == head and walk["edges"][-1][2] == tail
        assert all(" ".join(edge) in facts for edge in walk["edges"])


def test_areas_are_counted() -> None:
    positives, negatives = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.0, -1.0])
    pairs = [(p > n).item() for p in positives for n in negatives]
    assert areas(positives, negatives)[0] == pytest.approx(sum(pairs) / 6)
    assert areas(positives, negatives)[1] == pytest.approx((1 + 2 / 3) / 2)


def test_citations_are_told_by_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = nx.connected_caveman_graph(12, 6)
    (tmp_path / "cora").mkdir()
    lists = {node: list(graph[node]) for node in graph}
    (tmp_path / "cora" / "ind.cora.graph").write_bytes(pickle.dumps(lists))
    monkeypatch.setattr(
        triple_arms,
        "NBFNetConfig",
        lambda types, dependent: NBFNetConfig(types, 8, 3, dependent=dependent),
    )
    found = {}
    for kind in ("Katz", "NBFNet"):
        facts, line = on_citations(CitationArm(tmp_path, kind, 3), 0, Counting())
        found[kind] = facts["auroc"]
        assert 0 <= facts["ap"] <= 1 and f"{facts['auroc']:.3f}" in line
    assert found["NBFNet"] > 0.8 and found["Katz"] > 0.8 and not math.isnan(found["Katz"])
    again = on_citations(CitationArm(tmp_path, "Katz", 3), 5, Counting())[0]
    assert again["auroc"] == found["Katz"]  # the split is one for all seeds


def test_files_come_back(triples: Path) -> None:
    assert read_triples(triples).num_nodes == 30
