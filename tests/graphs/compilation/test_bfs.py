import math

import pytest
import torch

from compiled_networks import graphs_for, run, undirected, wrong
from polypath.graphs.compilation import GraphBatch, Reasoner, choices, compiled, shape_for, write


def test_hand_example() -> None:
    graph = GraphBatch.of_edges(undirected((0, 1), (1, 2), (2, 3), (0, 2)))
    rollout, _ = run(compiled("bfs", 4), graph)
    assert (rollout.hints["reach"][:, 0] > 0).int().tolist() == [[1, 1, 1, 0], [1] * 4]
    assert rollout.hints["pi"].argmax(-1)[:, 0].tolist() == [[0, 0, 0, 3], [0, 0, 0, 2]]
    assert rollout.attention[0, 0, 0, 0].argmax(-1).tolist()[1:3] == [0, 0]


def test_choices_are_the_parent_of_whom_is_reached_and_any_reached_one_later() -> None:
    graph = GraphBatch.of_edges(undirected((0, 1), (1, 2), (2, 3), (0, 2)))
    _, wanted = run(compiled("bfs", 4), graph)
    allowed = choices("bfs", graph, wanted)[:, 0, 0, 0]
    assert allowed[0].int().tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0] * 4]
    assert allowed[1].int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 1, 0]]


@pytest.mark.parametrize("nodes", [16, 64])
def test_sharpness_has_a_threshold(nodes: int) -> None:
    """Pointers fail below it and masks do not; from c = N ln(N / ε) a row errs by less than ε."""
    graphs = graphs_for("bfs", [nodes] * 10, 0, 0.3)
    soft, wanted = run(compiled("bfs", nodes, sharpness=0.25 * nodes), graphs)
    failed = wrong(soft, graphs, wanted)
    assert failed["reach"] == 0 and failed["pi"] > 0.1 * wanted.hints["pi"][1:].numel()
    rows = choices("bfs", graphs, wanted).any(-1)
    for error in (0.5, 1e-3, 1e-6):
        model = compiled("bfs", nodes, sharpness=nodes * math.log(nodes / error))
        sharp, _ = run(model, graphs)
        assert not any(wrong(sharp, graphs, wanted).values())
        assert float((1 - sharp.attention.amax(-1))[rows].max()) < error


def test_edges_in_values_are_not_needed() -> None:
    model = Reasoner(shape_for("bfs", edge_values=False)).double().eval()
    write(model, 20)
    graphs = graphs_for("bfs", [20, 13], 1, 0.2)
    rollout, wanted = run(model, graphs)
    assert not any(wrong(rollout, graphs, wanted).values())


def test_weights_of_edges_do_not_matter() -> None:
    graphs = graphs_for("bellman-ford", [20], 1, 0.3)
    rollout, wanted = run(compiled("bfs", 20), graphs)
    assert not any(wrong(rollout, graphs, wanted).values())
    same = GraphBatch.of(graphs.edges.double(), graphs.sources)
    assert torch.equal(run(compiled("bfs", 20), same)[0].pi, rollout.pi)
