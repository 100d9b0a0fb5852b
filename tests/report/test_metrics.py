import math
from statistics import fmean

import pytest
import scipy.stats

from polypath.report.metrics import MOST_POINTS, curves, entropy_curves, layer_labels


def record(arm: str, seed: int, step: int, **values) -> dict:
    return {"arm": arm, "seed": seed, "step": step, "split": "valid"} | values


def test_each_arm_is_a_line_with_the_interval_of_its_seeds() -> None:
    losses = {("moe", 0): [3.0, 2.0], ("moe", 1): [3.2, 2.1], ("dense", 0): [3.1, 2.5]}
    records = [
        record(arm, seed, 10 * i, loss=loss)
        for (arm, seed), values in losses.items()
        for i, loss in enumerate(values)
    ]
    records.append(record("moe", 0, 0, loss=9.0) | {"split": "train"})
    records.append(record("other", 0, 0, loss=9.0))
    moe, dense = curves(records, ["moe", "dense"], "loss", "Loss", "nats").series
    assert (moe.name, moe.x) == ("moe", [0, 10])
    assert moe.mean == pytest.approx([3.1, 2.05])
    t = scipy.stats.t.ppf(0.975, 1)
    assert moe.high == pytest.approx([3.1 + t * 0.1, 2.05 + t * 0.05])
    assert (dense.name, dense.mean, dense.low) == ("dense", [3.1, 2.5], [None, None])


def test_a_line_ends_where_the_first_seed_ends() -> None:
    records = [record("moe", 0, step, loss=1.0) for step in (0, 10, 20)]
    records += [record("moe", 1, step, loss=2.0) for step in (0, 10)]
    assert curves(records, ["moe", "dense"], "loss", "Loss", "nats").series[0].x == [0, 10]


def test_a_step_without_the_quantity_is_left_out() -> None:
    records = [record("moe", 0, 0, loss=1.0, tokens_per_second=None)]
    records += [record("moe", 0, 10, loss=1.0, tokens_per_second=5.0)]
    assert curves(records, ["moe"], "tokens_per_second", "Speed", "tokens/s").series[0].x == [10]


def test_a_diverged_loss_is_a_gap() -> None:
    records = [record("moe", 0, 0, loss=1.0), record("moe", 0, 10, loss=math.nan)]
    assert curves(records, ["moe", "dense"], "loss", "Loss", "nats").series[0].mean == [1.0, None]


def test_of_what_each_layer_has_the_mean_is_drawn() -> None:
    records = [
        {"arm": "a", "seed": 0, "step": 1, "split": "valid", "entropy": {"x": 1.0, "y": 3.0}},
    ]
    (line,) = curves(records, ["a"], "entropy", "t", "y").series
    assert list(line.mean) == [2.0]


@pytest.mark.parametrize("count", [0, 1, 99, 100, 101, 250, 1001])
def test_many_steps_are_averaged_without_losing_any(count: int) -> None:
    values = [math.sin(step) + step for step in range(count)]
    records = [record("moe", 0, step, loss=value) for step, value in enumerate(values)]
    lines = curves(records, ["moe", "dense"], "loss", "Loss", "nats").series
    if not count:
        assert lines == []
        return
    line, start, whole = lines[0], 0, 0.0
    assert len(line.x) == min(count, MOST_POINTS)
    for x, mean in zip(line.x, line.mean, strict=True):
        assert mean == pytest.approx(fmean(values[start : x + 1]))
        whole += mean * (x + 1 - start)
        start = x + 1
    assert whole == pytest.approx(sum(values))
    sizes = {b - a for a, b in zip([-1, *line.x], line.x, strict=False)}
    assert max(sizes) - min(sizes) <= 1


def test_entropy_has_a_line_for_each_layer_of_the_arm() -> None:
    records = [
        record("moe", seed, step, entropy={"layers.0.mlp": 2.0 + seed, "layers.1.mlp": 1.0})
        for seed in (0, 1)
        for step in (0, 10)
    ]
    records += [record("other", 0, 0, entropy={"layers.0.mlp": 5.0}), record("dense", 0, 0)]
    first, second = entropy_curves(records, "moe").series
    assert (first.name, first.x, first.mean) == ("layer 0", [0, 10], [2.5, 2.5])
    assert (second.name, second.mean) == ("layer 1", [1.0, 1.0])


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["model.layers.0.mlp", "model.layers.11.mlp"], ["layer 0", "layer 11"]),
        (["a.0.x", "a.1.y"], ["a.0.x", "a.1.y"]),
        (["encoder.mlp", "decoder.mlp"], ["encoder.mlp", "decoder.mlp"]),
        (["layers.0.mlp", "mlp"], ["layers.0.mlp", "mlp"]),
        (["model.layers.3.mlp"], ["model.layers.3.mlp"]),
        ([], []),
    ],
)
def test_layers_are_labelled_by_what_they_differ_in(names, labels) -> None:
    assert list(layer_labels(names).values()) == labels
    assert list(layer_labels(names)) == names
