import json
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

from graphs_at_random import adjacency_of, all_pairs
from polypath.errors import InputError
from polypath.graphs.encoders import EncoderConfig
from polypath.graphs.ncn import NCN, NCNC, Calibration, NCNCConfig, NCNConfig
from polypath.graphs.predictors import link_scores
from polypath.graphs.saved import DESCRIPTION, TENSORS, SavedPredictor

GRAPH = adjacency_of(nx.florentine_families_graph())
NAMES = list(nx.florentine_families_graph())
PAIRS = all_pairs(len(NAMES))
FEATURES = EncoderConfig(3, convolution="sage", layers=2, dim=8, norm=True)
IDS = EncoderConfig(15, ids=True, convolution="pure-gcn", layers=1, dim=8, jumping=True)


@pytest.mark.parametrize(
    ("predictor", "x"),
    [
        (NCN(NCNConfig(FEATURES, two_layers=True)), torch.randn(15, 3)),
        (NCN(NCNConfig(IDS, pool="count", tail_activation=False)), None),
        (NCNC(NCNCConfig(IDS, calibration=Calibration(2.0, prior=0.3), sampled=2)), None),
        (NCN(NCNConfig(IDS, pool="none")), torch.randint(15, (15,))),
    ],
)
def test_what_is_read_scores_as_what_was_saved(
    predictor: nn.Module, x: Tensor | None, tmp_path: Path
) -> None:
    saved = SavedPredictor(predictor, GRAPH, NAMES, x)
    saved.save(tmp_path / "a" / "b")
    found = SavedPredictor.load(tmp_path / "a" / "b")
    assert torch.equal(found.scores(PAIRS), link_scores(predictor, GRAPH, x, PAIRS))
    assert found.names == NAMES and not found.predictor.training
    assert found.predictor.config == predictor.config
    assert torch.equal(found.graph.edge_index, GRAPH.edge_index)
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == [DESCRIPTION, TENSORS]


def saved(folder: Path) -> Path:
    SavedPredictor(NCN(NCNConfig(IDS)), GRAPH, NAMES).save(folder)
    return folder / DESCRIPTION


def test_nothing_but_known_kinds_is_made(tmp_path: Path) -> None:
    path = saved(tmp_path)
    for kind, told in (("NNC", "did you mean 'NCN'"), ("os.system", "unknown link predictor")):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"kind": kind}))
        with pytest.raises(InputError, match=told):
            SavedPredictor.load(tmp_path)

    class Own(nn.Module):
        config = NCNConfig(IDS)

    with pytest.raises(InputError, match="unknown link predictor 'Own'"):
        SavedPredictor(Own(), GRAPH, NAMES).save(tmp_path / "own")
    assert not (tmp_path / "own").exists()


def test_damage_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        SavedPredictor.load(tmp_path)
    path = saved(tmp_path)
    whole = json.loads(path.read_text())
    for changed, told in (
        ({"version": 2}, "version 2; this release reads 1"),
        ({"config": {}}, "config: encoder missing"),
        ({"names": NAMES[:-1]}, "ids are 0 … 13 here"),
        (
            {"config": whole["config"] | {"two_layers": True}},
            "predictor.safetensors does not fit predictor.json",
        ),
    ):
        path.write_text(json.dumps(whole | changed))
        with pytest.raises(InputError, match=told):
            SavedPredictor.load(tmp_path)
    path.write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        SavedPredictor.load(tmp_path)
    path.write_text(json.dumps(whole))
    (tmp_path / TENSORS).write_bytes(b"no")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        SavedPredictor.load(tmp_path)


def test_names_and_features_are_of_all_nodes() -> None:
    with pytest.raises(InputError, match="14 names for a graph of 15 nodes"):
        SavedPredictor(NCN(NCNConfig(IDS)), GRAPH, NAMES[1:])
    with pytest.raises(InputError, match=r"15 names, x \(3, 3\) for"):
        SavedPredictor(NCN(NCNConfig(FEATURES)), GRAPH, NAMES, torch.ones(3, 3))
