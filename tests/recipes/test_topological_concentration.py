"""Which nodes' links are hard: the graphs, the splits, what is told of them, and a small run."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import networkx as nx
import numpy as np
import pytest
import torch

from graphs_at_random import adjacency_of
from polypath.errors import InputError
from polypath.graphs import Adjacency, split_links
from polypath.graphs.node_ranking import NodeRanking
from polypath.recipes.node_difficulty import (
    INSIDE,
    OUTSIDE,
    PREDICTORS,
    Diagnosis,
    gap,
    node_scores,
    on_graph,
    planted_partition,
    quintiles,
    shift,
    split_by_overlap,
)
from polypath.recipes.node_reports import correlations_table, entries, fifths, shift_table
from polypath.recipes.topological_concentration import Config, claims_on, prepare
from polypath.report.outcome import Held
from recipe_runs import first_column, outcome_of

KARATE = nx.karate_club_graph()
SMALL = Diagnosis(None, 200, epochs=8, dim=16, rate=0.02, batch=256, alpha=2.0, hits=20)


class Silent:
    """A reporter that nobody reads."""

    told = 0

    def skip(self, steps: int) -> None: ...

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1

    def stop(self) -> bool:
        return False


def test_density_varies_in_a_partition_and_degrees_hardly_do() -> None:
    graph = planted_partition(2000, 0)
    assert torch.equal(graph.nodes, planted_partition(2000, 0).nodes)
    assert not torch.equal(graph.nodes, planted_partition(2000, 1).nodes)
    assert 1800 <= graph.num_nodes <= 2200
    degrees, wanted = graph.degrees.double(), INSIDE + OUTSIDE
    assert float(degrees.mean()) == pytest.approx(wanted, rel=0.05)
    clustering = nx.clustering(nx.Graph(graph.edges.T.tolist()))
    parts = [fmean(clustering[n] for n in range(start, start + 160)) for start in (0, 1780)]
    assert parts[0] > 5 * parts[1]  # small communities, then large ones
    means = [float(degrees[start : start + 160].mean()) for start in (0, 1780)]
    assert means == pytest.approx([wanted] * 2, rel=0.15)


def test_links_of_few_shared_neighbours_are_held_out() -> None:
    graph = adjacency_of(KARATE)
    found = split_by_overlap(graph, torch.Generator().manual_seed(0))
    sizes = [part.shape[1] for part in (found.test, found.valid, found.train)]
    assert sizes == [16, 8, 54]
    every = found.seen(found.train, found.valid, found.test)
    assert torch.equal(every.edge_index, graph.edge_index)

    def mean(pairs: torch.Tensor) -> float:
        return fmean(len(list(nx.common_neighbors(KARATE, i, j))) for i, j in pairs.T.tolist())

    assert mean(found.test) < mean(found.valid) < mean(found.train)


def test_places_among_a_nodes_links_are_averaged_over_ends() -> None:
    # Two triangles joined by one link: it shares nobody, all others share one neighbour.
    graph = nx.Graph([(0, 1), (1, 2), (2, 0), (2, 3), (3, 4), (4, 5), (5, 3)])
    for seed in range(5):
        drawn = torch.Generator().manual_seed(seed)
        found = split_by_overlap(adjacency_of(graph), drawn, valid=0.15, test=0.15)
        assert found.test.tolist() == [[2], [3]]


def test_a_split_by_overlap_shifts_and_a_random_one_does_not() -> None:
    graph = planted_partition(1000, 0)
    moved = shift(split_by_overlap(graph, torch.Generator().manual_seed(0)))
    assert moved["TC-test"] < moved["TC-train"] - 0.2 and moved["gap"] < -10
    drawn = torch.Generator().manual_seed(0)
    assert abs(fmean(gap(split_links(graph, drawn)) for _ in range(8))) < 3 / math.sqrt(8)
    split = split_links(adjacency_of(KARATE), torch.Generator().manual_seed(0))
    found, seen = shift(split), nx.Graph(split.train.T.tolist())
    seen.add_nodes_from(range(34))
    for name, pairs in (("train", split.train), ("test", split.test)):
        counts = [len(list(nx.common_neighbors(seen, i, j))) for i, j in pairs.T.tolist()]
        assert found[f"shared, {name}"] == pytest.approx(fmean(counts))
    tested = set(split.test.flatten().tolist())
    own = fmean(value for node, value in nx.clustering(seen).items() if node in tested)
    assert found["TC-train"] == pytest.approx(own)


def test_scores_are_those_of_networkx() -> None:
    split = split_links(adjacency_of(KARATE), torch.Generator().manual_seed(1))
    seen = nx.empty_graph(34)
    seen.add_edges_from(split.train.T.tolist())
    found = node_scores(split, 0)
    assert all(values.shape == (34,) and values.isfinite().all() for values in found.values())
    for name, wanted in (
        ("TC-train", nx.clustering(seen)),
        ("betweenness", nx.betweenness_centrality(seen)),
        ("degree", dict(seen.degree)),
    ):
        assert found[name].tolist() == pytest.approx([wanted[node] for node in range(34)])
    values, vectors = np.linalg.eigh(nx.to_numpy_array(seen, nodelist=range(34)))
    assert values[-1] > values[-2] + 0.1
    assert found["eigenvector"].tolist() == pytest.approx(np.abs(vectors[:, -1]), abs=1e-6)
    assert float(found["degree in test"].sum()) == 2 * split.test.shape[1]


def test_fifths_are_means_of_ranked_nodes() -> None:
    owners = torch.tensor([1, 2, 4, 5, 7])
    ranking = NodeRanking.of_ranks(owners, torch.tensor([1, 60, 2, 70, 3]))
    scores = torch.tensor([9.0, 5, 4, 9, 3, 2, 9, 1])
    assert quintiles(scores, ranking) == [1, 0, 1, 0, 1]
    same = quintiles(torch.ones(8), ranking)
    assert same[0] == pytest.approx(0.6) and all(map(math.isnan, same[1:]))


def test_a_trial_tells_every_predictor_and_score() -> None:
    reporter = Silent()
    facts, line = on_graph(SMALL, 0, reporter)
    assert reporter.told == 8 * len(PREDICTORS) and "TC-test goes" in line
    assert list(facts["measured"]) == list(facts["correlations"]) == list(PREDICTORS)
    for own in facts["correlations"].values():
        assert len(own) == 28 and all(len(entry) == 26 for entry in own.values())
        assert all(abs(value) < 1 + 1e-9 for entry in own.values() for value in entry.values())
    again = on_graph(SMALL, 0, Silent())[0]
    other = on_graph(replace(SMALL, alpha=0.0), 0, Silent())[0]["measured"]
    assert again["measured"] == facts["measured"]
    plain, weighted = (facts["measured"][kind] for kind in PREDICTORS[:2])
    assert plain != weighted
    assert other["gcn, re-weighted"] == other["gcn"] == plain


def test_more_hits_than_links_are_refused() -> None:
    with pytest.raises(InputError, match=r"hits=1000, with \d+ links to validate on"):
        on_graph(replace(SMALL, hits=1000), 0, Silent())


def facts_of(seed: int, **scores: float) -> dict[str, Any]:
    known = {"TC-test": 0.6, "TC-train": 0.3, "degree": -0.1, "ego density": 0.2}
    known |= {"ATC-train, depth 2": 0.35} | {
        name.replace("_", "-"): r for name, r in scores.items()
    }
    noise = 0.001 * seed
    own = {name: {"recall@50": r + noise, "mrr": r - noise} for name, r in known.items()}
    means = {"TC-train": 0.4 + noise, "TC-test": 0.2}
    return {
        "nodes": 9,
        "edges": 8,
        "k": 20,
        "control": -0.5 + noise,
        "correlations": dict.fromkeys(PREDICTORS, own),
        "measured": {"gcn": {"hits": 0.5 + noise}, "gcn, re-weighted": {"hits": 0.4}},
        "shift": {"random": means, "fewest shared neighbours": means},
        "strata": {"TC-train": [0.1, math.nan, 0.2, 0.3, 0.4 + noise]},
    }


def judged(**scores: float) -> list[Held]:
    return [claim.held for claim in claims_on("a", [facts_of(n, **scores) for n in range(3)])]


def test_claims_follow_what_was_measured() -> None:
    assert judged() == [True, True, True, True, True, True, True, False]
    assert judged(TC_test=0.3, degree=-0.2)[:2] == [False, False]
    assert judged(TC_train=0.15, degree=-0.2)[2:5] == [False, False, True]
    facts = [facts_of(n) for n in range(3)]
    for n, one in enumerate(facts):
        moved = {"TC-train": 0.2, "TC-test": 0.19}
        one["control"] = 1.5 + 0.01 * n
        one["shift"] = dict.fromkeys(one["shift"], moved)
    assert [claim.held for claim in claims_on("a", facts)][5:7] == [False, False]


def test_tables_and_figures_are_means_over_seeds() -> None:
    facts = [facts_of(n) for n in range(3)]
    assert entries(facts, "gcn", "TC-test") == pytest.approx([0.6] * 3)
    assert entries(facts, "gcn", "TC-test", "mrr") == pytest.approx([0.6, 0.599, 0.598])
    row = correlations_table("a", facts).rows[0]
    assert row[0] == "TC-test" and str(row[1]).startswith("0.600 (")
    assert row[2:] == pytest.approx([0.601, 0.599, 0.6, 0.6])
    line = fifths("a", facts).series[0]
    assert line.mean[1] is None and line.mean[4] == pytest.approx(0.401)
    full = [one | {"shift": {"random": dict.fromkeys(COLUMNS, 0.5)}} for one in facts]
    assert shift_table({"a": full}).rows == [["a", "random", *[0.5] * 6]]


COLUMNS = ("TC-train", "TC-val", "TC-test", "shared, train", "shared, test", "gap")


def edge_list(folder: Path) -> Path:
    path = folder / "club.csv"
    path.write_text("\n".join(f"{i},{j}" for i, j in KARATE.edges))
    return path


def test_graphs_are_the_users_or_those_at_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = prepare(Config(data=edge_list(tmp_path)), tmp_path)
    assert list(own) == ["club"]
    graph, x = replace(SMALL, source=own["club"]).graph(3)
    assert (graph.num_nodes, graph.num_edges, x) == (34, 78, None)
    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    kept = tmp_path / "imports.safetensors"
    kept.touch()
    assert list(prepare(Config(), tmp_path)) == ["partition", "imports"]
    assert not kept.read_bytes()  # what a run has kept is not made again
    assert prepare(Config(graphs=["partition"]), tmp_path) == {"partition": None}


@pytest.mark.slow
def test_cora_is_taken_where_a_folder_has_it(tmp_path: Path, data_dir: Path) -> None:
    paths = prepare(Config(data_dir=data_dir), tmp_path)
    assert list(paths) == ["cora", "partition", "imports"]
    graph, x = replace(SMALL, source=paths["cora"]).graph(0)
    assert isinstance(graph, Adjacency) and (graph.num_nodes, graph.num_edges) == (2708, 5278)
    assert x is not None and x.shape == (2708, 1433)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"nodes": 100}, "nodes=100"),
        ({"epochs": 0}, "epochs=0"),
        ({"dim": 0}, "dim=0"),
        ({"hits": 0}, "hits=0"),
        ({"rate": 0.0}, "rate=0.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"graphs": ["corra"]}, "did you mean 'cora'"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    options = [
        "--seeds",
        "2",
        "--epochs",
        "3",
        "--dim",
        "16",
        "--hits",
        "5",
        "--data",
        str(edge_list(tmp_path)),
    ]
    outcome = outcome_of(tmp_path / "run", "run topological-concentration", *options)
    assert first_column(outcome, 0) == ["club"] * 3
    assert "club" in outcome["tables"][1]["title"] and len(outcome["tables"]) == 3
    assert len(outcome["claims"]) == 8 and len(outcome["figures"]) == 3
