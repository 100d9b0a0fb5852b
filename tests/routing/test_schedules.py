"""Experts by depth: the numbers of the specification, and what holds for every shape."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.routing import schedule
from polypath.routing.schedules import SHAPES

WORKED = {
    (6, 2, 12): {
        "descending": [12, 10, 8, 6, 4, 2],
        "ascending": [2, 4, 6, 8, 10, 12],
        "pyramid-up": [2, 6, 10, 10, 6, 2],
        "pyramid-down": [12, 8, 4, 4, 8, 12],
        "wave-up": [7, 12, 10, 4, 2, 7],
        "wave-down": [7, 2, 4, 10, 12, 7],
        "uniform": [7] * 6,
    },
    (4, 2, 8): {
        "descending": [8, 6, 4, 2],
        "ascending": [2, 4, 6, 8],
        "pyramid-up": [2, 6, 6, 2],
        "pyramid-down": [8, 4, 4, 8],
        "wave-up": [5, 8, 2, 5],
        "wave-down": [5, 2, 8, 5],
        "uniform": [5] * 4,
    },
}

sizes = st.tuples(
    st.sampled_from(list(SHAPES)), st.integers(1, 12), st.integers(1, 6), st.integers(0, 9)
)


def test_the_numbers_of_the_specification() -> None:
    for (layers, least, most), shapes in WORKED.items():
        assert set(shapes) == set(SHAPES)
        for shape, expected in shapes.items():
            assert schedule(shape, layers, least, most) == expected, shape


@given(sizes, st.integers(0, 100))
def test_a_budget_is_met_by_whole_experts(size: tuple[str, int, int, int], more: int) -> None:
    shape, layers, least, wide = size
    counts = schedule(shape, layers, least, least + wide, budget=layers + more)
    assert len(counts) == layers and sum(counts) == layers + more and min(counts) >= 1


@given(sizes, st.integers(0, 100))
def test_shapes_keep_their_form(size: tuple[str, int, int, int], more: int) -> None:
    _, layers, least, wide = size
    for budget in (None, layers + more):
        fall = schedule("descending", layers, least, least + wide, budget)
        assert fall == sorted(fall, reverse=True)
        if wide or budget is None:
            assert schedule("ascending", layers, least, least + wide, budget) == fall[::-1]
    pyramid = schedule("pyramid-up", layers, least, least + wide)
    assert pyramid == pyramid[::-1]


@given(st.sampled_from(list(SHAPES)), st.integers(1, 6), st.integers(0, 9))
def test_one_layer_has_the_middle(shape: str, least: int, wide: int) -> None:
    assert schedule(shape, 1, least, least + wide) == schedule("uniform", 1, least, least + wide)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (("valley", 4, 2, 8), "unknown schedule 'valley'"),
        (("uniform", 4, 8, 2), "4 layers of 8 to 2"),
        (("uniform", 0, 2, 8), "0 layers"),
        (("uniform", 4, 2, 8, 3), "a budget of 3 for 4 layers"),
    ],
)
def test_what_cannot_be_is_refused(values: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        schedule(*values)
