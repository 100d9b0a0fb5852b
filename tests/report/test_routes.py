from collections import Counter

import pytest
import torch

from polypath.errors import InputError
from polypath.report.routes import Text, explorer, flow, kind_maps, kind_table, load_map
from polypath.routing import Routing

from .conftest import routed

TEXTS = [Text("a", list("abcabca"), list("xyzxyzx")), Text("b", list("ab"), list("xy"))]
KINDS = [kind for text in TEXTS for kind in text.kinds]


@pytest.fixture
def layers() -> dict[str, Routing]:
    return routed(TEXTS, experts=4, k=2, depth=3)


def test_load_counts_choices(layers: dict[str, Routing]) -> None:
    figure = load_map(layers)
    assert figure.rows == ["layer 0", "layer 1", "layer 2"]
    for row, routing in zip(figure.values, layers.values(), strict=True):
        chosen = Counter(routing.experts.flatten().tolist())
        assert row == pytest.approx([chosen[e] / 18 for e in range(4)])


def test_layers_with_fewer_experts_have_gaps() -> None:
    wide, narrow = routed(TEXTS, 4, 2, 1), routed(TEXTS, 2, 1, 1)
    figure = load_map({"wide": wide["model.layers.0.mlp"], "narrow": narrow["model.layers.0.mlp"]})
    assert figure.values[1][2:] == [None, None]
    assert sum(figure.values[1][:2]) == pytest.approx(1)


def test_flow_counts_pairs(layers: dict[str, Routing]) -> None:
    figure = flow(layers)
    above, below = (r.experts.tolist() for r in list(layers.values())[:2])
    counts = Counter((a, b) for i, j in zip(above, below, strict=True) for a in i for b in j)
    for a in range(4):
        for b in range(4):
            assert figure.transitions[0][a][b] == pytest.approx(counts[a, b] / 4)
    assert sum(map(sum, figure.transitions[1])) == pytest.approx(9)


def test_kinds_are_shared_out_over_experts(layers: dict[str, Routing]) -> None:
    figure = kind_maps(layers, KINDS)
    assert list(figure.maps) == ["layer 0", "layer 1", "layer 2"]
    for heatmap, routing in zip(figure.maps.values(), layers.values(), strict=True):
        assert heatmap.columns == ["x (4)", "y (3)", "z (2)"]
        for column, kind in enumerate("xyz"):
            for expert in range(4):
                own = [
                    (routing.experts[i] == expert).sum().item() / 2
                    for i, name in enumerate(KINDS)
                    if name == kind
                ]
                assert heatmap.values[expert][column] == pytest.approx(sum(own) / len(own))


def test_experts_that_follow_kinds_are_told(layers: dict[str, Routing]) -> None:
    labels = torch.tensor(["xyz".index(kind) for kind in KINDS * 20])
    told = Routing(torch.zeros(180, 3), labels[:, None], torch.ones(180, 1))
    rows = kind_table({"told": told}, KINDS * 20).rows
    assert rows[0][1] == pytest.approx(1)
    assert rows[0][2] < 0.1


def test_explorer_gives_each_passage_its_tokens(layers: dict[str, Routing]) -> None:
    first, second = explorer(layers, TEXTS).passages
    for passage, offset in ((first, 0), (second, 7)):
        for shown, routing in zip(passage.layers.values(), layers.values(), strict=True):
            for i, (experts, weights) in enumerate(zip(shown.experts, shown.weights, strict=True)):
                order = routing.weights[offset + i].argsort(descending=True)
                assert experts == routing.experts[offset + i][order].tolist()
                assert weights == pytest.approx(
                    routing.weights[offset + i][order].tolist(), abs=1e-4
                )


def test_explorer_leaves_empty_slots_out() -> None:
    experts = torch.tensor([[1, -1], [-1, -1]])
    routing = Routing(torch.zeros(2, 3), experts, torch.tensor([[0.5, 0.0], [0.0, 0.0]]))
    passage = explorer({"a": routing}, [Text("t", ["x", "y"], ["n", "n"])]).passages[0]
    assert passage.layers["a"].experts == [[1], []]
    assert passage.layers["a"].weights == [[0.5], []]


def test_passages_have_to_fill_the_routing(layers: dict[str, Routing]) -> None:
    with pytest.raises(InputError, match=r"9 things at .* for 7 tokens"):
        explorer(layers, TEXTS[:1])
