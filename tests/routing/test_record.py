"""The routing record: what it answers, its changes of shape and place, and its file."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from safetensors.torch import save_file
from torch import Tensor

from draws import Problem, problems
from polypath.errors import InputError
from polypath.routing import Entropy, LoadBalance, Routing, RoutingContext, TopKRouter

FULL = ("scores", "experts", "weights", "probabilities", "mask")


def routing_of(problem: Problem) -> Routing:
    """A routing with empty slots, padding, losses and a state."""
    context = problem.context(shape=(1, len(problem.x)))
    losses = [LoadBalance(1.0), Entropy(1.0)]
    router = TopKRouter(problem.dim, problem.num_experts, problem.k, losses=losses)
    routing = router(problem.x, context)
    return Routing(**{**routing.__dict__, "state": torch.randn(3)})


def some(num_things: int = 6, k: int = 2, mask: bool = False, num_experts: int = 4) -> Routing:
    mask = torch.rand(num_things) < 0.5 if mask else None
    router = TopKRouter(3, num_experts, k, losses=[LoadBalance(1.0)])
    return router(torch.randn(num_things, 3), RoutingContext(mask=mask))


def assert_equal(ours: Routing, theirs: Routing, losses: bool = True) -> None:
    for name in FULL:
        a, b = getattr(ours, name), getattr(theirs, name)
        assert (a is None) == (b is None), name
        assert a is None or (a.dtype == b.dtype and torch.equal(a, b)), name
    if losses:
        assert ours.losses.keys() == theirs.losses.keys()
        assert all(torch.equal(v, theirs.losses[n]) for n, v in ours.losses.items())


@given(problems())
def test_sums_agree_with_counting_one_by_one(problem: Problem) -> None:
    routing = routing_of(problem)
    load, importance = [0] * problem.num_experts, [0.0] * problem.num_experts
    for ids, weights, counts in zip(
        routing.experts.tolist(), routing.weights.tolist(), problem.counted, strict=True
    ):
        for expert, weight in zip(ids, weights, strict=True):
            if expert >= 0 and counts:
                load[expert] += 1
                importance[expert] += weight
    assert routing.load().tolist() == load
    assert routing.importance().tolist() == pytest.approx(importance)
    assert routing.count().tolist() == [
        sum(e >= 0 for e in ids) for ids in routing.experts.tolist()
    ]
    assert len(routing) == len(problem.x)
    assert routing.num_experts == problem.num_experts


@given(problems())
def test_entropy_is_that_of_the_scaled_probabilities(problem: Problem) -> None:
    routing = routing_of(problem)
    expected = []
    for row in routing.probabilities.tolist():
        shares = [p / sum(row) for p in row] if sum(row) else row
        expected.append(-sum(p * math.log(p) for p in shares if p > 0))
    assert routing.entropy().tolist() == pytest.approx(expected, abs=1e-9)
    doubled = Routing(**{**routing.__dict__, "probabilities": 2 * routing.probabilities})
    torch.testing.assert_close(doubled.entropy(), routing.entropy())


def test_padding_may_hold_anything() -> None:
    routing = some(3)
    weights = routing.weights.detach().clone()
    weights[1] = torch.nan
    mask = torch.tensor([True, False, True])
    masked = Routing(routing.scores, routing.experts, weights, mask=mask)
    assert masked.importance().isfinite().all()
    assert masked.load().sum() == 4


def test_entropy_without_probabilities_is_refused() -> None:
    routing = some()
    with pytest.raises(InputError, match="no probabilities"):
        Routing(routing.scores, routing.experts, routing.weights).entropy()


@pytest.mark.parametrize(
    "change",
    [
        {"scores": torch.randn(6)},
        {"scores": torch.randn(5, 4)},
        {"experts": torch.zeros(6, dtype=torch.int64)},
        {"experts": torch.zeros(6, 2)},
        {"experts": torch.zeros(6, 3, dtype=torch.int64)},
        {"weights": torch.zeros(2, 6)},
        {"probabilities": torch.zeros(6, 2)},
        {"mask": torch.ones(6, 1, dtype=torch.bool)},
        {"mask": torch.ones(6)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_misfits_are_refused(change: dict[str, Tensor]) -> None:
    fields = {**some(mask=True).__dict__, **change}
    with pytest.raises(InputError, match="do not fit together") as caught:
        Routing(**fields)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "index",
    [slice(1, 4), slice(0, 0), torch.tensor([True, False] * 3), torch.tensor([4, 0, 4])],
    ids=["slice", "nothing", "mask", "positions"],
)
def test_picking_things(index) -> None:
    routing = some(mask=True)
    picked = routing[index]
    for name in FULL:
        assert torch.equal(getattr(picked, name), getattr(routing, name)[index])
    assert picked.losses == {}


def test_cat_undoes_slicing() -> None:
    for routing in (some(), some(mask=True)):
        parts = [routing[:2], routing[2:2], routing[2:]]
        assert_equal(Routing.cat(parts), routing, losses=False)


def test_cat_fills_in_what_only_some_parts_have() -> None:
    narrow, wide = some(2, k=1), some(3, k=3, mask=True)
    bare = Routing(**{**some(1).__dict__, "probabilities": None})
    both = Routing.cat([narrow, wide])
    assert both.experts.tolist() == [
        *[[e, -1, -1] for [e] in narrow.experts.tolist()],
        *wide.experts.tolist(),
    ]
    assert both.weights[:2, 1:].eq(0).all()
    assert both.mask.tolist() == [True, True, *wide.mask.tolist()]
    assert Routing.cat([narrow, bare]).probabilities is None
    assert torch.equal(both.load(), narrow.load() + wide.load())


def test_cat_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(InputError, match="at least one"):
        Routing.cat([])
    with pytest.raises(InputError, match=r"number of experts \[4, 5\]"):
        Routing.cat([some(), some(num_experts=5)])


def test_map_and_to_keep_what_they_should() -> None:
    routing = some(mask=True)
    flipped = routing.map(lambda t: t.flip(0))
    assert all(torch.equal(getattr(flipped, n), getattr(routing, n).flip(0)) for n in FULL)
    assert flipped.losses is routing.losses
    there = Routing(**{**routing.__dict__, "state": torch.ones(2)}).to("meta")
    assert {t.device.type for t in there.tensors().values()} == {"meta"}
    assert [t.dtype for t in there.tensors().values()][:3] == [
        torch.float32,
        torch.int64,
        torch.float32,
    ]


def test_detach_has_the_numbers_and_no_history() -> None:
    routing = some(mask=True)
    detached = routing.detach()
    assert routing.weights.requires_grad
    assert not any(t.requires_grad for t in detached.tensors().values())
    assert_equal(detached, routing)


@given(problems())
def test_file_round_trip(tmp_path_factory, problem: Problem) -> None:
    path = tmp_path_factory.mktemp("routing") / "one.safetensors"
    routing = routing_of(problem)
    routing.save(path)
    read = Routing.read(path)
    assert_equal(read, routing)
    assert torch.equal(read.state, routing.state)


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    routing = some()
    shared = Routing(routing.scores, routing.experts, routing.weights, routing.scores)
    shared.save(tmp_path / "shared.safetensors")
    assert_equal(Routing.read(tmp_path / "shared.safetensors"), shared)


def truncated(path: Path) -> None:
    some(100).save(path)
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: None, "cannot read .*No such file"),
        (lambda path: path.mkdir(), "cannot read"),
        (lambda path: path.write_text("not a record, not by far"), "not a whole safetensors file"),
        (truncated, "not a whole safetensors file"),
        (lambda path: save_file({"scores": torch.ones(2, 2)}, path), "experts, weights missing"),
        (
            lambda path: save_file(
                {n: torch.ones(2, 2) for n in ("scores", "experts", "weights")}, path
            ),
            "do not fit together",
        ),
    ],
    ids=["missing", "folder", "text", "truncated", "incomplete", "misfit"],
)
def test_other_files_are_refused(write, message: str, tmp_path: Path) -> None:
    path = tmp_path / "record.safetensors"
    write(path)
    with pytest.raises(InputError, match=message) as caught:
        Routing.read(path)
    assert "\n" not in str(caught.value)
