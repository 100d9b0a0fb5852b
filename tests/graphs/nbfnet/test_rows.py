import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.graphs import Incoming
from polypath.graphs.nbfnet.rows import Rows, Step, at_heads, plan

SIZES = st.tuples(st.integers(1, 7), st.integers(0, 16), st.integers(1, 4), st.integers(1, 4))


def drawn(sizes: tuple[int, ...], seed: int, density: float) -> tuple:
    torch.manual_seed(seed)
    nodes, count, queries, layers = sizes
    index = torch.randint(nodes, (2, count))
    wanted = torch.rand(nodes, queries) < density
    return Incoming.of(index, nodes), index, torch.randint(nodes, (queries,)), wanted, layers


def known(step: Step, nodes: int, queries: int) -> set[int]:
    return {*step.rows.pairs.tolist(), *step.background.tolist()}


@given(SIZES, st.integers(0, 99), st.sampled_from([0.1, 0.5]), st.booleans())
def test_what_is_read_is_known_and_the_background_is_not_reached(
    sizes: tuple, seed: int, density: float, shared: bool
) -> None:
    edges, index, heads, wanted, layers = drawn(sizes, seed, density)
    nodes, queries = wanted.shape
    steps = plan(edges, at_heads(heads, nodes), wanted, [shared] * layers)
    assert len(steps) == layers + 1
    assert set(wanted.flatten().nonzero()[:, 0].tolist()) <= known(steps[-1], nodes, queries)
    reached = [{(int(head), query)} for query, head in enumerate(heads)]
    reached = [set().union(*reached)]
    for _ in range(layers):
        pairs = {(int(v), q) for u, v in index.T for node, q in reached[-1] if node == u}
        reached.append(reached[-1] | pairs)
    for depth, (before, step) in enumerate(itertools.pairwise(steps), 1):
        read = {
            int(u) * queries + pair % queries
            for pair in step.rows.pairs.tolist()
            for u, v in index.T
            if v == pair // queries
        }
        assert read | set(step.rows.pairs.tolist()) <= known(before, nodes, queries)
        assert not set(step.rows.pairs.tolist()) & set(step.background.tolist())
        for pair in step.background.tolist():
            assert shared and divmod(pair, queries) not in reached[depth]
    assert steps[0].rows.pairs.tolist() == sorted(
        int(head) * queries + query for query, head in enumerate(heads)
    )


@given(SIZES, st.integers(0, 99), st.sampled_from([0.2, 1.0]))
def test_states_are_found_where_they_are(sizes: tuple, seed: int, density: float) -> None:
    *_, mask, _ = drawn(sizes, seed, density)
    nodes, queries = mask.shape
    need = mask | (torch.rand(nodes, queries) < 0.5)
    step = Step.of(mask, need)
    dense, background = torch.randn(nodes, queries, 3), torch.randn(nodes, 3)
    states = step.states(dense[mask], background, queries)
    wanted = torch.where(mask[..., None], dense, background[:, None])
    pairs = need.flatten().nonzero()[:, 0]
    assert torch.equal(states[pairs], wanted.flatten(0, 1)[pairs])
    for node, first, last, row in step.rows.runs.tolist():
        assert step.rows.pairs[row] == node * queries + first and last == first + 1
    counts = torch.bincount(step.rows.pairs // queries, minlength=nodes)
    assert torch.equal(step.rows.starts.diff(), counts)


def test_all_rows_are_runs_of_whole_nodes() -> None:
    rows = Rows.all(3, 2)
    assert rows.runs.tolist() == [[0, 0, 2, 0], [1, 0, 2, 2], [2, 0, 2, 4]]
    assert rows.pairs.tolist() == list(range(6)) and rows.starts.tolist() == [0, 2, 4, 6]
