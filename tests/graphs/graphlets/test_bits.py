import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from polypath.graphs.graphlets.bits import ascending, lowest_of, note, ones_of
from polypath.graphs.kernels import inner


@inner
def ones_and_lowest(word: np.uint64) -> tuple[int, int]:
    return ones_of(word), lowest_of(word)


@given(st.integers(0, 2**64 - 1) | st.integers(0, 63).map(lambda place: 1 << place))
def test_bits_are_those_of_python(word: int) -> None:
    lowest = (word & -word).bit_length() - 1 if word else 64
    assert ones_and_lowest(np.uint64(word)) == (word.bit_count(), lowest)


@given(st.integers(1, 20_000), st.data())
def test_a_set_comes_out_sorted_and_empty(nodes: int, data: st.DataObject) -> None:
    members = data.draw(st.lists(st.integers(0, nodes - 1), max_size=80))
    low = np.zeros((nodes + 63) // 64, np.uint64)
    high = np.zeros((len(low) + 63) // 64, np.uint64)
    for member in members:
        note(low, high, member)
    found = np.full(nodes, -1)
    count = ascending(low, high, found)
    assert found[:count].tolist() == sorted(set(members))
    assert not low.any() and not high.any()
