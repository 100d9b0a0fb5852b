import networkx as nx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from graphs_at_random import adjacency_of, graphs
from polypath.errors import InputError
from polypath.graphs import Adjacency, Incoming
from polypath.graphs.nbfnet import NBFNet, NBFNetConfig, model, with_loops

SIZES = st.tuples(st.integers(1, 9), st.integers(0, 25), st.integers(1, 3), st.integers(1, 5))
KINDS = [
    {},
    {"dependent": False},
    {"dependent": False, "message": "transe"},
    {"message": "transe", "aggregate": "sum"},
    {"message": "rotate", "aggregate": "max"},
    {"layer_norm": False, "shortcut": False, "aggregate": "mean"},
]


def drawn(sizes: tuple[int, ...], seed: int) -> tuple[Incoming, Tensor, Tensor, Tensor]:
    torch.manual_seed(seed)
    nodes, count, types, queries = sizes
    index, kinds = torch.randint(nodes, (2, count)), torch.randint(types, (count,))
    asked = torch.randint(nodes, (queries,)), torch.randint(types, (queries,))
    return Incoming.of(index, nodes, kinds, types), *asked, torch.randint(nodes, (queries, 2))


def made(types: int, layers: int = 3, **kind: object) -> NBFNet:
    return NBFNet(NBFNetConfig(types, 6, layers, **kind)).double()


def test_parameters_are_counted_and_none_belongs_to_a_node() -> None:
    def count(config: NBFNetConfig) -> int:
        return sum(p.numel() for p in NBFNet(config).parameters())

    assert count(NBFNetConfig(474)) == 3_103_105
    assert count(NBFNetConfig(1, dependent=False)) == 84_897
    # Sizes are of the model's own: no other number is in any shape, and a graph changes nothing.
    own = NBFNet(NBFNetConfig(7, 5, 2))
    shapes = {size for p in own.state_dict().values() for size in p.shape}
    assert shapes <= {7, 5, 7 * 5, 13 * 5, 2 * 5, 1}
    before = {name: p.shape for name, p in own.state_dict().items()}
    for nodes in (3, 11):
        edges, heads, relations, _ = drawn((nodes, 20, 7, 2), 0)
        assert own(edges, heads, relations).shape == (2, nodes)
    assert {name: p.shape for name, p in own.state_dict().items()} == before


@pytest.mark.parametrize("kind", KINDS)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_some_tails_are_scored_as_all_and_as_with_messages_in_memory(
    kind: dict, sizes: tuple, seed: int
) -> None:
    edges, heads, relations, tails = drawn(sizes, seed)
    own = made(sizes[2], **kind)
    found = own(edges, heads, relations, tails)
    wanted = own(edges, heads, relations).gather(1, tails)
    ones = [torch.ones(len(edges.sources)).double()] * 3
    others = own(edges, heads, relations, tails, ones)
    parts, slope = list(own.parameters()), torch.randn_like(found)
    grads = torch.autograd.grad(found, parts, slope, retain_graph=True, allow_unused=True)
    for one in (wanted, others):
        torch.testing.assert_close(found, one)
        same = torch.autograd.grad(one, parts, slope, retain_graph=True, allow_unused=True)
        for part, a, b in zip(parts, grads, same, strict=True):
            zero = torch.zeros_like(part)
            a, b = (zero if grad is None else grad for grad in (a, b))
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)


@given(SIZES, st.integers(0, 99))
def test_queries_may_go_one_after_the_other(sizes: tuple, seed: int) -> None:
    edges, heads, relations, tails = drawn(sizes, seed)
    own = made(sizes[2])
    wanted = own(edges, heads, relations, tails)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "STATES", 2 * 6 * edges.num_nodes)
        torch.testing.assert_close(own(edges, heads, relations, tails), wanted)


@pytest.mark.parametrize("kind", [{}, {"dependent": False, "aggregate": "sum"}])
def test_renaming_nodes_renames_scores(kind: dict) -> None:
    edges, heads, relations, _ = drawn((12, 40, 3, 4), 0)
    own, name = made(3, **kind), torch.randperm(12)
    index = torch.stack([edges.sources, edges.targets])
    renamed = Incoming.of(name[index], 12, edges.types, 3)
    found = own(renamed, name[heads], relations)[:, name]
    torch.testing.assert_close(found, own(edges, heads, relations))


def test_automorphic_targets_differ_by_their_relation_to_the_head() -> None:
    # A ring of six: all nodes are alike, but not to node 0; those at one distance are.
    ring = torch.arange(6)
    index = torch.cat([torch.stack([ring, (ring + 1) % 6]), torch.stack([(ring + 1) % 6, ring])], 1)
    own = made(1, dependent=False)
    scores = own(Incoming.of(index, 6), torch.tensor([0]), torch.tensor([0]))[0].detach()
    torch.testing.assert_close(scores[[1, 2]], scores[[5, 4]])
    assert len({round(float(score), 6) for score in scores[:4]}) == 4


def without_biases(own: NBFNet) -> NBFNet:
    for layer in own.layers:
        torch.nn.init.zeros_(layer.combine.bias)
    return own


def path_graph(nodes: int) -> Incoming:
    ids = torch.arange(nodes - 1)
    return Incoming.of(torch.stack([ids, ids + 1]), nodes)


def test_what_is_not_reached_is_zero_or_the_same() -> None:
    heads, relations = torch.tensor([0]), torch.tensor([0])
    ends = {"layer_norm": False, "aggregate": "sum", "dependent": False}
    own = without_biases(made(1, **ends))
    pairs = torch.stack([torch.zeros(8).long(), torch.arange(8)])
    states = own.features(path_graph(8), heads, relations, pairs)[:, :6]
    assert (states[4:] == 0).all() and (states[:4].abs().sum(1) > 0).all()
    # With PNA and layer norm: nodes 1 … 4 have two edges each from their own star of leaves.
    leaves = torch.arange(5, 13)
    index = torch.stack([leaves, torch.arange(1, 5).repeat_interleave(2)])
    pairs = torch.stack([torch.zeros(13).long(), torch.arange(13)])
    states = made(1).features(Incoming.of(index, 13), heads, relations, pairs)[:, :6]
    torch.testing.assert_close(states[1:5], states[1:2].expand(4, -1))
    torch.testing.assert_close(states[5:], states[5:6].expand(8, -1))
    assert not torch.allclose(states[1], states[5]) and not torch.allclose(states[0], states[5])


def test_an_edge_on_no_walk_to_the_tail_has_no_gradient() -> None:
    # 0 → 1 → 2, and 0 → 3 → 4: the second branch says nothing of node 2.
    edges = Incoming.of(torch.tensor([[0, 1, 0, 3], [1, 2, 3, 4]]), 5)
    own = without_biases(made(1, aggregate="sum", layer_norm=False, dependent=False))
    weights = [torch.ones(4).double().requires_grad_() for _ in range(3)]
    zero = torch.tensor([0])
    score = own(edges, zero, zero, torch.tensor([[2]]), weights).sum()
    slopes = torch.stack(torch.autograd.grad(score, weights))
    assert (slopes[:, 2:] == 0).all() and (slopes[:, :2] != 0).any(0).all()
    # No weight of the first edge counts in the last layer: one more edge follows it.
    assert slopes[2, 0] == 0


@given(graphs(least=2), st.integers(0, 99))
def test_pairs_are_scored_alike_in_both_orders(graph: nx.Graph, seed: int) -> None:
    torch.manual_seed(seed)
    adjacency, own = adjacency_of(graph), made(1, dependent=False)
    pairs = torch.combinations(torch.arange(adjacency.num_nodes)).T
    found = own.score(adjacency, None, pairs)
    torch.testing.assert_close(own.score(adjacency, None, pairs.flip(0)), found)
    # As the paper has it: each pair by itself, from both ends, features averaged.
    edges, zero = with_loops(adjacency), torch.tensor([0])
    i, j = pairs[:, :1]
    halves = [own.features(edges, a, zero, torch.stack([zero, b])) for a, b in ((i, j), (j, i))]
    torch.testing.assert_close(own.mlp((halves[0] + halves[1]) / 2)[:, 0], found[:1])


def test_each_node_has_one_loop() -> None:
    edges = with_loops(Adjacency.of(torch.tensor([[0, 1], [1, 0]]), 3))
    assert (edges.sources == edges.targets).sum() == 3 and len(edges.sources) == 5


def test_empty_questions_have_empty_scores() -> None:
    none = torch.empty(0, dtype=torch.int64)
    edges = path_graph(4)
    assert made(1)(edges, none, none).shape == (0, 4)
    assert made(1)(edges, torch.tensor([1]), torch.tensor([0]), none[None]).shape == (1, 0)
    assert made(1).score(Adjacency.of(none.view(2, 0), 3), None, none.view(2, 0)).shape == (0,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_types": 0}, "num_types=0; at least 1"),
        ({"layers": 0}, "layers=0"),
        ({"message": "rotat"}, "unknown message 'rotat'; did you mean 'rotate'"),
        ({"aggregate": "pnas"}, "unknown aggregate 'pnas'; did you mean 'pna'"),
        ({"message": "rotate", "dim": 5}, "dim=5; rotate needs an even one"),
    ],
)
def test_a_wrong_model_is_told(values: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        NBFNetConfig(**{"num_types": 2} | values)


def test_wrong_questions_are_told() -> None:
    own, edges, zero = made(2), path_graph(4), torch.tensor([0])
    with pytest.raises(InputError, match="heads have 4; ids are 0 … 3"):
        own(edges, zero + 4, zero)
    with pytest.raises(InputError, match="relations have -1; ids are 0 … 1"):
        own(edges, zero, zero - 1)
    with pytest.raises(InputError, match=r"tails of torch.int32; torch.int64 is right"):
        own(edges, zero, zero, zero[None].int())
    with pytest.raises(InputError, match="weights of 1 layers; there are 3"):
        own(edges, zero, zero, None, [torch.ones(3)])
    with pytest.raises(InputError, match="3 types of edges, a model of 2"):
        own(Incoming.of(torch.tensor([[0], [1]]), 2, torch.tensor([2])), zero, zero)
    with pytest.raises(InputError, match="num_types=1 scores pairs"):
        own.score(Adjacency.of(torch.tensor([[0, 1], [1, 0]])), None, torch.tensor([[0], [1]]))
