import csv
import io
import json
from pathlib import Path

import networkx as nx
import pytest
import torch

from graphs_at_random import adjacency_of
from polypath.cli import main
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig
from polypath.graphs.ncn import NCN, NCNConfig
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor
from polypath.graphs.saved_knowledge import SavedKnowledge
from polypath.graphs.triples import KnowledgeGraph

NAMES = [f"member {node}" for node in range(34)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    predictor = NCN(NCNConfig(EncoderConfig(34, ids=True, dim=8)))
    folder = tmp_path_factory.mktemp("models") / "ncn"
    SavedPredictor(predictor, adjacency_of(nx.karate_club_graph()), NAMES).save(folder)
    return folder


def test_pairs_of_a_file_as_csv(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "pairs.csv").write_text("source,target\nmember 0,member 33\nmember 0,member 1\n")
    main(["links", "predict", str(model), "--pairs", str(tmp_path / "pairs.csv"), "--paths", "2"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["source"], row["target"], row["known"]) for row in rows] == [
        ("member 0", "member 33", "no"),
        ("member 0", "member 1", "yes"),
    ]
    # 0 and 33 share 8, 13, 19 and 31; 19 has three neighbours, 8 and 13 have five.
    assert rows[0]["paths"] == ("member 0 - member 19 - member 33; member 0 - member 8 - member 33")
    saved, pairs = SavedPredictor.load(model), torch.tensor([[0, 0], [33, 1]])
    logits = link_scores(saved.predictor, saved.graph.without(pairs), None, pairs)
    assert [float(row["logit"]) for row in rows] == pytest.approx(logits.tolist(), rel=1e-4)
    wanted = torch.sigmoid(logits).tolist()
    assert [float(row["probability"]) for row in rows] == pytest.approx(wanted, rel=1e-4)


def test_partners_of_a_node_as_json(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "answers.json"
    options = ["--top", "5", "--for", "member 33", "--format", "json", "--out", str(out)]
    main(["links", "predict", str(model), *options])
    found = json.loads(out.read_text())
    assert len(found) == 5 and not any(answer["known"] for answer in found)
    logits = [answer["logit"] for answer in found]
    assert logits == sorted(logits, reverse=True)
    near = {NAMES[node] for node in nx.karate_club_graph()[33]}
    assert not near & {answer["target"] for answer in found}
    saved = SavedPredictor.load(model)
    free = [n for n in range(33) if NAMES[n] not in near]
    every = saved.scores(torch.tensor([[33] * len(free), free]))
    assert logits == pytest.approx(every.sort(descending=True).values[:5].tolist(), rel=1e-4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "predict is its command"),
        (["predikt"], "unknown command of links 'predikt'"),
        (["predict", "MODEL"], "name --pairs FILE or --for NODE"),
        (["predict", "MODEL", "--for", "member 99"], "no node 'member 99' in the graph"),
        (["predict", "MODEL", "--for", "member 1", "--top", "0"], "--top 0"),
        (["predict", "absent", "--for", "member 1"], "predictor.json: cannot be read"),
    ],
)
def test_wrong_input_gets_one_line(
    model: Path, arguments: list[str], told: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["links", *[str(model) if word == "MODEL" else word for word in arguments]])
    assert stopped.value.code == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]


PEOPLE = ["ada", "ben", "cid", "dora"]
FACTS = torch.tensor([(0, 0, 1), (1, 0, 2), (0, 1, 3), (3, 0, 2)])


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    graph = KnowledgeGraph(FACTS, PEOPLE, ["parent", "spouse"])
    model = NBFNet(NBFNetConfig(4, dim=8, layers=2, dependent=False))
    folder = tmp_path_factory.mktemp("models") / "people"
    SavedKnowledge(model, graph).save(folder)
    return folder


def asked(knowledge: Path, capsys: pytest.CaptureFixture, *options: str) -> list[dict]:
    main(["links", "predict", str(knowledge), "--format", "json", *options])
    return json.loads(capsys.readouterr().out)


def test_tails_of_a_query_are_those_that_are_not_known(
    knowledge: Path, capsys: pytest.CaptureFixture
) -> None:
    found = asked(knowledge, capsys, "--for", "ada", "--relation", "parent")
    assert {answer["target"] for answer in found} == {"cid", "dora"}
    saved = SavedKnowledge.load(knowledge)
    wanted = saved.scores(torch.tensor([0]), torch.tensor([0]))[0]
    for answer in found:
        assert answer["logit"] == pytest.approx(float(wanted[PEOPLE.index(answer["target"])]))
        assert answer["relation"] == "parent" and not answer["known"]
    (to_cid,) = (answer for answer in found if answer["target"] == "cid")
    assert sorted(to_cid["paths"]) == [
        ["ada", "parent", "ben", "parent", "cid"],
        ["ada", "spouse", "dora", "parent", "cid"],
    ]


def test_heads_of_a_tail_are_asked_the_other_way(
    knowledge: Path, capsys: pytest.CaptureFixture
) -> None:
    options = "--for", "cid", "--relation", "parent", "--inverse", "--top", "1", "--paths", "0"
    (found,) = asked(knowledge, capsys, *options)
    assert (found["source"], found["relation"], found["target"]) == ("cid", "parent⁻¹", "ada")
    assert found["paths"] == []


def test_facts_of_a_file_do_not_know_themselves(
    knowledge: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "facts.tsv").write_text("ada\tparent\tben\nben\tspouse\tcid\n")
    found = asked(knowledge, capsys, "--pairs", str(tmp_path / "facts.tsv"))
    assert [answer["known"] for answer in found] == [True, False]
    saved = SavedKnowledge.load(knowledge)
    without = SavedKnowledge(saved.model, saved.graph.with_facts(FACTS[1:]))
    wanted = without.scores(torch.tensor([0, 1]), torch.tensor([0, 1]))
    logits = [float(wanted[0, 1]), float(wanted[1, 2])]
    assert [answer["logit"] for answer in found] == pytest.approx(logits, abs=1e-6)
    assert ["ada", "parent", "ben"] not in found[0]["paths"]


def test_paths_of_nbfnet_are_those_of_its_score(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    graph = adjacency_of(nx.path_graph(4))
    SavedPredictor(NBFNet(NBFNetConfig(1, 8, 3, dependent=False)), graph, PEOPLE).save(tmp_path)
    (found,) = asked(tmp_path, capsys, "--for", "ada", "--top", "1", "--paths", "2")
    assert found["target"] == "dora" and found["paths"] == [PEOPLE]  # three layers, one way


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--for", "ada"], "--for asks by --relation here, one of parent, spouse"),
        (["--for", "ada", "--relation", "parnt"], "no relation 'parnt' in the graph"),
        (["--for", "eve", "--relation", "parent"], "no entity 'eve' in the graph"),
        (["--pairs", "FILE"], "line 1: 'ada,ben' is not head, relation and tail"),
        (["--pairs", "FILE", "--relation", "parent"], "go with --for NODE"),
    ],
)
def test_wrong_questions_get_one_line(
    knowledge: Path,
    tmp_path: Path,
    options: list[str],
    told: str,
    capsys: pytest.CaptureFixture,
) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text("ada,ben\n")
    with pytest.raises(SystemExit):
        asked(knowledge, capsys, *[str(file) if word == "FILE" else word for word in options])
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and told in lines[0]


def test_relations_are_not_asked_of_pairs(model: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        asked(model, capsys, "--for", "member 1", "--relation", "knows")
    assert "links of one kind, no relations" in capsys.readouterr().err
