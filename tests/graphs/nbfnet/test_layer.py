import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polypath.graphs import Incoming
from polypath.graphs.nbfnet import NBFNetConfig, fused
from polypath.graphs.nbfnet.layer import ByDegree, Layer, Sources
from polypath.graphs.nbfnet.rows import Rows, States

SIZES = st.tuples(st.integers(1, 9), st.integers(0, 30), st.integers(1, 4), st.integers(1, 5))
WAYS = [
    (message, aggregate)
    for message in ("distmult", "transe")
    for aggregate in ("sum", "mean", "max", "pna")
]


def drawn(sizes: tuple[int, ...], seed: int = 0) -> tuple[ByDegree, Tensor, Sources]:
    """A graph, states of small whole numbers (many ties), and where queries begin."""
    torch.manual_seed(seed)
    nodes, count, types, queries = sizes
    index, kinds = torch.randint(nodes, (2, count)), torch.randint(types, (count,))
    graph = ByDegree.of(Incoming.of(index, nodes, kinds, types))
    h = torch.randint(-2, 3, (nodes * queries, 6)).double().requires_grad_()
    states = torch.randn(queries, 6, dtype=torch.float64, requires_grad=True)
    return graph, h, Sources(torch.randint(nodes, (queries,)), states)


def made(types: int, message: str, aggregate: str, dependent: bool) -> Layer:
    layer = Layer(NBFNetConfig(types, 6, 1, message, aggregate, dependent)).double()
    for parameter in layer.norm.parameters():
        torch.nn.init.normal_(parameter)
    return layer


@pytest.mark.parametrize(("message", "aggregate"), WAYS)
@given(
    sizes=SIZES, dependent=st.booleans(), seed=st.integers(0, 99), share=st.sampled_from([0.3, 1])
)
def test_compiled_is_as_the_equations_read(
    message: str, aggregate: str, sizes: tuple, dependent: bool, seed: int, share: float
) -> None:
    graph, h, sources = drawn(sizes, seed)
    nodes, _, types, queries = sizes
    layer = made(types, message, aggregate, dependent)
    rows = Rows.all(nodes, queries)
    if share < 1:
        rows = Rows.of(torch.rand(nodes, queries) < share)
    found = layer(graph, States(h, torch.arange(len(h))), sources, rows)
    values = layer.values(sources.states)
    wanted = layer.plain(graph, h.view(nodes, queries, -1), sources, values)
    wanted = wanted.flatten(0, 1)[rows.pairs]
    torch.testing.assert_close(found, wanted)
    parts = [h, sources.states, *layer.parameters()]
    slope = torch.randn_like(found)
    grads = torch.autograd.grad(found, parts, slope, retain_graph=True)
    others = torch.autograd.grad(wanted, parts, slope)
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)


def test_single_precision_in_several_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "TILE", 13)
    graph, h, sources = drawn((40, 300, 5, 9))
    layer = made(5, "distmult", "pna", True).float()
    sources = Sources(sources.heads, sources.states.detach().float().requires_grad_())
    h = torch.randn(h.shape, requires_grad=True)
    found = layer(graph, States(h, torch.arange(len(h))), sources, Rows.all(40, 9))
    wanted = layer.plain(graph, h.view(40, 9, 6), sources, layer.values(sources.states))
    torch.testing.assert_close(found, wanted.flatten(0, 1), rtol=1e-5, atol=1e-5)
    parts, slope = [h, sources.states, *layer.parameters()], torch.randn_like(found)
    grads = torch.autograd.grad(found, parts, slope, retain_graph=True)
    others = torch.autograd.grad(wanted, parts, slope.view_as(wanted))
    for one, other in zip(grads, others, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("message", "aggregate"), WAYS)
def test_gradients_are_numerical_ones(message: str, aggregate: str) -> None:
    graph, h, sources = drawn((5, 11, 2, 2))
    layer = made(2, message, aggregate, True)
    h = torch.randn(h.shape, dtype=torch.float64, requires_grad=True)

    def call(h: Tensor, states: Tensor) -> Tensor:
        at = Sources(sources.heads, states)
        return layer(graph, States(h, torch.arange(len(h))), at, Rows.all(5, 2))

    assert torch.autograd.gradcheck(call, (h, sources.states))


def test_statistics_of_the_specification() -> None:
    # Messages 1, 2 and 4 enter node 3; its boundary is 0, a fourth element.
    graph = ByDegree.of(Incoming.of(torch.tensor([[0, 1, 2], [3, 3, 3]]), 4))
    h = torch.tensor([1.0, 2.0, 4.0, 0.0])[:, None, None].double()
    layer = Layer(NBFNetConfig(1, 1, 1, dependent=False)).double()
    sources = Sources(torch.tensor([0]), torch.zeros(1, 1).double())
    found = layer.statistics(graph, h, sources, torch.ones(1, 1).double())
    wanted = torch.tensor([1.75, 4, 0, 1.479020]).double()
    torch.testing.assert_close(found[3, 0], wanted, rtol=0, atol=5e-7)


def test_degree_scalers_of_the_specification() -> None:
    # Degrees and one more: 2, 3, 4, 2.
    index = torch.tensor([[1, 0, 2, 0, 1, 3, 0], [0, 1, 1, 2, 2, 2, 3]])
    graph = ByDegree.of(Incoming.of(index, 4))
    scales = graph.scales[graph.groups][graph.place]
    wanted = torch.tensor([[0.7162, 1.3962], [1.1352, 0.8809], [1.4324, 0.6981], [0.7162, 1.3962]])
    torch.testing.assert_close(scales[:, 1:], wanted.double(), rtol=0, atol=5e-5)
    assert (scales[:, 0] == 1).all()


@given(SIZES, st.integers(0, 99))
def test_nodes_in_the_order_of_degrees_are_the_same_graph(sizes: tuple, seed: int) -> None:
    torch.manual_seed(seed)
    nodes, count, types, _ = sizes
    index, kinds = torch.randint(nodes, (2, count)), torch.randint(types, (count,))
    edges = Incoming.of(index, nodes, kinds, types)
    graph = ByDegree.of(edges)
    counts = graph.edges.starts.diff()
    assert torch.equal(counts, counts.sort().values)
    assert torch.equal(counts.unique()[graph.groups], counts)
    for place, edge in enumerate(graph.edges.order.tolist()):
        assert graph.place[index[0, edge]] == graph.edges.sources[place]
        assert graph.place[index[1, edge]] == graph.edges.targets[place]
        assert kinds[edge] == graph.edges.types[place]


def test_a_graph_without_edges_has_scales() -> None:
    graph = ByDegree.of(Incoming.of(torch.empty(2, 0, dtype=torch.int64), 3))
    assert graph.scales.tolist() == [[1, 1, 1]]
