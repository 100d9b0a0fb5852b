import networkx as nx
import pytest
import torch

from compiled_networks import graphs_for, run, undirected, wrong
from polypath.graphs import Incoming, pass_messages
from polypath.graphs.compilation import GraphBatch, choices, compiled


def test_hand_example() -> None:
    weights = torch.tensor([0.7, 0.31, 0.89] * 2, dtype=torch.float64)
    star = undirected((0, 1), (1, 2), (1, 3))
    graph = GraphBatch.of_edges(star, source=3, weights=weights)
    rollout, _ = run(compiled("bellman-ford", 4), graph)
    assert rollout.hints["d"][:, 0].flatten().tolist() == pytest.approx(
        [0, 0.89, 0, 0, 1.59, 0.89, 1.2, 0]
    )
    assert (rollout.hints["msk"][0, 0] > 0).tolist() == [False, True, False, True]
    assert rollout.pi[0].tolist() == [1, 3, 1, 3]


@pytest.mark.parametrize("probability", [0.05, 0.3])
def test_distances_are_those_of_min_plus_message_passing(probability: float) -> None:
    """T steps of the network beside T rounds of the semiring kernel, and beside Dijkstra."""
    graphs = graphs_for("bellman-ford", [50], 3, probability)
    rollout, wanted = run(compiled("bellman-ford", 50), graphs)
    index = graphs.edges[0].nonzero().T.contiguous()
    edges = Incoming.of(index, 50, types=torch.arange(index.shape[1]))
    start = torch.full((50, 1, 1), torch.inf).double()
    start[int(graphs.sources)] = 0
    far, values = start, graphs.weights[0][tuple(index)][:, None]
    for t in range(int(wanted.steps)):
        far = pass_messages(edges, far, values, start, message="plus", aggregate="min")
        known = rollout.hints["d"][t, 0].where(rollout.hints["msk"][t, 0] > 0, torch.inf)
        torch.testing.assert_close(known, far[:, 0, 0])
    graph = nx.from_numpy_array(graphs.weights[0].numpy())
    wanted_far = nx.single_source_dijkstra_path_length(graph, int(graphs.sources))
    for node, distance in wanted_far.items():
        assert float(known[node]) == pytest.approx(distance)


def test_a_long_path_is_found_in_as_many_steps_as_it_has_edges() -> None:
    pairs = undirected(*((i, i + 1) for i in range(63)))
    graph = GraphBatch.of_edges(pairs, weights=torch.ones(126).double())
    rollout, wanted = run(compiled("bellman-ford", 64), graph)
    assert int(wanted.steps) == 63 and not any(wrong(rollout, graph, wanted).values())


def test_without_edges_in_values_a_node_gets_its_parents_distance() -> None:
    graphs = graphs_for("bellman-ford", [20], 1, 0.3)
    model = compiled("bellman-ford", 20)
    right, wanted = run(model, graphs)
    with torch.no_grad():
        model.layers[0].edge_value.weight.zero_()
    rollout, _ = run(model, graphs)
    assert not rollout.hints["d"].any()  # the source's 0, handed on from parent to child
    assert right.hints["d"][-1].max() > 0.5
    assert torch.equal(rollout.hints["msk"] > 0, wanted.hints["msk"][1:])
    first = wanted.hints["msk"][1] & ~graphs.starts  # one step is from a known distance
    found = rollout.hints["pi"][0].argmax(-1)
    assert torch.equal(found[first], wanted.hints["pi"][1][first])


def test_without_the_self_penalty_ties_spoil_pointers_but_not_distances() -> None:
    graphs = graphs_for("bellman-ford", [20] * 5, 1, 0.3)
    model = compiled("bellman-ford", 20)
    with torch.no_grad():
        heard = model.layers[0].edge.weight
        heard[:, 2] = heard[:, 1]  # a node hears itself as it hears a neighbour
    rollout, wanted = run(model, graphs)
    failed = wrong(rollout, graphs, wanted)
    assert failed["d"] == failed["msk"] == 0
    late = wanted.hints["msk"][:-1] & ~graphs.starts  # known before the step: a tie with itself
    right = rollout.hints["pi"].argmax(-1) == wanted.hints["pi"][1:]
    assert float(right[late].double().mean()) < 0.5
    assert failed["output"] > 20


def test_choices_are_the_first_node_of_the_shortest_way_back() -> None:
    graphs = graphs_for("bellman-ford", [12, 12], 3, 0.4)
    _, wanted = run(compiled("bellman-ford", 12), graphs)
    allowed = choices("bellman-ford", graphs, wanted)[:, :, 0, 0]
    known = wanted.hints["msk"][1:] & ~graphs.starts
    assert (allowed.sum(-1)[known] == 1).all()
    assert not allowed[~wanted.hints["msk"][1:]].any()
    assert torch.equal(allowed[-1].int().argmax(-1)[known[-1]], wanted.pi[known[-1]])


def test_near_ties_need_more_sharpness_than_1e6() -> None:
    """Ways that differ by less than about 1e-6 are averaged; by default 1e-9 is told apart."""
    pairs = undirected((0, 1), (0, 2), (1, 3), (2, 3))
    weights = torch.tensor([0.5, 0.5, 0.25 + 1e-6, 0.25] * 2, dtype=torch.float64)
    graph = GraphBatch.of_edges(pairs, weights=weights)
    exact, wanted = run(compiled("bellman-ford", 64), graph)
    assert not any(wrong(exact, graph, wanted).values())
    blurred, _ = run(compiled("bellman-ford", 64, sharpness=1e6), graph)
    place = blurred.attention[1, 0, 0, 0, 3, 1:3]
    assert place.tolist() == pytest.approx([0.268941, 0.731059], abs=1e-4)  # of logits 0 and 1


def test_single_precision_is_nearly_exact() -> None:
    model = compiled("bellman-ford", 64, dtype=torch.float32)
    graphs = graphs_for("bellman-ford", [16] * 20, 2, 0.5)
    rollout, wanted = run(model, graphs)
    assert not any(wrong(rollout, graphs, wanted, 1e-4).values())
    graphs = graphs_for("bellman-ford", [64] * 10, 2, 0.5)
    rollout, wanted = run(model, graphs)
    assert wrong(rollout, graphs, wanted)["output"] < 0.01 * 640
