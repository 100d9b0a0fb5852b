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
from polypath.graphs.ncn import NCN, NCNConfig
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import SavedPredictor

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
    assert [(row["source"], row["target"], row["linked"]) for row in rows] == [
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
    assert len(found) == 5 and not any(answer["linked"] for answer in found)
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
