"""What holds for all three compiled networks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compiled_networks import batches, graphs_for, run, wrong
from polypath.errors import InputError
from polypath.graphs.compilation import (
    GraphBatch,
    Reasoner,
    choices,
    compiled,
    shape_for,
    write,
)
from polypath.graphs.compilation.algorithms import ALGORITHMS

NAMES = list(ALGORITHMS)
EXACT = {name: compiled(name, 64) for name in NAMES}


@pytest.mark.parametrize("algorithm", NAMES)
@settings(max_examples=15)
@given(data=st.data())
def test_every_step_is_the_algorithms(algorithm: str, data: st.DataObject) -> None:
    graphs = data.draw(batches(algorithm, 32))
    rollout, wanted = run(EXACT[algorithm], graphs, data.draw(st.sampled_from(["soft", "hard"])))
    assert not any(wrong(rollout, graphs, wanted).values())


@pytest.mark.parametrize("algorithm", NAMES)
@pytest.mark.parametrize("probability", [0.0, 0.02, 0.1, 0.5])
def test_large_graphs_and_the_smallest(algorithm: str, probability: float) -> None:
    """Connected or not, with isolated nodes, beside graphs of one and of two nodes."""
    graphs = graphs_for(algorithm, [64, 1, 2, 2], 7, probability)
    rollout, wanted = run(EXACT[algorithm], graphs)
    assert not any(wrong(rollout, graphs, wanted).values())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", NAMES)
def test_many_large_graphs(algorithm: str) -> None:
    for seed, probability in enumerate([0.02, 0.05, 0.1, 0.3, 0.5]):
        graphs = graphs_for(algorithm, [64] * 10, seed, probability)
        rollout, wanted = run(EXACT[algorithm], graphs)
        assert not any(wrong(rollout, graphs, wanted).values())


@pytest.mark.parametrize("algorithm", NAMES)
def test_nothing_changes_after_the_last_step(algorithm: str) -> None:
    graphs = graphs_for(algorithm, [9, 5], 2, 0.3)
    _, wanted = run(EXACT[algorithm], graphs)
    with torch.no_grad():
        longer = EXACT[algorithm](graphs, wanted.steps + 6)
    assert torch.equal(longer.pi[graphs.nodes], wanted.pi[graphs.nodes])


@pytest.mark.parametrize("algorithm", NAMES)
def test_rows_are_one_hot_where_there_is_a_choice(algorithm: str) -> None:
    graphs = graphs_for(algorithm, [30, 30, 12], 5, 0.15)
    rollout, wanted = run(EXACT[algorithm], graphs)
    attention, allowed = rollout.attention, choices(algorithm, graphs, wanted)
    torch.testing.assert_close(attention.sum(-1), torch.ones_like(attention[..., 0]))
    rows = allowed.any(-1) & wanted.unfinished[:, :, None, None, None]
    assert rows.any((0, 1, 4)).sum() == {"dfs": 3}.get(algorithm, 1)  # heads that mean something
    top, place = attention.max(-1)
    assert float((1 - top)[rows].max()) < 1e-6
    assert allowed.gather(-1, place[..., None])[..., 0][rows].all()


@pytest.mark.parametrize("algorithm", NAMES)
def test_a_compiled_network_is_an_ordinary_module(algorithm: str) -> None:
    exact = compiled(algorithm, 16, hidden=36)
    trained = Reasoner(shape_for(algorithm, 36)).double()
    trained.load_state_dict(exact.state_dict())
    assert type(trained) is type(exact) and trained.config == exact.config
    graphs = graphs_for(algorithm, [16, 7], 3, 0.3)
    one, other = run(exact, graphs)[0], run(trained, graphs)[0]
    assert torch.equal(one.scores, other.scores) and torch.equal(one.hidden, other.hidden)


@pytest.mark.parametrize("algorithm", NAMES)
def test_gradients_exist_and_vanish_where_attention_is_saturated(algorithm: str) -> None:
    graphs, size = graphs_for(algorithm, [8, 8], 3, 0.4), {}
    for sharpness in (0.5, None):
        model = compiled(algorithm, 8, sharpness=sharpness)
        _, wanted = run(model, graphs)
        rollout = model(graphs, wanted.steps)
        rollout.hidden.square().mean().backward()
        layer = model.layers[0]
        for parameter in (layer.score, layer.value.weight, layer.skip.weight):
            assert parameter.grad is not None and parameter.grad.isfinite().all()
        assert layer.skip.weight.grad.abs().max() > 1e-3
        size[sharpness] = float(layer.score.grad.norm())
    assert size[0.5] > 1e-4 and size[None] < 1e-6 * size[0.5]


@pytest.mark.parametrize("algorithm", NAMES)
def test_relabelled_nodes_with_their_positions_are_served_the_same(algorithm: str) -> None:
    graphs = graphs_for(algorithm, [14, 14], 1, 0.3)
    rollout, wanted = run(EXACT[algorithm], graphs)
    order = torch.randperm(14)
    with torch.no_grad():
        other = EXACT[algorithm](graphs.relabelled(order), wanted.steps)
    assert torch.equal(order[other.pi], wanted.pi[:, order])
    torch.testing.assert_close(other.attention, rollout.attention[..., order, :][..., order])


@pytest.mark.parametrize("algorithm", NAMES)
def test_spare_channels_keep_their_weights_and_are_not_heard(algorithm: str) -> None:
    torch.manual_seed(3)
    model = Reasoner(shape_for(algorithm, 48)).double().eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write(model, 32)
    graphs = graphs_for(algorithm, [32, 9], 2, 0.2)
    rollout, wanted = run(model, graphs)
    assert not any(wrong(rollout, graphs, wanted).values())
    assert rollout.hidden[..., -1].any() or rollout.hidden[..., -8:].any()
    kept = sum(int((model.state_dict()[name] == value).sum()) for name, value in before.items())
    assert kept > sum(value.numel() for value in before.values()) / 3


def test_compiling_draws_nothing() -> None:
    before = torch.get_rng_state()
    compiled("dfs", 8)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("algorithm", ["bfs", "dfs"])
def test_single_precision_is_exact(algorithm: str) -> None:
    model = compiled(algorithm, 64, dtype=torch.float32)
    graphs = graphs_for(algorithm, [64, 20], 4, 0.2)
    rollout, wanted = run(model, graphs)
    assert not any(wrong(rollout, graphs, wanted).values())


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(InputError, match="unknown algorithm 'dsf'"):
        compiled("dsf", 4)
    with pytest.raises(InputError, match="unknown algorithm 'dsf'"):
        shape_for("dsf")
    with pytest.raises(InputError, match="nodes=0"):
        compiled("bfs", 0)
    with pytest.raises(InputError, match="compiled dfs: hidden=16; 18 is needed"):
        compiled("dfs", 4, hidden=16)
    for name, value in (("layer_norm", True), ("hints", False), ("layers", 2)):
        with pytest.raises(InputError, match=f"compiled bfs: {name}={value}"):
            write(Reasoner(shape_for("bfs", **{name: value})), 4)
    with pytest.raises(InputError, match="edge_values=False; True is needed"):
        write(Reasoner(shape_for("bellman-ford", edge_values=False)), 4)
    graphs = GraphBatch.of(torch.zeros(1, 2, 2))
    with pytest.raises(InputError, match="unknown algorithm"):
        choices("prim", graphs, run(EXACT["bfs"], graphs)[1])
