from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from compiled_networks import graphs_for, run
from polypath.errors import InputError
from polypath.graphs.compilation import GraphBatch, Reasoner, ReasonerConfig, shape_for
from polypath.graphs.compilation.algorithms import ALGORITHMS
from polypath.graphs.compilation.reasoner import Pointers, decide

NAMES = list(ALGORITHMS)


def network(algorithm: str, **changes: Any) -> Reasoner:
    return Reasoner(shape_for(algorithm, 24, **{"heads": 2, "layers": 2} | changes)).double().eval()


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("feedback", ["soft", "hard"])
def test_a_graph_is_alone_what_it_is_beside_larger_ones(algorithm: str, feedback: str) -> None:
    model, graphs = network(algorithm, layer_norm=True), graphs_for(algorithm, [4, 9], 3, 0.4)
    both, wanted = run(model, graphs, feedback)
    small = GraphBatch.of(graphs.weights[:1, :4, :4], graphs.sources[:1], graphs.sizes[:1])
    alone, own = run(model, small, feedback)
    steps = int(own.steps)
    assert steps == int(wanted.steps[0])
    torch.testing.assert_close(both.scores[0, :4, :4], alone.scores[0])
    torch.testing.assert_close(both.hidden[:steps, 0, :4], alone.hidden[:, 0])
    torch.testing.assert_close(both.attention[:steps, 0, ..., :4, :4], alone.attention[:, 0])
    assert not both.attention[:, 0, ..., :4, 4:].any()
    assert (both.scores[0, :, 4:] == -torch.inf).all()


@pytest.mark.parametrize("algorithm", NAMES)
def test_relabelled_nodes_that_keep_their_positions_change_nothing(algorithm: str) -> None:
    model, graphs = network(algorithm, layer_norm=True), graphs_for(algorithm, [8, 8], 1, 0.4)
    order = torch.randperm(8)
    steps = torch.tensor([3, 5])
    with torch.no_grad():
        one, other = model(graphs, steps), model(graphs.relabelled(order), steps)
    torch.testing.assert_close(other.scores, one.scores[:, order][:, :, order])
    torch.testing.assert_close(other.hidden, one.hidden[:, :, order])
    torch.testing.assert_close(other.attention, one.attention[..., order, :][..., order])


def test_a_step_is_encode_pass_decode_and_feed_back() -> None:
    model = network("bellman-ford", layers=1, heads=1)
    graphs = graphs_for("bellman-ford", [6], 2, 0.5)
    found, wanted = run(model, graphs)
    start = {name: value[0] for name, value in wanted.hints.items()}
    d, msk = start["d"], start["msk"].double()
    pi = F.one_hot(start["pi"], 6).double()
    hidden = torch.zeros(1, 6, 24).double()
    own, layer = torch.eye(6).double()[None], model.layers[0]
    for t in range(int(wanted.steps)):
        x = torch.stack([graphs.positions, graphs.starts.double(), d, msk], -1)
        e = torch.stack([graphs.weights, graphs.edges.double(), own, pi], -1)
        mask = graphs.edges | own.bool() | (pi + pi.mT > 0.5)
        nodes = model.nodes(x)
        h, alpha = layer(torch.cat([nodes, hidden], -1), e, layer.maps(model.edges.weight), mask)
        known = torch.cat([nodes, hidden, h], -1)
        hidden = h
        d, msk = model.hints(known).unbind(-1)
        torch.testing.assert_close(found.hints["d"][t], d)
        torch.testing.assert_close(found.hints["msk"][t], msk)
        scores = model.pointers(known, e, model.edges.weight, graphs.nodes)
        torch.testing.assert_close(found.hints["pi"][t], scores)
        torch.testing.assert_close(found.attention[t, :, 0], alpha)
        msk, pi = msk.sigmoid(), scores.softmax(-1)
    torch.testing.assert_close(
        found.scores, model.output(known, e, model.edges.weight, graphs.nodes)
    )
    torch.testing.assert_close(found.pi, found.scores.argmax(-1))


def test_hard_feedback_reads_decisions() -> None:
    model, graphs = network("dfs"), graphs_for("dfs", [5], 0, 0.5)
    soft, hard = (run(model, graphs, feedback)[0] for feedback in ("soft", "hard"))
    for name in soft.hints:
        torch.testing.assert_close(soft.hints[name][0], hard.hints[name][0])
        assert not torch.allclose(soft.hints[name][1], hard.hints[name][1])
    features, _ = model._encode(*model._inputs(graphs, torch.float64), {
        name: model._feed(value[0], name, "hard") for name, value in hard.hints.items()
    })  # fmt: skip
    colours = F.one_hot(decide("categorical", hard.hints["colour"][0]), 3)
    active = decide("mask_one", hard.hints["active"][0])
    x = torch.cat([graphs.positions[..., None], colours, active[..., None]], -1)
    torch.testing.assert_close(features, model.nodes(x))


def test_without_hints_nothing_is_fed_back() -> None:
    model, graphs = network("bfs", hints=False), graphs_for("bfs", [7], 0, 0.3)
    found, _ = run(model, graphs)
    assert found.hints == {}
    with torch.no_grad():
        model.nodes.weight[:, 2:] = 9.0  # of what would be fed back
        model.edges.weight[:, 3:] = 9.0
        model.hints.weight.fill_(9.0)
    torch.testing.assert_close(run(model, graphs)[0].scores, found.scores)


def test_outputs_are_of_a_graphs_own_last_step() -> None:
    model, graphs = network("bfs"), graphs_for("bfs", [7, 7], 0, 0.3)
    with torch.no_grad():
        mixed = model(graphs, torch.tensor([2, 4]))
        for b, steps in enumerate((2, 4)):
            torch.testing.assert_close(
                mixed.scores[b], model(graphs, torch.full((2,), steps)).scores[b]
            )


def test_pointers_are_as_the_equation_reads() -> None:
    decoder, h, e = Pointers(4, 3, 5), torch.randn(1, 3, 4), torch.randn(1, 3, 3, 2)
    encode = torch.randn(3, 2)
    found = decoder(h, e, encode, torch.tensor([[True, True, False]]))
    for i in range(3):
        for j in range(2):
            other = decoder.other(h[0, j]) + decoder.edge(encode @ e[0, j, i])
            wanted = decoder.score(torch.maximum(decoder.own(h[0, i]), other))
            torch.testing.assert_close(found[0, i, j], wanted[0])
    assert (found[..., 2] == -torch.inf).all()


def test_names_of_features() -> None:
    assert ReasonerConfig("bfs").features == ("position", "source", "reach")
    assert ReasonerConfig("dfs").features[1:] == ("colour 0", "colour 1", "colour 2", "active")
    assert ReasonerConfig("dfs").told == {"colour": slice(0, 3), "active": slice(3, 4)}


def test_columns_of_scalars_begin_small() -> None:
    torch.manual_seed(0)
    config = replace(ReasonerConfig("bellman-ford"), hidden=1024)
    column = Reasoner(config).nodes.weight[:, config.features.index("d")]
    assert float(column.detach().std()) == pytest.approx(1 / 32, rel=0.1)


def test_wrong_input_is_told() -> None:
    with pytest.raises(InputError, match="unknown algorithm 'bfd'"):
        ReasonerConfig("bfd")
    with pytest.raises(InputError, match="heads=0"):
        ReasonerConfig("bfs", heads=0)
    with pytest.raises(InputError, match="hidden=10 is not a multiple of heads=3"):
        ReasonerConfig("bfs", hidden=10, heads=3)
    for steps in (torch.tensor([0]), torch.tensor([1, 1])):
        with pytest.raises(InputError, match="at least 1 is right"):
            network("bfs")(graphs_for("bfs", [3], 0, 0.5), steps)
