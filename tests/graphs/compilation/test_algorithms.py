import networkx as nx
import pytest
import torch
from hypothesis import given

from compiled_networks import batches, graphs_for, undirected
from polypath.errors import InputError
from polypath.graphs import Incoming, pass_messages
from polypath.graphs.compilation import GraphBatch, trace
from polypath.graphs.compilation.algorithms import BLACK, GREY, WHITE


def networks(graphs: GraphBatch, directed: bool = False) -> list[nx.Graph]:
    kind = nx.DiGraph if directed else nx.Graph
    return [
        nx.from_numpy_array(weights[:size, :size].numpy(), create_using=kind)
        for weights, size in zip(graphs.weights, graphs.sizes, strict=True)
    ]


@given(graphs=batches("bfs", 20))
def test_bfs_reaches_by_distance_and_takes_the_smallest_parent(graphs: GraphBatch) -> None:
    found = trace("bfs", graphs)
    for b, graph in enumerate(networks(graphs)):
        source = int(graphs.sources[b])
        far = nx.single_source_shortest_path_length(graph, source)
        assert int(found.steps[b]) == max(1, *far.values())
        for node in graph:
            for t, reach in enumerate(found.hints["reach"][:, b, node].tolist()):
                assert reach == (far.get(node, t + 1) <= t)
            closer = [other for other in graph[node] if far.get(other) == far.get(node, 0) - 1]
            assert int(found.pi[b, node]) == min(closer, default=node)


@given(graphs=batches("bellman-ford", 20))
def test_bellman_ford_is_dijkstra_at_the_end_and_walks_of_t_edges_at_step_t(
    graphs: GraphBatch,
) -> None:
    found = trace("bellman-ford", graphs)
    for b, graph in enumerate(networks(graphs)):
        source = int(graphs.sources[b])
        parents, far = nx.dijkstra_predecessor_and_distance(graph, source)
        for node in graph:
            assert bool(found.hints["msk"][-1, b, node]) == (node in far)
            assert float(found.hints["d"][-1, b, node]) == pytest.approx(far.get(node, 0.0))
            assert [int(found.pi[b, node])] == (parents.get(node) or [node])
        walks = torch.full((len(graph),), torch.inf).double()
        walks[source] = 0
        ways = graphs.weights[b].where(graphs.edges[b], torch.inf)[: len(graph), : len(graph)]
        for d, msk in zip(found.hints["d"][:, b], found.hints["msk"][:, b], strict=True):
            known = d[: len(graph)].where(msk[: len(graph)], torch.inf)
            torch.testing.assert_close(known, walks)
            walks = torch.minimum(walks, (walks[:, None] + ways).amin(0))


@given(graphs=batches("bellman-ford", 20))
def test_bellman_ford_is_min_plus_message_passing(graphs: GraphBatch) -> None:
    found = trace("bellman-ford", graphs)
    for b in range(len(graphs)):
        index = graphs.edges[b].nonzero().T.contiguous()
        edges = Incoming.of(index, graphs.weights.shape[1], types=torch.arange(index.shape[1]))
        values = graphs.weights[b][tuple(index)][:, None]
        if not len(values):
            continue
        start = torch.full((edges.num_nodes, 1, 1), torch.inf).double()
        start[int(graphs.sources[b])] = 0
        far = start
        for t in range(1, len(found.hints["d"])):
            far = pass_messages(edges, far, values, start, message="plus", aggregate="min")
            msk = found.hints["msk"][t, b]
            assert torch.equal(found.hints["d"][t, b].where(msk, torch.inf), far[:, 0, 0])


def recursive(graph: nx.DiGraph) -> tuple[list[int], list[tuple[int, int, int]]]:
    """Predecessors, and (active node, its predecessor, finished nodes) after every step."""
    seen: set[int] = set()
    parents, steps, done = list(graph), [], 0

    def visit(node: int) -> None:
        nonlocal done
        seen.add(node)
        steps.append((node, parents[node], done))
        for child in sorted(graph[node]):
            if child not in seen:
                parents[child] = node
                visit(child)
                done += 1
                steps.append((node, parents[node], done))

    for root in graph:
        if root not in seen:
            if steps:
                done += 1  # the root before is finished in the step that begins here
            visit(root)
    return parents, [*steps, (*steps[-1][:2], done + 1)]


@given(graphs=batches("dfs", 20))
def test_dfs_is_the_recursive_one(graphs: GraphBatch) -> None:
    found = trace("dfs", graphs)
    for b, graph in enumerate(networks(graphs, directed=True)):
        parents, steps = recursive(graph)
        assert found.pi[b, : len(graph)].tolist() == parents
        roots = sum(node == parent for node, parent in enumerate(parents))
        assert int(found.steps[b]) == len(steps) == 2 * len(graph) - (roots - 1)
        for t, (node, parent, done) in enumerate(steps, 1):
            active = found.hints["active"][t, b].nonzero().flatten().tolist()
            assert active == [node]
            colours = found.hints["colour"][t, b, : len(graph)]
            assert int((colours == BLACK).sum()) == done
            assert int(found.hints["pi"][t, b, node]) == parent
            assert colours[node] == (BLACK if t == len(steps) else GREY)
        assert (found.hints["colour"][0, b, : len(graph)] == WHITE).all()


def test_hand_examples() -> None:
    graph = GraphBatch.of_edges(undirected((0, 1), (1, 2), (2, 3), (0, 2)))
    found = trace("bfs", graph)
    assert found.hints["reach"][:, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1] * 4]
    assert found.hints["pi"][1:, 0].tolist() == [[0, 0, 0, 3], [0, 0, 0, 2]]

    weights = torch.tensor([0.7, 0.31, 0.89] * 2).double()
    star = undirected((0, 1), (1, 2), (1, 3))
    found = trace("bellman-ford", GraphBatch.of_edges(star, source=3, weights=weights))
    assert found.hints["d"][1:, 0].flatten().tolist() == pytest.approx(
        [0, 0.89, 0, 0, 1.59, 0.89, 1.2, 0]
    )
    assert found.hints["msk"][1, 0].tolist() == [False, True, False, True]
    assert found.pi[0].tolist() == [1, 3, 1, 3]

    found = trace("dfs", GraphBatch.of_edges(torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]])))
    assert found.pi[0].tolist() == [0, 0, 1, 3] and found.steps.tolist() == [7]


def test_equal_ways_keep_the_first_and_of_one_round_the_smallest() -> None:
    pairs = undirected((0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (0, 4))
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 1.0, 3.0] * 2).double()
    found = trace("bellman-ford", GraphBatch.of_edges(pairs, weights=weights))
    assert found.pi[0].tolist() == [0, 0, 0, 1, 0]  # 4 has its way of 3 first, through 0


@pytest.mark.parametrize("algorithm", ["bfs", "bellman-ford", "dfs"])
def test_a_graph_is_alone_what_it_is_among_larger_ones(algorithm: str) -> None:
    both = trace(algorithm, graphs_for(algorithm, [3, 9], 1, 0.4))
    graphs = graphs_for(algorithm, [3, 9], 1, 0.4)
    alone = trace(
        algorithm,
        GraphBatch.of(graphs.weights[:1, :3, :3], graphs.sources[:1], graphs.sizes[:1]),
    )
    steps = int(alone.steps)
    assert int(both.steps[0]) == steps and both.unfinished[:, 0].sum() == steps
    for name, value in alone.hints.items():
        assert torch.equal(both.hints[name][: steps + 1, 0, :3], value[:, 0])
        assert torch.equal(both.hints[name][-1, 0, :3], value[-1, 0])
    assert both.to("cpu").pi.tolist() == both.pi.tolist()


def test_wrong_input_is_told() -> None:
    with pytest.raises(InputError, match="unknown algorithm 'bsf'; did you mean 'bfs'"):
        trace("bsf", graphs_for("bfs", [3], 0, 0.5))
    with pytest.raises(InputError, match="bfs: a graph is directed"):
        trace("bfs", GraphBatch.of_edges(torch.tensor([[0], [1]])))
