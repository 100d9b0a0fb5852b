import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.report import Curves, Flow, HeatMap, Paths, Series, Walk, series
from polypath.report.drawing import MOST_LINKS, SIDE, Scale, plots, shades, stream, web

numbers = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)


def points(path: str) -> list[list[tuple[float, float]]]:
    """The points of each stretch of a path of straight lines."""
    stretches = [part for part in path.replace("Z", "").split("M") if part]
    return [
        [tuple(map(float, point.split(","))) for point in stretch.split("L")]
        for stretch in stretches
    ]


@given(st.lists(numbers, min_size=1, max_size=5), st.integers(2, 8))
def test_ticks_are_round_and_within(values: list[float], count: int) -> None:
    scale = Scale.over(values, margin=0.1)
    ticks = scale.ticks(count)
    assert 1 <= len(ticks) <= count + 1
    assert all(-1e-6 <= place <= SIDE + 1e-6 for place, _ in ticks)
    steps = [b - a for (_, a), (_, b) in itertools.pairwise(ticks)]
    for step in steps:
        assert step == pytest.approx(steps[0])
        assert f"{step:.0e}"[0] in "125"
    for place, value in ticks:
        assert scale(value) == pytest.approx(place)


def test_a_scale_of_one_value_has_room_around_it() -> None:
    for values in ([], [None], [0.0], [3.0]):
        scale = Scale.over(values)
        assert scale.low < scale.high


def test_lines_break_at_gaps_and_bands_close() -> None:
    x, low = [0, 1, 2, 3, 4], [0.0, None, 2.0, 3.0, 4.0]
    high = [value and value + 2 for value in low]
    line = Series("a", x, [1.0, None, 3.0, 4.0, 5.0], [None, *low[1:]], [None, *high[1:]])
    plot = plots(Curves("t", "x", "y", [line]))[0]
    first, second = points(plot.lines[0].mean)
    assert [place for place, _ in first] == [0]
    assert [place for place, _ in second] == [500, 750, 1000]
    assert second == sorted(second, key=lambda point: -point[1])  # upwards on the page
    (band,) = points(plot.lines[0].band)
    assert [place for place, _ in band] == [500, 750, 1000, 1000, 750, 500]
    for (_, below), (_, above) in zip(band[:3], reversed(band[3:]), strict=True):
        assert below > above


def test_the_second_half_gets_its_own_view_when_the_start_is_steep() -> None:
    steps = list(range(40))
    steep = [series("a", steps, [[100 * 0.5**step + step / 100 for step in steps]])]
    straight = [series("a", steps, [[float(-step) for step in steps]])]
    whole, late = plots(Curves("t", "x", "y", steep))
    assert (whole.x.low, late.x.low, late.x.high) == (0, 20, 39)
    assert late.y.high < 1
    assert len(plots(Curves("t", "x", "y", straight))) == 1
    assert plots(Curves("t", "x", "y", []))[0].lines == []


def test_shades_start_at_zero_or_below() -> None:
    figure = HeatMap("t", ["a", "b"], ["0", "1"], [[1.0, 3.0], [None, 4.0]])
    assert shades(figure) == [[0.25, 0.75], [None, 1.0]]
    assert shades(HeatMap("t", ["a"], ["0", "1"], [[-1.0, 1.0]])) == [[0.0, 1.0]]
    assert shades(HeatMap("t", ["a"], ["0"], [[0.0]])) == [[0.0]]


flows = st.lists(st.integers(1, 4), min_size=2, max_size=4).flatmap(
    lambda widths: st.tuples(
        *(
            st.lists(st.lists(st.integers(0, 9), min_size=b, max_size=b), min_size=a, max_size=a)
            for a, b in itertools.pairwise(widths)
        )
    )
)


@given(flows)
def test_ribbons_are_as_wide_as_what_flows_and_stay_within_their_experts(transitions) -> None:
    laid = stream(Flow("t", [str(i) for i in range(len(transitions) + 1)], list(transitions)))
    nodes = {(node.layer, node.expert): node for node in laid.nodes}
    assert len(laid.ribbons) == sum(n > 0 for counts in transitions for row in counts for n in row)
    scales = set()
    for ribbon in laid.ribbons:
        start, end = re.match(r"M[\d.]+,([\d.]+)C.* [\d.]+,([\d.]+)v", ribbon.path).groups()
        width = float(re.search(r"v([\d.]+)C", ribbon.path)[1])
        count = transitions[ribbon.layer][ribbon.source][ribbon.target]
        scales.add(round(width / count))
        ends = ((ribbon.layer, ribbon.source, start), (ribbon.layer + 1, ribbon.target, end))
        for layer, expert, top in ends:
            node = nodes[layer, expert]
            assert node.top - 0.1 <= float(top)
            assert float(top) + width <= node.top + node.height + 0.1
    assert len(scales) <= 2
    for node in laid.nodes:
        out = transitions[node.layer][node.expert] if node.layer < len(transitions) else []
        into = [row[node.expert] for row in transitions[node.layer - 1]] if node.layer else []
        assert node.amount == max(sum(out), sum(into))
        assert node.top + node.height <= SIDE + 1e-6


def test_only_the_strongest_links_are_drawn() -> None:
    width = 40
    counts = [[a * width + b for b in range(width)] for a in range(width)]
    laid = stream(Flow("t", ["a", "b"], [counts]))
    strongest = sorted((n for row in counts for n in row), reverse=True)[:MOST_LINKS]
    drawn = [counts[ribbon.source][ribbon.target] for ribbon in laid.ribbons]
    assert sorted(drawn, reverse=True) == strongest
    assert laid.drawn == pytest.approx(sum(strongest) / sum(map(sum, counts)))


def test_a_flow_of_one_layer_is_empty() -> None:
    assert stream(Flow("t", ["a"], [])).ribbons == []
    assert stream(Flow("t", [], [])).nodes == []


@given(
    st.lists(st.lists(st.sampled_from("bcdef"), max_size=3), min_size=1, max_size=6),
    st.floats(-2, 2),
)
def test_paths_run_from_left_to_right_as_heavy_as_they_are(middles, weight) -> None:
    paths = [Walk(["a", *own, "z"], ["r"] * (len(own) + 1), weight) for own in middles]
    laid = web(Paths("t", paths))
    places = {stop.name: (stop.x, stop.y) for stop in laid.stops}
    assert set(places) == {node for path in paths for node in path.nodes}
    assert len(set(places.values())) == len(places)
    assert {stop.name for stop in laid.stops if stop.end} == {"a", "z"}
    assert places["a"][0] == 0 and places["z"][0] == max(x for x, _ in places.values())
    steps = {step for path in paths for step in zip(path.nodes, path.nodes[1:], strict=False)}
    assert len(laid.steps) == len(steps)
    counts = Counter(
        step for path in paths for step in zip(path.nodes, path.nodes[1:], strict=False)
    )
    if weight:
        shares = sorted(count / max(counts.values()) for count in counts.values())
        assert sorted(step.share for step in laid.steps) == pytest.approx(shares)


def test_steps_between_the_same_two_bend_apart() -> None:
    paths = [Walk(["a", "z"], [relation], 1.0) for relation in ("r", "s", "t")]
    assert len({step.y for step in web(Paths("t", paths)).steps}) == 3
    assert web(Paths("t", [])).steps == []
