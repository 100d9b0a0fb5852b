"""Tasks of orbit adjacencies, how their best is chosen, and a run that is as small."""

from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from polypath.errors import InputError
from polypath.graphs import Adjacency, NamedGraph, shared_neighbours, split_links, undirected
from polypath.graphs.graphlets import graphlet_degree_vectors
from polypath.plain import decode, encode
from polypath.recipes import gradco, orbit_tasks
from polypath.recipes.gradco import (
    Config,
    claims_on_counts,
    claims_on_embeddings,
    claims_on_links,
    numbered,
    own_graph,
    prepare,
    share_unseen,
)
from polypath.recipes.graph_sources import keep
from polypath.recipes.orbit_tasks import (
    APART,
    CN,
    LINK_FEATURES,
    ONCE,
    ORBITS,
    SEEN,
    UNSEEN,
    WALKS,
    best,
    classified,
    counted,
    folded,
    gadgets,
    on_cost,
    on_gadgets,
    on_links,
    rotated,
    walk,
)
from polypath.report.outcome import Held
from polypath.training.interrupt import Interrupted
from recipe_runs import first_column, outcome_of


class Silent:
    """A reporter that nobody reads, and that says stop after so many words."""

    def __init__(self, patience: int = 10**9) -> None:
        self.told, self.patience = 0, patience

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1

    def stop(self) -> bool:
        return self.told >= self.patience


def partition() -> tuple[Adjacency, torch.Tensor]:
    """Two dense communities of thirty nodes."""
    graph = nx.planted_partition_graph(2, 30, 0.4, 0.03, seed=1)
    edges = undirected(torch.tensor(list(graph.edges)).T, 60)
    return Adjacency.of(edges, 60), torch.arange(60) // 30


def test_gadgets_are_claws_and_diamonds_on_a_regular_graph() -> None:
    graph, labels, own = gadgets(20, seed=3)
    assert graph.num_nodes == 100 and (graph.degrees[:20] == 4).all()
    assert labels[:20].sum() == 10
    whole = nx.Graph(graph.edges.T.tolist())
    for node in range(20):
        part = whole.subgraph((own == node).nonzero().flatten().tolist())
        assert part.order() == 5 and part.size() == (6 if labels[node] else 4)
        inside = whole.subgraph(set(part) - {node})
        wanted = nx.diamond_graph() if labels[node] else nx.star_graph(3)
        assert nx.is_isomorphic(inside, wanted)
    vectors = graphlet_degree_vectors(graph)
    assert vectors[:, 13].sum() == 2 * 10  # the chords of ten diamonds
    assert not torch.equal(gadgets(20, seed=4)[0].nodes, graph.nodes)
    assert torch.equal(gadgets(20, seed=3)[0].nodes, graph.nodes)


def test_folds_keep_groups_together_and_leave_out_what_has_no_class() -> None:
    labels = torch.arange(60) % 3 - 1
    groups = torch.arange(60) // 3
    folds = folded(labels, groups, 0)
    assert (folds[labels == -1] == -1).all() and set(folds[labels >= 0]) == set(range(5))
    for group in range(20):
        own = folds[(groups == group) & (labels >= 0)]
        assert len(set(own)) == 1
    assert not np.array_equal(folds, folded(labels, groups, 1))


def test_what_is_tested_is_never_fitted_to() -> None:
    """Of labels that are noise on the test fold alone, the others are told right."""
    y = np.arange(100) % 2
    x = np.stack([y * 2.0 - 1, np.ones(100)], 1)
    folds = np.arange(100) // 20
    assert rotated(x, y, folds) == [(1.0, 1.0)] * 5
    wrong = y.copy()
    wrong[folds == 2] = 1 - wrong[folds == 2]
    found = rotated(x, wrong, folds)
    assert [test for _, test in found] == [1.0, 1.0, 0.0, 1.0, 1.0]
    assert [valid for valid, _ in found] == [1.0, 0.0, 1.0, 1.0, 1.0]


def test_the_best_is_chosen_by_validation() -> None:
    scores = {"a": [(0.5, 0.9)] * 5, "b": [(0.6, 0.1)] * 4 + [(0.4, 0.1)]}
    assert best(scores, ["a", "b"]) == ["b"] * 4 + ["a"]


def test_communities_are_found_by_every_kind_of_embedding() -> None:
    graph, labels = partition()
    reporter = Silent()
    facts, _ = classified(graph, labels, torch.arange(60), 8, 0, reporter)
    assert reporter.told == len(ONCE) + 3 == len(facts["test"]) == 23
    assert len(ONCE) == 20
    assert facts["test"][walk(1)] == facts["test"]["0–0, hop 1"]  # A itself, from either side
    assert min(facts["chosen"][kind] for kind in (ORBITS, SEEN, UNSEEN, WALKS)) > 0.8
    assert all(len(names) == 5 for names in facts["names"].values())
    assert not set(facts["names"][SEEN]) & set(facts["names"][UNSEEN])
    with pytest.raises(Interrupted):
        classified(graph, labels, torch.arange(60), 8, 0, Silent(2))


def test_gadgets_are_a_trial() -> None:
    facts, line = on_gadgets(20, 8, 0, Silent())
    assert set(facts) == {"test", "chosen", "names", "seconds"} and UNSEEN in line


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    graph, labels = partition()
    path = tmp_path / "graph.safetensors"
    keep(NamedGraph(graph.edge_index, [str(n) for n in range(60)], y=labels), path)
    return path


def test_links_are_predicted_from_graphs_without_them(
    kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def watched(graph: Adjacency, pairs: torch.Tensor) -> Any:
        assert not graph.has(pairs).any()
        seen.append(graph.num_edges)
        return counted(graph, pairs)

    monkeypatch.setattr(orbit_tasks, "counted", watched)
    facts, line = on_links(kept, 0, Silent())
    edges = partition()[0].num_edges
    tenth, fifth = round(0.1 * edges), round(0.2 * edges)
    assert seen == [edges - 2 * tenth - fifth, *[edges - tenth - fifth] * 2]
    # Common neighbours alone are their own ranking.
    split = split_links(partition()[0], torch.Generator().manual_seed(0), valid=0.1, test=0.2)
    pairs = torch.cat([split.test, split.test_negatives], 1)
    truth = np.arange(pairs.shape[1]) < split.test.shape[1]
    wanted = roc_auc_score(truth, shared_neighbours(split.graph, pairs))
    assert facts["test"][CN] == pytest.approx(wanted)
    assert facts["test"][CN] == facts["test"]["1–1, hop 2"]
    assert set(facts["test"]) == set(facts["valid"]) == set(LINK_FEATURES)
    singles = {name: score for name, score in facts["valid"].items() if name in ONCE}
    assert facts["chosen"] == max(singles, key=singles.__getitem__) and "AUC" in line


def test_walks_of_a_pair_are_powers() -> None:
    graph, _ = partition()
    a = np.zeros((60, 60))
    a[tuple(graph.edge_index.numpy())] = 1
    pairs = torch.tensor([[0, 5, 31], [40, 59, 2]])
    assert not graph.has(pairs).any()
    square, cube = LINK_FEATURES[WALKS](counted(graph, pairs))
    np.testing.assert_array_equal(square, (a @ a)[tuple(pairs.numpy())])
    np.testing.assert_array_equal(cube, (a @ a @ a)[tuple(pairs.numpy())])
    turned = counted(graph, pairs.flip(0))
    for features in LINK_FEATURES.values():
        for one, other in zip(features(turned), features(counted(graph, pairs)), strict=True):
            np.testing.assert_array_equal(one, other)
    assert len(APART) == 9 and len(LINK_FEATURES[ORBITS](turned)) == 7


def test_mixtures_and_cost_are_told(kept: Path) -> None:
    facts, _ = on_cost(kept, 0, Silent())
    assert facts["apart"] == 0 and facts["seen"] == 13 and facts["took"] > 0
    assert (facts["nodes"], facts["edges"]) == (60, partition()[0].num_edges)


def library() -> NamedGraph:
    """A package of nine modules, a module on its own and a package of eight, all in a row."""
    names = ["email", *(f"email.{n}" for n in range(8)), "os", *(f"json.{n}" for n in range(8))]
    pairs = torch.stack([torch.arange(17), 1 + torch.arange(17)])
    return NamedGraph(undirected(pairs, 18), names)


def test_graphs_are_those_that_are_asked_for(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    monkeypatch.setattr(gradco, "import_graph", library)
    assert list(prepare(Config(), tmp_path)) == ["imports"]
    found = prepare(Config(data_dir=data_dir), tmp_path)
    assert {name: classes for name, (_, classes) in found.items()} == {
        "cora": True,
        "imports": True,
    }
    graph, y = orbit_tasks.load(found["cora"][0])
    assert graph.num_edges == 5278 and y is not None and int(y.max()) == 6
    graph, y = orbit_tasks.load(found["imports"][0])
    assert graph.num_edges == 17 and y is not None and y.tolist() == [0] * 9 + [-1] + [1] * 8
    assert list(prepare(Config(data_dir=data_dir, graphs=("cora",)), tmp_path)) == ["cora"]


def test_packages_of_some_size_are_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradco, "import_graph", library)
    assert gradco.packages().y.tolist() == [0] * 9 + [-1] + [1] * 8
    assert numbered(["b", "a", "a", "", "b", "c"], 2).tolist() == [1, 0, 0, -1, 1, -1]


def own_files(folder: Path) -> tuple[Path, Path]:
    graph, labels = partition()
    data, classes = folder / "mine.csv", folder / "classes.csv"
    data.write_text("".join(f"n{i},n{j}\n" for i, j in graph.edges.T.tolist()))
    classes.write_text("".join(f"n{i},side {label}\n" for i, label in enumerate(labels.tolist())))
    return data, classes


def test_own_graphs_come_with_classes_or_without(tmp_path: Path) -> None:
    data, classes = own_files(tmp_path)
    graph = own_graph(data, classes)
    assert graph.y is not None
    assert {
        (int(name[1:]) // 30, int(y)) for name, y in zip(graph.names, graph.y, strict=True)
    } == {
        (0, 0),
        (1, 1),
    }
    assert prepare(Config(data=data), tmp_path)["mine"][1] is False
    for text, told in (
        ("n0,a\nn77,b\n", "line 2: no node 'n77' in the graph; the nearest"),
        ("n0,a\nn1\n", "line 2: a name and a class"),
        ("n0,a\nn1,b\n", "fewer than two classes have ten nodes"),
    ):
        classes.write_text(text)
        with pytest.raises(InputError, match=told):
            own_graph(data, classes)
    with pytest.raises(InputError, match="cannot be read"):
        own_graph(data, tmp_path / "absent")


def held(claims: Any) -> list[Held]:
    return [claim.held for claim in claims]


def test_claims_follow_what_was_measured() -> None:
    def told(unseen: float, every: float, walks: float, three: float, picks: list[str]) -> Any:
        return [
            {
                "chosen": {UNSEEN: unseen + 0.001 * n, ORBITS: every - 0.001 * n, WALKS: walks},
                "test": {walk(3): three},
                "names": {ORBITS: picks},
            }
            for n in range(3)
        ]

    unseen = ["4–5, hop 1", "6–6, hop 2", "8–8, hop 2", "13–13, hop 1"]
    assert share_unseen({"names": {ORBITS: [*unseen, "8–8, hop 1"]}}) == pytest.approx(0.8)
    facts = told(0.7, 0.8, 0.6, 0.71, [*unseen, "0–0, hop 1"])
    assert held(claims_on_embeddings("t", facts)) == [True, True, True, True]
    facts = told(0.5, 0.55, 0.6, 0.6, ["0–0, hop 1"] * 5)
    assert held(claims_on_embeddings("t", facts)) == [False] * 4

    def linked(orbits: float, cn: float, walks: float) -> Any:
        test = {ORBITS: orbits, CN: cn, WALKS: walks, "6–6, hop 2": 0.7}
        return [
            {"test": test | {ORBITS: orbits + 0.0001 * n}, "chosen": "6–6, hop 2"} for n in range(3)
        ]

    assert held(claims_on_links("t", linked(0.8, 0.6, 0.7))) == [True, True, True, True]
    assert held(claims_on_links("t", linked(0.798, 0.8, 0.9))) == [True, False, False, False]
    counts = [{"apart": 0.0, "took": 0.1 + 0.01 * n} for n in range(3)]
    assert held(claims_on_counts("t", counts)) == [True, True]
    counts = [{"apart": 1.0, "took": 61 + 0.01 * n} for n in range(3)]
    assert held(claims_on_counts("t", counts)) == [False, False]


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(data=Path("a"), classes=Path("b"), dim=8)
    assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"dim": 0}, "dim=0"),
        ({"skeleton": 10}, "skeleton=10; at least 20"),
        ({"skeleton": 21}, "skeleton=21; an even number"),
        ({"classes": Path("a")}, "data, which is not given"),
        ({"graphs": ("core",)}, "core.*cora"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    data, classes = own_files(tmp_path)
    options = ["--seeds", "2", "--skeleton", "20", "--dim", "8"]
    options += ["--data", str(data), "--classes", str(classes)]
    outcome = outcome_of(tmp_path / "run", "run gradco", *options)
    assert first_column(outcome, 0) == ["gadgets"] * 5 + ["classes of mine"] * 5
    assert first_column(outcome, 1) == [*ONCE, *map(walk, (1, 2, 3))]
    assert first_column(outcome, 2) == list(LINK_FEATURES)
    assert first_column(outcome, 3) == ["mine"]
    assert len(outcome["claims"]) == 14
