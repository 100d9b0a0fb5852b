import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import Adjacency, LinkSplit, NamedGraph, hits_at, shared_neighbours
from polypath.graphs.ncn import NCN, NCNC
from polypath.graphs.saved import SavedPredictor
from polypath.plain import decode, encode
from polypath.recipes import ncn as recipe
from polypath.recipes.graph_sources import keep
from polypath.recipes.link_arms import (
    COMPLETED,
    COUNTED,
    GAE,
    HEURISTICS,
    KEPT,
    LEARNT,
    PLAIN,
    SUMMED,
    LinkArm,
    geometric,
    made,
    on_links,
    split_of,
)
from polypath.recipes.ncn import (
    CORA,
    GEOMETRIC,
    GRAPHS,
    IMPORTS,
    SPARSE,
    Config,
    by_arm,
    claims_on,
    prepare,
    table,
    tasks,
)
from polypath.report.outcome import Held
from polypath.training.ncn import published_ncn
from recipe_runs import first_column, outcome_of


class Silent:
    told = 0
    skipped = 0

    def skip(self, steps: int) -> None:
        self.skipped += steps

    def advance(self, loss: float, tokens_per_second: float) -> None:
        self.told += 1

    def stop(self) -> bool:
        return False


def arm(name: str, source: Path | None = None, **values: Any) -> LinkArm:
    return LinkArm(
        **{"arm": name, "source": source, "nodes": 150, "missing": 0.0, "epochs": 2, "hits": 20}
        | values
    )


def test_near_points_are_linked_and_their_features_tell_nothing() -> None:
    found, again, other = geometric(1500, 1), geometric(1500, 1), geometric(1500, 2)
    graph = Adjacency.of(found)
    assert torch.equal(graph.nodes, Adjacency.of(again).nodes)
    assert graph.num_edges != Adjacency.of(other).num_edges
    assert 10.5 < graph.degrees.double().mean() < 12.5  # those at the border have fewer
    x = found.x
    assert x is not None and x.shape == (1500, 64)
    alike = (x[graph.sources] * x[graph.nodes]).mean()
    assert abs(float(alike)) < 4 / (graph.num_edges * 64) ** 0.5


def test_missing_links_are_missed_in_training_alone() -> None:
    graph = geometric(150, 0)
    whole, less = (split_of(arm(SUMMED, missing=share), graph, 3) for share in (0.0, 0.4))
    count = Adjacency.of(graph).num_edges
    assert whole.train.shape[1] == count - round(0.1 * count) - round(0.2 * count)
    assert less.train.shape[1] == round(0.6 * whole.train.shape[1])
    assert whole.graph.has(less.train).all()
    for part in ("valid", "test", "valid_negatives", "test_negatives"):
        assert torch.equal(getattr(whole, part), getattr(less, part))
    assert whole.valid_negatives.shape[1] == round(0.2 * count)


def test_arms_are_what_they_are_called(tmp_path: Path) -> None:
    graph = geometric(150, 0)
    kinds = {}
    for name in LEARNT:
        torch.manual_seed(0)
        kinds[name] = made(arm(name), graph)
    pools = {name: predictor.config.pool for name, (predictor, _) in kinds.items()}
    assert pools == {PLAIN: "none", GAE: "none", COUNTED: "count"} | dict.fromkeys(
        (SUMMED, COMPLETED, KEPT), "nodes"
    )
    assert {name for name, (own, _) in kinds.items() if type(own) is NCNC} == {COMPLETED}
    assert {name for name, (_, training) in kinds.items() if not training.removal} == {PLAIN, KEPT}
    assert kinds[COMPLETED][0].config.depth == 1
    cora = NamedGraph(graph.edge_index, graph.names, torch.ones(150, 1433))
    for name in (GAE, SUMMED, COMPLETED):
        predictor, training = made(arm(name, published="cora", epochs=7), cora)
        wanted = published_ncn("cora", 1433, name == COMPLETED)
        assert predictor.config.encoder == wanted.predictor.encoder and training.epochs == 7
        assert (training.rate, training.batch) == (0.0024, 1152)
        assert type(predictor) is (NCNC if name == COMPLETED else NCN)
        if isinstance(predictor, NCNC):
            assert predictor.config == wanted.predictor
    plain, _ = made(arm(GAE), NamedGraph(graph.edge_index, graph.names))
    assert plain.config.encoder.ids and plain.config.encoder.inputs == 150


def test_heuristics_are_measured_by_overlap() -> None:
    task, reporter = arm("heuristics"), Silent()
    facts, line = on_links(task, 0, reporter)
    assert reporter.skipped == 2 and "CN " in line and set(HEURISTICS) < set(facts)
    split: LinkSplit = split_of(task, geometric(150, 0), 0)
    positive, negative = (
        shared_neighbours(split.graph, pairs) for pairs in (split.test, split.test_negatives)
    )
    assert facts["CN"]["hits"] == hits_at(positive, negative, 20)
    rest = [positive == 0, positive == 1, positive > 1]
    assert facts["CN"]["shares"] == [float(own.double().mean()) for own in rest]
    wanted = [hits_at(positive[own], negative, 20) if own.any() else None for own in rest]
    assert facts["CN"]["by_shared"] == wanted
    parts = zip(facts["RA"]["by_shared"], facts["RA"]["shares"], strict=True)
    total = sum(part * share for part, share in parts if part is not None)
    assert total == pytest.approx(facts["RA"]["hits"])


def test_a_trial_saves_what_scores_new_links(tmp_path: Path) -> None:
    source = tmp_path / "club.safetensors"
    graph = nx.karate_club_graph()
    names = [f"member {node}" for node in graph]
    keep(NamedGraph(from_networkx(graph), names, torch.eye(34) * 3), source)
    task = arm(COMPLETED, source, hits=5, models=tmp_path / "models" / "club")
    assert torch.equal(task.graph(0).x, torch.eye(34))  # type: ignore[arg-type]
    reporter = Silent()
    facts, _ = on_links(task, 0, reporter)
    assert reporter.told == 2 and len(facts["valid"]) == 2 and 0 <= facts["train"] <= 1
    saved = SavedPredictor.load(tmp_path / "models" / "club")
    assert list(saved.names) == names and saved.graph.num_edges == 78
    assert saved.scores(torch.tensor([[0], [9]])).isfinite().all()
    on_links(arm(SUMMED, source, hits=5, models=tmp_path / "models" / "other"), 1, Silent())
    assert not (tmp_path / "models" / "other").exists()
    with pytest.raises(InputError, match="hits=16, with 16 negatives"):
        on_links(arm(SUMMED, source, hits=16), 0, Silent())


def test_graphs_are_those_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("POLYPATH_DATA", raising=False)
    club = NamedGraph(from_networkx(nx.karate_club_graph()), [str(node) for node in range(34)])
    monkeypatch.setattr(recipe, "import_graph", lambda: club)  # reading the library takes seconds
    found = prepare(Config(), tmp_path)
    assert list(found) == [GEOMETRIC, SPARSE, IMPORTS]
    assert found[GEOMETRIC] is None and found[IMPORTS] == tmp_path / "imports.safetensors"
    edges = tmp_path / "mine.csv"
    edges.write_text("ada,grace\ngrace,alan\n")
    own = prepare(Config(data=edges), tmp_path)
    assert list(own) == ["mine"] and arm(SUMMED, own["mine"]).graph(0).names[0] == "ada"


@pytest.mark.slow  # torch-geometric, which reads Cora, takes seconds to import
def test_cora_is_there_where_its_folder_is(tmp_path: Path, data_dir: Path) -> None:
    found = prepare(Config(data_dir=data_dir), tmp_path)
    assert list(found) == list(GRAPHS)
    x = arm(SUMMED, found[CORA]).graph(0).x
    assert x is not None and x.shape == (2708, 1433) and x.unique().tolist() == [0, 1]


def test_constants_of_cora_are_for_cora_alone(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for name, source in ((CORA, path), (IMPORTS, path), (GEOMETRIC, None), (SPARSE, None)):
        found = tasks(Config(), name, source, tmp_path)
        assert [task.arm for task in found] == [*LEARNT, "heuristics"]
        assert {task.published for task in found} == {"cora" if name == CORA else None}
        assert {task.missing for task in found} == {0.4 if name == SPARSE else 0.0}
        saved = {task.models for task in found} - {None}
        assert len(saved) == (0 if source is None else 2)


def facts_of(values: dict[str, float], seed: int, train: float = 0.9) -> dict[str, Any]:
    """Flat facts of one graph and one seed, with a little noise."""

    def one(value: float, place: int) -> dict[str, Any]:
        noise = 0.001 * ((seed + place) % 3)
        return {"hits": value + noise, "by_shared": [0.1, None, 0.9], "shares": [0.5, 0.0, 0.5]}

    own = {
        name: one(values.get(name, 0.8), place) | {"train": train, "epoch": 3, "valid": [0.1, 0.2]}
        for place, name in enumerate(LEARNT)
    }
    own[KEPT]["train"] = train + 0.05 + 0.001 * seed
    rules = {name: one(0.4, place) for place, name in enumerate(HEURISTICS)}
    return own | {"heuristics": rules}


def facts_on(name: str, values: dict[str, float]) -> dict[str, list[Any]]:
    seeds = [facts_of(values, seed) for seed in range(3)]
    return by_arm(name, {f"{name}, {own}": [one[own] for one in seeds] for own in seeds[0]})


def held(found: Any) -> list[Held]:
    return [claim.held for claim in found]


def test_claims_follow_what_was_measured() -> None:
    good = {SUMMED: 0.89, COMPLETED: 0.9, GAE: 0.885, PLAIN: 0.67, KEPT: 0.8}
    cora = facts_on(CORA, good)
    assert held(claims_on(CORA, {CORA: cora}, 100)) == [True] * 8
    bad = {SUMMED: 0.78, COMPLETED: 0.77, GAE: 0.9, PLAIN: 0.75, KEPT: 0.85}
    found = held(claims_on(CORA, {CORA: facts_on(CORA, bad)}, 100))
    assert found == [False, False, False, False, False, False, True, False]
    whole = facts_on(GEOMETRIC, {GAE: 0.7, COUNTED: 0.85, SUMMED: 0.95, COMPLETED: 0.97})
    sparse = facts_on(SPARSE, {GAE: 0.4, COUNTED: 0.7, SUMMED: 0.7, COMPLETED: 0.9, KEPT: 0.6})
    facts = {GEOMETRIC: whole, SPARSE: sparse}
    assert held(claims_on(GEOMETRIC, facts, 100)) == [False, True, True, True, True]
    assert held(claims_on(SPARSE, facts, 100)) == [True] * 7
    assert len(claims_on(SPARSE, {SPARSE: sparse}, 100)) == 6
    other = facts_on("mine", {GAE: 0.5, SUMMED: 0.6, COMPLETED: 0.55, KEPT: 0.6})
    assert held(claims_on("mine", {"mine": other}, 100))[:3] == [True, False, True]


def test_a_table_has_all_arms() -> None:
    found = table(CORA, facts_on(CORA, {}), 100)
    assert [row[0] for row in found.rows] == [*HEURISTICS, *LEARNT]
    assert found.rows[0][3:] == [pytest.approx(0.1), None, pytest.approx(0.9), None, None]
    assert "50%, 0%, 50%" in found.note


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(data=Path("a"), graphs=(IMPORTS,))
    assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"nodes": 50}, "nodes=50"),
        ({"hits": 0}, "hits=0"),
        ({"graphs": ("import",)}, "did you mean 'imports'"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    edges = tmp_path / "club.csv"
    edges.write_text("\n".join(f"{i} {j}" for i, j in nx.karate_club_graph().edges))
    options = ["--data", str(edges), "--hits", "5", "--seeds", "2", "--epochs", "2"]
    outcome = outcome_of(tmp_path / "run", "run ncn", *options)
    assert first_column(outcome, 0) == [*HEURISTICS, *LEARNT]
    assert len(outcome["claims"]) == 4 and len(outcome["figures"]) == 1
    saved = sorted(path.name for path in (tmp_path / "run" / "models").iterdir())
    assert saved == ["club-ncn-0", "club-ncnc-0"]
    description = json.loads((tmp_path / "run/models/club-ncn-0/predictor.json").read_text())
    assert description["kind"] == "NCN" and len(description["names"]) == 34
