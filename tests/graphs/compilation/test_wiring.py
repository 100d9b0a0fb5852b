import pytest
import torch

from polypath.errors import InputError
from polypath.graphs.compilation import Reasoner, shape_for, write
from polypath.graphs.compilation.wiring import Wiring


def wired(heads: int = 2) -> tuple[Reasoner, Wiring]:
    model = Reasoner(shape_for("bfs", 12, heads=heads)).double().eval()
    return model, Wiring(model, [[[["a", "b"], ["c"]]]])


def test_linear_forms_pass_the_leaky_relu() -> None:
    model, wires = wired()
    wires.attend(0, 1, {"position": 3, "a": -2, "1": 5}, {"source": 7}, {"weight": 11})
    layer = model.layers[0]
    z, e = torch.randn(1, 4, 24).double(), torch.randn(1, 4, 4, 4).double()
    maps = layer.maps(model.edges.weight)
    found = layer.attention(z, e, maps, torch.ones(1, 4, 4, dtype=torch.bool))[0, 1]
    x = 3 * z[0, :, 0] - 2 * z[0, :, 12]
    logits = x[None, :] + 7 * z[0, :, 1:2] + 11 * e[0, :, :, 0]
    torch.testing.assert_close(found, logits.softmax(-1))


def test_channels_are_where_their_head_gathers() -> None:
    model, wires = wired()
    wires.channel(0, "c", {"position": 2, "1": 1}, {"source": 3}, {"edge": 5})
    layer = model.layers[0]
    z, e = torch.rand(1, 4, 24).double(), torch.rand(1, 4, 4, 4).double()
    h, attention = layer(
        z, e, layer.maps(model.edges.weight), torch.ones(1, 4, 4, dtype=torch.bool)
    )
    alpha = attention[0, 1]
    wanted = 2 * z[0, :, 0] + 1 + 3 * alpha @ z[0, :, 1] + 5 * (alpha * e[0, :, :, 1]).sum(-1)
    torch.testing.assert_close(h[0, :, 6], wanted)


@pytest.mark.parametrize("nodes", [1, 2, 7, 64])
def test_pointers_go_to_the_node_at_a_position(nodes: int) -> None:
    model, wires = wired()
    wires.point({"b": 1}, sharpness=100.0 * nodes, away=10.0)
    positions, targets = torch.arange(nodes) / nodes, torch.randperm(nodes)
    known = torch.randn(1, nodes, 36).double()
    known[0, :, 0] = positions
    known[0, :, 25] = positions[targets]
    e, real = torch.randn(1, nodes, nodes, 4).double(), torch.ones(1, nodes, dtype=torch.bool)
    for decoder in (model.pointers, model.output):
        scores = decoder(known, e, model.edges.weight, real)[0]
        assert torch.equal(scores.argmax(-1), targets)
        assert scores.softmax(-1).amax(-1).min() > 1 - 1e-12


def test_narrow_networks_are_told() -> None:
    model = Reasoner(shape_for("dfs", 18, heads=3))
    with pytest.raises(InputError, match="compiled dfs: hidden=18; 27 channels are needed"):
        write(model, 4)
