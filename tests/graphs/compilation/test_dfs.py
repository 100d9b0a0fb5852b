import pytest
import torch

from compiled_networks import graphs_for, run, wrong
from polypath.graphs.compilation import GraphBatch, choices, compiled


def test_hand_example() -> None:
    graph = GraphBatch.of_edges(torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]]))
    rollout, wanted = run(compiled("dfs", 4), graph)
    assert rollout.pi[0].tolist() == [0, 0, 1, 3] and wanted.steps.tolist() == [7]
    active = rollout.hints["active"][:, 0]
    assert active.argmax(-1).tolist() == [0, 1, 2, 1, 0, 3, 3]
    colours = rollout.hints["colour"].argmax(-1)[:, 0]
    assert colours[2].tolist() == [1, 1, 1, 0] and colours[6].tolist() == [2] * 4


@pytest.mark.parametrize(
    ("edges", "parents"),
    [
        ([(i, i + 1) for i in range(40)], [0, *range(40)]),  # the deepest
        ([(40, i) for i in range(40)], list(range(41))),  # as many roots as nodes
        ([(0, i) for i in range(1, 41)], [0] * 41),  # back and forth
        ([(i + 1, i) for i in range(40)], list(range(41))),
        ([(i, (i + 1) % 41) for i in range(41)], [0, *range(40)]),
    ],
)
def test_shapes_that_search_in_extremes(edges: list, parents: list[int]) -> None:
    graph = GraphBatch.of_edges(torch.tensor(edges).T, 41)
    rollout, wanted = run(compiled("dfs", 41), graph)
    assert not any(wrong(rollout, graph, wanted).values())
    assert rollout.pi[0].tolist() == parents


def test_choices_are_the_next_child_the_first_white_node_and_the_active_one() -> None:
    graph = GraphBatch.of_edges(torch.tensor([[0, 0, 1, 3], [1, 2, 2, 0]]))
    _, wanted = run(compiled("dfs", 4), graph)
    allowed = choices("dfs", graph, wanted)[:, 0]
    assert allowed[0, 0, 0].int().tolist() == [
        [0, 1, 0, 0],
        [0, 0, 1, 0],
        [0] * 4,
        [1, 0, 0, 0],
    ]
    assert allowed[1, 0, 1].int().tolist() == [[0, 1, 0, 0]] * 4  # 0 is grey, 1 the first white
    assert allowed[1, 1, 0].int().tolist() == [[1, 0, 0, 0]] * 4
    assert not allowed[0, 1].any() and not allowed[:, 1, 1].any()


def test_flags_do_not_wear_off() -> None:
    """Registers stay within rounding of 0 and 1 over all steps of a large graph."""
    graphs = graphs_for("dfs", [64], 1, 0.05)
    rollout, _ = run(compiled("dfs", 64), graphs)
    flags = rollout.hidden[..., [0, 1, 2, 3, 7, 8]]  # next, back, start, stay, child, done
    assert float(torch.minimum(flags, (1 - flags).abs()).max()) < 1e-9
