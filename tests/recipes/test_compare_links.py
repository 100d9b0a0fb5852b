import math
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import Adjacency, NamedGraph, hard_negatives, split_links
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor
from polypath.plain import decode, encode
from polypath.recipes.compare_links import Config, Contest, claims, on_system, table
from polypath.recipes.graph_sources import keep
from polypath.recipes.links import Source, measures
from recipe_runs import first_column, outcome_of
from reporters import Counting

CLUBS = from_networkx(nx.planted_partition_graph(4, 15, 0.5, 0.02, seed=1))
NAMES = [f"member {node}" for node in range(60)]


def contest(folder: Path, name: str, hard: int = 0) -> Contest:
    path = folder / "graph.safetensors"
    if not path.exists():
        keep(NamedGraph(CLUBS, NAMES, torch.eye(60)), path)
    return Contest(name, Source(path), 0.15, 0.15, hard, 2, folder / "models" / name)


@pytest.mark.parametrize("hard", [0, 4])
def test_a_trial_measures_what_is_saved(tmp_path: Path, hard: int) -> None:
    facts, line = on_system(contest(tmp_path, "ncn", hard), 0, Counting())
    saved = SavedPredictor.load(tmp_path / "models" / "ncn")
    assert list(saved.names) == NAMES and saved.graph.num_edges == CLUBS.shape[1] // 2
    whole, generator = Adjacency.of(CLUBS, 60), torch.Generator().manual_seed(0)
    split = split_links(whole, generator, 0.15, 0.15)
    wrong = split.test_negatives
    if hard:
        wrong = hard_negatives(split.graph, split.test, 4, generator, whole, torch.eye(60))
        assert not whole.has(wrong.flatten(1)).any() and wrong.shape[1:] == (split.test.shape[1], 4)
    right, others = (
        link_scores(saved.predictor, split.graph, saved.x, pairs.flatten(1)).view(pairs.shape[1:])
        for pairs in (split.test, wrong)
    )
    assert facts["measures"] == pytest.approx(measures(right, others))
    assert facts["parameters"] == sum(p.numel() for p in saved.predictor.parameters())
    assert f"MRR {facts['measures']['mrr']:.3f}" == line and facts["seconds"] > 0


def test_all_kinds_are_saved_and_other_seeds_are_not(tmp_path: Path) -> None:
    for name in ("cosine", "gcn", "nbfnet", "link-moe"):
        on_system(contest(tmp_path, name), 0, Counting())
        saved = SavedPredictor.load(tmp_path / "models" / name)
        pair = torch.tensor([[0], [59]])
        scores = link_scores(saved.predictor, saved.graph.without(pair), saved.x, pair)
        assert scores.isfinite().all()
    on_system(contest(tmp_path, "cn"), 1, Counting())
    assert not (tmp_path / "models" / "cn").exists()


def facts_of(mrr: float, hits: float | None = 0.5) -> list[dict[str, Any]]:
    names = {"hits@1": 0.1, "hits@10": 0.4, "hits@50": hits, "hits@100": None, "auc": 0.9}
    return [
        {"measures": {"mrr": mrr + 0.01 * seed} | names, "seconds": 2.0, "parameters": 7}
        for seed in range(3)
    ]


def test_others_are_held_against_the_first() -> None:
    facts = {"ncn": facts_of(0.3), "cn": facts_of(0.2), "nbfnet": facts_of(0.4)}
    found = claims(facts)
    assert [(claim.baseline, claim.held) for claim in found] == [("ncn", False), ("ncn", True)]
    assert found[0].measured == pytest.approx(-0.1)
    shown = table(facts, 0)
    assert [row[0] for row in shown.rows] == list(facts)
    row = dict(zip(shown.columns, shown.rows[0], strict=True))
    assert row["MRR"] == pytest.approx(0.31) and row["Hits@100"] is None
    assert (row["Hits@50"], row["seconds"], row["parameters"]) == (0.5, 2.0, 7)
    assert "its own 20 hard" in table(facts, 20).note


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(data=Path("a"), systems=("cn", "aa"))
    assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"systems": ()}, "each may be named once"),
        ({"systems": ("ncn", "ncn")}, "'ncn ncn': each may be named once"),
        ({"systems": ("ncm",)}, "did you mean 'ncn'"),
        ({"seeds": 0}, "seeds=0"),
        ({"epochs": 0}, "epochs=0"),
        ({"hard": 3}, "hard=3"),
        ({"hard": -2}, "hard=-2"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_compares_and_saves(tmp_path: Path) -> None:
    edges = tmp_path / "club.csv"
    edges.write_text("\n".join(f"{i} {j}" for i, j in nx.karate_club_graph().edges))
    options = ["--data", str(edges), "--seeds", "2", "--epochs", "2", "--valid", "0.15"]
    systems = ["ncn", "gae", "heuristics", "link-moe"]
    outcome = outcome_of(tmp_path / "run", "run compare-links", *options, "--systems", *systems)
    assert first_column(outcome, 0) == systems and len(outcome["claims"]) == 3
    assert sorted(path.name for path in (tmp_path / "run" / "models").iterdir()) == sorted(systems)
    assert math.isclose(
        outcome["claims"][0]["measured"],
        outcome["tables"][0]["rows"][1][1] - outcome["tables"][0]["rows"][0][1],
    )
