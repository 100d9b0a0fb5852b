import json
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
import torch
from torch import Tensor

from graphs_at_random import from_networkx
from polypath.errors import InputError
from polypath.graphs import Adjacency, NamedGraph, ranks_among, shared_neighbours, shortest_path
from polypath.graphs.pair_features import pair_features
from polypath.plain import decode, encode
from polypath.recipes.graph_sources import keep
from polypath.recipes.link_experts import (
    HARD,
    KINDS,
    NEGATIVES,
    PARTS,
    RANDOM,
    Study,
    on_expert,
    on_split,
    with_more,
)
from polypath.recipes.link_gates import (
    ARMS,
    BEST,
    GATE,
    GLOBAL,
    MEAN,
    MLP,
    ON_FEATURES,
    ORACLE,
    OVER_PROBABILITIES,
    TAUGHT,
    Rows,
    arms_on,
    as_probabilities,
    averaged,
    mean_weights,
    measured,
    on_gates,
    oracle,
    routed,
    rows_of,
    trained,
)
from polypath.recipes.link_moe import Config, again, claims, figure, gates_table, table
from polypath.recipes.links import Source
from polypath.report.outcome import Held
from polypath.routing import Routes
from polypath.training.link_moe import validation_parts
from recipe_runs import first_column, outcome_of
from reporters import Counting

EXPERTS = ("cn", "cosine", "gcn")


def study(folder: Path, x: Tensor | None, **values: Any) -> Study:
    graph = nx.planted_partition_graph(5, 24, 0.4, 0.02, seed=1)
    path = folder / "graph.safetensors"
    keep(NamedGraph(from_networkx(graph), [str(node) for node in graph], x), path)
    (folder / "scores").mkdir()
    own = {"experts": EXPERTS, "epochs": 2, "hard": 12, "gates": 2, "gate_epochs": 4} | values
    return Study(Source(path), folder / "scores", folder / "routes.safetensors", **own)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A split with its experts."""
    x = torch.nn.functional.one_hot(torch.arange(120) % 6, 8).float()
    own = study(tmp_path_factory.mktemp("link-moe"), x)
    on_split(own, 0, Counting())
    for name in EXPERTS:
        on_expert(own, name, False, 0, Counting())
    return own


def test_a_split_hides_what_it_tells_of(done: Study) -> None:
    split, tensors = done.split(0)
    whole = Adjacency.of(done.source.read())
    total = whole.num_edges
    assert split.valid.shape[1] == round(0.05 * total)
    assert split.test.shape[1] == round(0.1 * total)
    for part, own in (("valid", split.valid), ("test", split.test)):
        hard = tensors[f"hard_{part}"]
        assert hard.shape == (2, own.shape[1], 12) and not whole.has(hard.flatten(1)).any()
        shares = (hard == own[:, :, None]).any(0) | (hard == own.flip(0)[:, :, None]).any(0)
        assert shares.all()  # each keeps an end of its link
    for part in (*PARTS[1:], "hard_valid", "hard_test"):
        pairs = tensors[part].flatten(1)
        torch.testing.assert_close(
            tensors[f"structure.{part}"], pair_features(split.graph, pairs), atol=1e-4, rtol=1e-4
        )
    cn, sp = shared_neighbours(split.graph, split.test), shortest_path(split.graph, split.test)
    wanted = [cn == 0, cn == 1, cn >= 2, sp == 2, sp == 3, sp >= 4]
    assert tensors["kinds"].tolist() == torch.stack(wanted).tolist()
    assert KINDS == ["CN 0", "CN 1", "CN ≥ 2", "SP 2", "SP 3", "SP ≥ 4"]


def test_more_links_are_those_of_the_gate(done: Study) -> None:
    split, _ = done.split(0)
    (first, _), (rest, others) = validation_parts(split, done.training().share, 0)
    more = with_more(split, done.training().share, 0)
    assert torch.equal(more.train[:, split.train.shape[1] :], split.valid[:, first])
    assert torch.equal(more.valid, split.valid[:, rest])
    assert torch.equal(more.valid_negatives, split.valid_negatives[:, others])
    assert torch.equal(more.test, split.test)
    facts, _ = on_expert(done, "cn", True, 0, Counting())
    seen = (
        shared_neighbours(more.graph, split.test),
        shared_neighbours(more.graph, split.test_negatives),
    )
    wanted = float((1 / ranks_among(*seen)).mean())
    assert facts["measures"][RANDOM]["mrr"] == pytest.approx(wanted)
    before = float(
        (
            1
            / ranks_among(
                *(shared_neighbours(split.graph, p) for p in (split.test, split.test_negatives))
            )
        ).mean()
    )
    assert facts["measures"][RANDOM]["mrr"] != pytest.approx(before)


@pytest.mark.parametrize("setting", NEGATIVES)
def test_rows_are_of_the_pairs_that_they_should_be(done: Study, setting: str) -> None:
    split, tensors = done.split(0)
    rows = rows_of(done, setting, 0)
    assert rows.sizes == (8, 8, 3)
    valid, test = NEGATIVES[setting]
    (first, own), (rest, others) = validation_parts(split, done.training().share, 0)
    structure = tensors["structure.valid"]
    assert torch.equal(rows.train[0][:, 8:16], structure[first])
    assert torch.equal(rows.held[0][:, 8:16], structure[rest])
    scores = done.scores("gcn", 0)
    assert torch.equal(rows.train[0][:, -1], scores["valid"][first])
    if setting == RANDOM:
        assert torch.equal(rows.train[1][:, -1], scores[valid][own])
        assert torch.equal(rows.held[1][:, -1], scores[valid][others])
    else:
        assert len(rows.train[1]) == TAUGHT * len(first)
        for part, places in ((rows.train[1], first), (rows.held[1], rest)):
            for taught, every in zip(
                part[:, -1].view(-1, TAUGHT), scores[valid][places], strict=True
            ):
                assert torch.isin(taught, every).all()
    right, wrong = rows.scores(2)
    assert torch.equal(right, scores["test"]) and torch.equal(wrong, scores[test])
    best = max(range(3), key=rows.validation)
    every = [
        float((1 / ranks_among(*(done.scores(n, 0)[p] for p in ("valid", valid)))).mean())
        for n in EXPERTS
    ]
    assert every.index(max(every)) == best


def test_arms_are_what_they_are_called(done: Study) -> None:
    rows = rows_of(done, RANDOM, 0)
    assert arms_on(rows) == list(ARMS)
    models = {name: trained(arm, rows, done, 0) for name, arm in ARMS.items()}
    right = rows.test[0]
    mean = models[MEAN]
    logits = mean.experts.calibration(right[:, -3:])
    torch.testing.assert_close(mean(right)[:, 0], logits.mean(1))
    fixed = routed(models[GLOBAL], right)["gate"][0]
    assert (fixed.weights == fixed.weights[0]).all()
    told = routed(models[GATE], right)["gate"][0]
    assert (told.weights != told.weights[0]).any()
    # What a network reads, and what it does not.
    for name, moved in ((MLP, slice(8, 16)), (ON_FEATURES, slice(0, 8))):
        changed = right.clone()
        others = [at for at in range(16) if not moved.start <= at < moved.stop]
        changed[:, others] = 9.0
        assert torch.equal(models[name](changed), models[name](right)), name
    changed = right.clone()
    changed[:, -3:] = 5.0  # experts are nothing to the network, and all to a mixture
    assert torch.equal(models[MLP](changed), models[MLP](right))
    over = as_probabilities(rows)
    torch.testing.assert_close(over.test[0][:, -3:], logits.sigmoid())
    y = models[OVER_PROBABILITIES](over.test[0])
    assert (y >= 0).all() and (y <= 1).all()
    bare = Rows((0, *rows.sizes[1:]), rows.train, rows.held, rows.test, rows.shape, rows.valid)
    assert set(arms_on(rows)) - set(arms_on(bare)) == {ON_FEATURES}


def test_an_oracle_finds_what_any_expert_finds(done: Study) -> None:
    _, tensors = done.split(0)
    for setting in NEGATIVES:
        rows = rows_of(done, setting, 0)
        facts = oracle(rows, tensors["kinds"])
        best: list[float] = []
        found = 0
        for place in range(len(rows.test[0])):
            own = [rows.scores(expert) for expert in range(3)]
            ranks = []
            for right, wrong in own:
                rivals = wrong if wrong.ndim == 1 else wrong[place]
                ranks.append(
                    1
                    + float((rivals > right[place]).sum())
                    + 0.5 * float((rivals == right[place]).sum())
                )
            best.append(1 / min(ranks))
            if setting == RANDOM:
                found += any(float(r[place]) > sorted(w.tolist())[-10] for r, w in own)
            else:
                found += min(ranks) <= 10
        assert facts["mrr"] == pytest.approx(sum(best) / len(best))
        assert facts["hits@10"] == pytest.approx(found / len(best))


def test_gates_leave_facts_and_routes(done: Study) -> None:
    reporter = Counting()
    facts, line = on_gates(done, 0, reporter)
    json.dumps(facts)
    assert reporter.skipped == 2 * (2 * (len(ARMS) - 1) + 1) and "MRR " in line
    for setting in NEGATIVES:
        ways = facts[setting]["ways"]
        assert list(ways) == [*EXPERTS, BEST, ORACLE, *ARMS]
        assert ways[BEST] == ways[facts[setting]["chosen"]]
        assert ways[ORACLE]["mrr"] >= max(ways[name]["mrr"] for name in EXPERTS)
        for kind, weights in facts[setting]["gates"].items():
            total = sum(weights.values())
            assert total == pytest.approx(1, abs=1e-5) or facts["shares"][kind] == 0
    routing = Routes.read(done.routes).joined()["gate"]
    _, tensors = done.split(0)
    assert routing.weights.shape == (tensors["test"].shape[1], 3)
    rows = rows_of(done, RANDOM, 0)
    one = trained(ARMS[GATE], rows, done, 0)
    kind = tensors["kinds"][0]
    torch.testing.assert_close(
        mean_weights(routed(one, rows.test[0]), kind), routing.weights[kind].mean(0)
    )
    again_ = measured(one, rows, tensors["kinds"])
    other = measured(trained(ARMS[GATE], rows, done, 1), rows, tensors["kinds"])
    mean = facts[RANDOM]["ways"][GATE]["mrr"]
    assert mean == pytest.approx((again_["mrr"] + other["mrr"]) / 2)
    assert averaged([again_, other])["kinds"]["CN 0"] == pytest.approx(
        facts[RANDOM]["ways"][GATE]["kinds"]["CN 0"]
    )


def test_graphs_without_features_have_gates_too(tmp_path: Path) -> None:
    own = study(tmp_path, None, experts=("cn", "ra"), gates=1)
    on_split(own, 0, Counting())
    for name in own.experts:
        on_expert(own, name, False, 0, Counting())
    facts, _ = on_gates(own, 0, Counting())
    assert ON_FEATURES not in facts[HARD]["ways"] and GATE in facts[HARD]["ways"]


def test_few_links_are_told(tmp_path: Path) -> None:
    own = study(tmp_path, None)
    edges = from_networkx(nx.path_graph(90))
    keep(NamedGraph(edges, [str(node) for node in range(90)]), own.source.path)
    with pytest.raises(InputError, match="9 links to test; more than 10 are needed"):
        on_split(own, 0, Counting())


def facts_with(values: dict[str, float], seed: int) -> dict[str, Any]:
    def way(name: str, place: int) -> dict[str, Any]:
        noise = 0.001 * ((seed + place) % 3)
        own = values.get(name, 0.4) + noise
        return {
            "mrr": own,
            "hits@10": own + 0.1,
            "hits@100": None,
            "kinds": dict.fromkeys(KINDS, own),
        }

    names = ["cosine", "ncn", BEST, ORACLE, *ARMS]
    many = {"cosine": 0.2 + 0.001 * seed, "ncn": 0.8 - 0.001 * seed}
    few = {"cosine": 0.5 - 0.001 * seed, "ncn": 0.5 + 0.001 * seed}
    setting = {
        "ways": {name: way(name, place) for place, name in enumerate(names)},
        "chosen": "ncn",
        "gates": {kind: many if kind == KINDS[2] else few for kind in KINDS},
    }
    return {"shares": dict.fromkeys(KINDS, 1 / 3)} | dict.fromkeys(NEGATIVES, setting)


def retrained_with(mrr: float) -> dict[str, Any]:
    found = {"mrr": mrr, "hits@10": 0.5, "hits@100": None}
    return {"measures": dict.fromkeys(NEGATIVES, found)}


def test_claims_follow_what_was_measured() -> None:
    more = [retrained_with(0.41 + 0.001 * seed) for seed in range(3)]
    good = [facts_with({GATE: 0.6, ORACLE: 0.7}, seed) for seed in range(3)]
    retrained = {again("ncn"): more}

    def held(gates: list[Any]) -> list[Held]:
        return [one.held for one in claims(RANDOM, gates, ("cosine", "ncn"), retrained)]

    assert held(good) == [True] * 8
    bad = [facts_with({GATE: 0.3, ORACLE: 0.41}, seed) for seed in range(3)]
    assert held(bad) == [False] * 7 + [True]
    (claim,) = [one for one in claims(HARD, good, ("cosine", "ncn"), {}) if "5 points" in one.claim]
    assert claim.measured == pytest.approx(0.3, abs=0.01)


def test_tables_have_all_ways_and_kinds() -> None:
    gates = [facts_with({}, seed) for seed in range(3)]
    more = [retrained_with(0.4)]
    found = table(HARD, gates, {again("ncn"): more * 3})
    assert [row[0] for row in found.rows] == ["cosine", "ncn", BEST, ORACLE, *ARMS, again("ncn")]
    assert found.rows[0][5:] == [pytest.approx(0.401)] * 6 and found.rows[-1][5:] == [None] * 6
    assert "CN 0 33%" in found.note and "validation is ncn" in found.note
    weights = gates_table(RANDOM, gates)
    assert weights.rows[0] == ["CN 0", pytest.approx(0.499), pytest.approx(0.501)]
    drawn = figure(gates)
    assert list(drawn.maps) == list(NEGATIVES)
    assert drawn.maps[HARD].values[2] == pytest.approx([0.201, 0.799])


def test_a_configuration_is_kept_as_it_is() -> None:
    config = Config(data=Path("a"), experts=("cn", "aa"))
    assert encode(decode(Config, encode(config), "config")) == encode(config)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"seeds": 0}, "seeds=0"),
        ({"gates": 0}, "gates=0"),
        ({"gate_epochs": 0}, "gate_epochs=0"),
        ({"hard": 10}, "hard=10; an even number above 10"),
        ({"hard": 21}, "hard=21"),
        ({"experts": ("cn",)}, "two or more"),
        ({"experts": ("cn", "cn")}, "each named once"),
        ({"experts": ("cn", "nc")}, "unknown link predictor 'nc'"),
        ({"retrained": ("ncm",)}, "did you mean 'ncn'"),
    ],
)
def test_bad_settings_are_refused(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Config(**values)


@pytest.mark.slow
def test_a_run_judges_its_claims(tmp_path: Path) -> None:
    edges = tmp_path / "clubs.csv"
    graph = nx.planted_partition_graph(5, 24, 0.4, 0.02, seed=1)
    edges.write_text("\n".join(f"{i} {j}" for i, j in graph.edges))
    options = ["--data", str(edges), "--seeds", "2", "--epochs", "2", "--hard", "12"]
    options += ["--experts", "cn", "gcn", "cosine", "--retrained", "gcn", "--gate-epochs", "3"]
    outcome = outcome_of(tmp_path / "run", "run link-moe", *options, "--gates", "1")
    assert [table["title"] for table in outcome["tables"]][:2] == [
        f"Links to test among {setting}" for setting in NEGATIVES
    ]
    assert first_column(outcome, 2) == KINDS and first_column(outcome, 4)[:2] == ["cn", "gcn"]
    # Mean, global, best, network; one retrained; complementarity. No features, so no more.
    assert len(outcome["claims"]) == 2 * 6 and len(outcome["figures"]) == 1
    assert Routes.read(tmp_path / "run" / "routes.safetensors").joined()["gate"].num_experts == 2
