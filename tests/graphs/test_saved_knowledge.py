from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs import Adjacency
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.saved import SavedPredictor
from polypath.graphs.saved_knowledge import SavedKnowledge, read_saved
from polypath.graphs.triples import KnowledgeGraph

GRAPH = KnowledgeGraph(torch.tensor([(0, 0, 1), (1, 1, 2)]), ["ada", "ben", "cid"], ["knows", "is"])
HEADS, RELATIONS = torch.tensor([0, 2]), torch.tensor([0, 3])


def saved(**config) -> SavedKnowledge:
    torch.manual_seed(0)
    return SavedKnowledge(NBFNet(NBFNetConfig(4, dim=8, layers=2, **config)), GRAPH)


@pytest.mark.parametrize("config", [{}, {"dependent": False, "aggregate": "sum"}])
def test_what_is_read_scores_as_what_was_saved(tmp_path: Path, config: dict) -> None:
    wanted = saved(**config)
    wanted.save(tmp_path)
    found = SavedKnowledge.load(tmp_path)
    assert torch.equal(found.scores(HEADS, RELATIONS), wanted.scores(HEADS, RELATIONS))
    assert found.model.config == wanted.model.config and not found.model.training
    assert (found.graph.entities, found.graph.relations) == (GRAPH.entities, GRAPH.relations)
    assert torch.equal(found.graph.facts, GRAPH.facts)


def test_some_tails_score_as_among_all() -> None:
    model, tails = saved(), torch.tensor([[2, 0], [1, 1]])
    every = model.scores(HEADS, RELATIONS)
    some = model.scores(HEADS, RELATIONS, tails)
    torch.testing.assert_close(some, every.gather(1, tails))


def test_a_folder_tells_what_it_holds(tmp_path: Path) -> None:
    saved().save(tmp_path / "knowledge")
    pairs = NBFNet(NBFNetConfig(1, dim=8, dependent=False))
    graph = Adjacency.of(torch.tensor([[0, 1], [1, 0]]))
    SavedPredictor(pairs, graph, ["ada", "ben"]).save(tmp_path / "pairs")
    assert isinstance(read_saved(tmp_path / "knowledge"), SavedKnowledge)
    assert isinstance(read_saved(tmp_path / "pairs"), SavedPredictor)
    with pytest.raises(InputError, match="knowledge: a model of a knowledge graph, not a pred"):
        SavedPredictor.load(tmp_path / "knowledge")
    with pytest.raises(InputError, match="pairs: a predictor of pairs, not a model of a know"):
        SavedKnowledge.load(tmp_path / "pairs")


def test_a_model_fits_its_graph() -> None:
    with pytest.raises(InputError, match="a model of 6 types of edges for a graph of 4"):
        SavedKnowledge(NBFNet(NBFNetConfig(6, dim=8)), GRAPH)
