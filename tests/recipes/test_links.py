from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import NamedGraph, hits_at, ranks_among, split_links
from polypath.graphs.decoders import ProductMLP
from polypath.graphs.link_moe import LinkMoE
from polypath.graphs.nbfnet import NBFNet
from polypath.graphs.ncn import NCN, NCNC
from polypath.graphs.predictors import link_scores
from polypath.graphs.scorers import SCORES, HeuristicScorer
from polypath.recipes import links as module
from polypath.recipes.graph_sources import keep
from polypath.recipes.links import (
    HITS,
    ROSTER,
    Links,
    Shared,
    experts_on,
    hit,
    measures,
    parameters,
    source,
    system,
    validation,
    with_words,
)
from polypath.training.links import LinkTask
from reporters import Counting


def links(x: bool = True, **values: Any) -> Links:
    graph = nx.planted_partition_graph(4, 15, 0.5, 0.02, seed=1)
    features = torch.nn.functional.one_hot(torch.arange(60) // 15, 5).float() if x else None
    split = split_links(from_networkx(graph), torch.Generator().manual_seed(0), 0.15, 0.15)
    return Links(LinkTask(split, features, None), **{"epochs": 2} | values)


@pytest.mark.parametrize("with_x", [True, False])
def test_every_system_is_made_trained_and_scores(with_x: bool) -> None:
    kinds = {"mlp": ProductMLP, "gcn": ProductMLP, "gae": NCN, "ncn": NCN, "ncnc": NCNC}
    kinds |= {"nbfnet": NBFNet, "link-moe": LinkMoE, "heuristics": HeuristicScorer}
    own = links(with_x, experts=("cn", "cosine", "gcn"))
    for name in ROSTER:
        if name == "cosine" and not with_x:
            continue
        reporter = Counting()
        predictor = system(name)(own, 0, reporter)
        assert type(predictor) is kinds.get(name, HeuristicScorer)
        assert reporter.told + reporter.skipped == 2
        scores = link_scores(predictor, own.task.split.graph, own.task.x, own.task.split.test)
        assert scores.shape == (own.task.split.test.shape[1],) and scores.isfinite().all()
        assert not predictor.training or isinstance(predictor, HeuristicScorer)
    assert len(predictor.experts) == (3 if with_x else 2)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_seed_gives_the_same_predictor() -> None:
    own = links(experts=("cn", "gae"))
    for name in ("mlp", "ncn", "link-moe"):
        found = [system(name)(own, seed, Counting()).state_dict() for seed in (1, 1, 2)]
        same = [all(torch.equal(a[key], found[0][key]) for key in a) for a in found[1:]]
        assert same == [True, False], name


def test_the_best_heuristic_is_that_by_validation() -> None:
    own = links()
    best = system("heuristics")(own, 0, Counting())
    every = {name: validation(own.task, system(name)(own, 0, Counting())) for name in SCORES}
    assert every[best.config.name] == max(every.values())
    assert len(set(every.values())) > 3
    assert system("heuristics")(links(x=False), 0, Counting()).config.name != "cosine"


def test_names_are_known() -> None:
    with pytest.raises(InputError, match="did you mean 'ncnc'"):
        system("ncncc")
    assert experts_on(["cn", "cosine"], None) == ["cn"]


def test_a_shared_reporter_counts_as_one() -> None:
    heard = Counting()
    shared = Shared(heard, 3)
    shared.skip(4)
    for _ in range(8):
        shared.advance(0.0, 1.0)
    assert (heard.skipped, heard.told) == (1, 3) and not shared.stop()


def both(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    right = torch.randint(0, 30, (40,), generator=generator).float() + 8
    return right, torch.randint(0, 30, (130,), generator=generator).float()


def test_measures_are_those_of_others() -> None:
    right, wrong = both()
    found = measures(right, wrong)
    labels = [1] * 40 + [0] * 130
    assert found["auc"] == pytest.approx(roc_auc_score(labels, torch.cat([right, wrong]).numpy()))
    for k in HITS:
        assert found[f"hits@{k}"] == pytest.approx(hits_at(right, wrong, k))
    above = (wrong[None] > right[:, None]).sum(1) + (wrong[None] == right[:, None]).sum(1) / 2
    assert found["mrr"] == pytest.approx(float((1 / (1 + above.double())).mean()))


def test_measures_among_own_negatives() -> None:
    right, wrong = both()
    own = wrong[:120].view(40, 3)
    found = measures(right, own)
    ranks = ranks_among(right, own)
    assert found["hits@1"] == float((ranks <= 1).double().mean())
    assert found["hits@10"] is None and found["hits@100"] is None
    aucs = [roc_auc_score([1, 0, 0, 0], [a, *b]) for a, b in zip(right, own.tolist(), strict=True)]
    assert found["auc"] == pytest.approx(sum(aucs) / 40)
    assert hit(right, own, 1).tolist() == (ranks <= 1).tolist()


def test_graphs_are_those_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    names = ["a.b_c", "a.b", "b", "zz"]
    club = NamedGraph(from_networkx(nx.path_graph(4)), names)
    monkeypatch.setattr(module, "import_graph", lambda: club)  # reading the library takes seconds
    (tmp_path / "one").mkdir()
    found = source(None, None, None, tmp_path / "one")
    assert found.published is None and list(found.read().names) == names
    # a and b are in two names or more; c and zz are not.
    assert found.read().x.tolist() == [[1, 1], [1, 1], [0, 1], [0, 0]]  # type: ignore[union-attr]
    edges = tmp_path / "mine.csv"
    edges.write_text("ada,grace\ngrace,alan\n")
    own = source(edges, "cora", None, tmp_path)  # such as a preset names
    assert own.read().names[0] == "ada" and own.read().x is None and own.published is None
    with pytest.raises(InputError, match="did you mean 'cora'"):
        source(None, "corra", None, tmp_path)
    assert with_words(club).x.shape == (4, 2)  # type: ignore[union-attr]


def test_constants_are_those_of_a_data_set_with_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edges = from_networkx(nx.karate_club_graph())
    names = [str(node) for node in range(34)]
    for folder, x, published in (("a", torch.eye(34), "cora"), ("b", None, None)):
        (tmp_path / folder / "cora").mkdir(parents=True)
        (tmp_path / folder / "cora" / "ind.cora.x").touch()
        graph = NamedGraph(edges, names, x)
        monkeypatch.setattr(module, "planetoid", lambda *_, graph=graph: graph)
        found = source(None, None, tmp_path / folder, tmp_path / folder)
        assert found.published == published


def test_a_kept_graph_is_not_made_again(tmp_path: Path) -> None:
    graph = NamedGraph(from_networkx(nx.path_graph(3)), ["a", "b", "c"])
    keep(graph, tmp_path / "graph.safetensors")
    assert list(source(None, "imports", None, tmp_path).read().names) == ["a", "b", "c"]


def test_parameters_are_counted() -> None:
    own = links()
    assert parameters(system("cn")(own, 0, Counting())) == 2
    mlp = system("mlp")(own, 0, Counting())
    assert parameters(mlp) == (5 * 256 + 256) + 2 * (256 * 256 + 256) + (256 + 1)
