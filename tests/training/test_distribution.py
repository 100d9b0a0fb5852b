"""Two ranks that train a model against one process that sees the whole batch."""

import itertools
import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from loops import MODELS, Training, blocks, whole_gradients
from polypath.errors import InputError
from polypath.experts import ExpertList
from polypath.routing import MoE, Routes, Routing, TopKRouter, given
from polypath.training import distribution
from torchruns import as_rank, torchrun

STEPS, MIDDLE = 6, 3
ARMS = list(itertools.product(MODELS, (False, True)))


CHOSEN = torch.tensor([[0, 1], [1, 0], [1, -1], [1, -1]])
"""Experts of two things on each rank: rank 1 has no rows for expert 0, nobody has any for 2."""


def several(rank: int, ranks: int) -> dict[str, Tensor]:
    """Gradients of a routed layer that lies in no list, on this rank's share of four things."""
    torch.manual_seed(0)
    bank = ExpertList(nn.Linear(4, 4) for _ in range(3))
    model = nn.Sequential(nn.Linear(4, 4), MoE(TopKRouter(4, 3, 2), bank))
    x, experts = torch.randn(4, 4).chunk(ranks)[rank], CHOSEN.chunk(ranks)[rank]
    distribution.parallelise(model)
    with given(experts=experts):
        model(x).square().sum().backward()
    return whole_gradients(model)


def agree(folder: Path) -> None:
    rank = distribution.rank()
    assert [distribution.any_rank(flag) for flag in (False, rank == 1, True)] == [False, True, True]
    assert distribution.from_main(f"rank {rank}") == "rank 0"
    assert distribution.summed(torch.tensor(rank + 1.0)) == 3.0
    if distribution.is_main():
        (folder / "main was here").touch()
    distribution.wait()
    assert (folder / "main was here").exists()


def work(folder: Path) -> None:
    """Both models in both ways, into files: trained through, and from one process's middle."""
    agree(folder)
    save_file(several(distribution.rank(), 2), folder / f"several {distribution.rank()}")
    for model, shard in ARMS:
        own = folder / f"{model} {shard}"
        training = Training(model, shard, parts=2 if model == "blocks" else 1)
        history = training.run(0, MIDDLE)
        middle = training.state
        history += training.run(MIDDLE, STEPS)
        end = training.state
        training.routes().save(f"{own} routes {distribution.rank()}")
        resumed = Training(model, shard)
        whole = load_file(folder / f"{model} middle")
        resumed.load(whole)
        same = resumed.state
        resumed.run(MIDDLE, STEPS)
        resumed_end = resumed.state
        if not distribution.is_main():
            assert middle == end == same == resumed_end == {}
            continue
        torch.testing.assert_close(same, whole, rtol=0, atol=0)
        Path(f"{own} history").write_text(json.dumps(history))
        save_file(training.first, f"{own} gradients")
        save_file(middle, f"{own} middle")
        save_file(end, f"{own} end")
        save_file(resumed_end, f"{own} resumed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process and two ranks wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    for model in MODELS:
        alone = Training(model)
        history = alone.run(0, MIDDLE)
        save_file(alone.state, folder / f"{model} middle")
        history += alone.run(MIDDLE, STEPS)
        save_file(alone.state, folder / f"{model} end")
        save_file(alone.first, folder / f"{model} gradients")
        alone.routes().save(folder / f"{model} routes")
        (folder / f"{model} history").write_text(json.dumps(history))
    torchrun(__file__, folder)
    return folder


def close(model: str) -> dict[str, float]:
    """float64, or float32 whose rounding Adam has made larger where gradients are tiny."""
    return {"rtol": 1e-9, "atol": 1e-10} if model == "blocks" else {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(("model", "shard"), ARMS)
def test_losses_and_norms_are_those_of_one_process(model: str, shard: bool, folder: Path) -> None:
    expected, found = (
        torch.tensor(json.loads((folder / f"{name} history").read_text()), dtype=torch.float64)
        for name in (model, f"{model} {shard}")
    )
    torch.testing.assert_close(found, expected, **close(model))
    assert (expected[:, 1] > 0.5).any()  # clipping took part


@pytest.mark.parametrize("what", ["gradients", "middle", "end", "resumed"])
@pytest.mark.parametrize(("model", "shard"), ARMS)
def test_states_are_those_of_one_process(model: str, shard: bool, what: str, folder: Path) -> None:
    expected = load_file(folder / f"{model} {'end' if what == 'resumed' else what}")
    found = load_file(folder / f"{model} {shard} {what}")
    torch.testing.assert_close(found, expected, **close(model))


@pytest.mark.parametrize(("model", "shard"), ARMS)
def test_one_process_resumes_what_two_ranks_saved(model: str, shard: bool, folder: Path) -> None:
    alone = Training(model)
    alone.load(load_file(folder / f"{model} {shard} middle"))
    alone.run(MIDDLE, STEPS)
    torch.testing.assert_close(alone.state, load_file(folder / f"{model} end"), **close(model))


@pytest.mark.parametrize(("model", "shard"), ARMS)
def test_routes_are_recorded_on_every_rank(model: str, shard: bool, folder: Path) -> None:
    expected = Routes.read(folder / f"{model} routes").joined()
    found = [Routes.read(folder / f"{model} {shard} routes {rank}").joined() for rank in (0, 1)]
    for name, routing in expected.items():
        joined = Routing.cat([part[name] for part in found])
        assert torch.equal(joined.experts, routing.experts)
        assert torch.equal(joined.mask, routing.mask)


def test_experts_may_have_rows_on_some_ranks_only(folder: Path) -> None:
    expected = several(0, 1)
    for rank in range(2):
        torch.testing.assert_close(load_file(folder / f"several {rank}"), expected)


def test_a_state_comes_back_bit_for_bit() -> None:
    saved = Training("blocks")
    saved.run(0, 2)
    state = saved.state
    other = Training("blocks")
    other.load(state)
    torch.testing.assert_close(other.state, state, rtol=0, atol=0)
    assert other.run(2, 4) == saved.run(2, 4)


def test_a_state_is_a_copy() -> None:
    training = Training("blocks")
    training.run(0, 1)
    state = training.state
    before = {name: tensor.clone() for name, tensor in state.items()}
    training.run(1, 2)
    training.load(state)
    training.run(1, 2)
    torch.testing.assert_close(state, before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("model.embed.weight"), "lacks model.embed.weight"),
        (lambda s: s.update({"model.x": torch.ones(1)}), "has an unknown model.x"),
        (lambda s: s.update({"optimizer.x.step": torch.ones(1)}), "unknown 'x'"),
        (
            lambda s: s.update({"model.embed.weight": torch.ones(2, 8)}),
            r"model.embed.weight is \(2, 8\) in this state, \(13, 8\) here",
        ),
    ],
)
def test_a_state_of_another_model_is_refused(change: Callable, message: str) -> None:
    training = Training("blocks")
    training.run(0, 1)
    state = training.state
    change(state)
    with pytest.raises(InputError, match=message):
        training.load(state)


TORCHRUN = {
    "RANK": "0",
    "WORLD_SIZE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str | None]], None]:
    """Sets what torchrun would set, but for some changes; None takes a variable away."""

    def change(changes: dict[str, str | None]) -> None:
        for name, value in (TORCHRUN | changes).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return change


def test_outside_torchrun_a_process_is_alone(environment: Callable) -> None:
    environment(dict.fromkeys(TORCHRUN))
    assert distribution.start("cpu") == torch.device("cpu")
    assert (distribution.rank(), distribution.world(), distribution.is_main()) == (0, 1, True)
    assert distribution.summed(torch.tensor(3.0)) == 3.0
    assert [distribution.any_rank(flag) for flag in (False, True)] == [False, True]
    assert distribution.from_main("here") == "here"
    model = blocks()
    assert not any(
        isinstance(p, DTensor) for p in distribution.parallelise(model, True).parameters()
    )
    distribution.stop()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MASTER_ADDR": None, "MASTER_PORT": None}, "lacks MASTER_PORT, MASTER_ADDR; start with"),
        ({"LOCAL_RANK": None}, "lacks LOCAL_RANK; start with `torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE='two' is not a number"),
        ({"RANK": "-1"}, "RANK='-1' is not a number"),
        ({"RANK": "3"}, "RANK=3 of WORLD_SIZE=1"),
    ],
)
def test_a_wrong_environment_is_told(
    environment: Callable, changes: dict[str, str | None], message: str
) -> None:
    environment(changes)
    with pytest.raises(InputError, match=message):
        distribution.start("cpu")


def test_a_taken_port_is_told(environment: Callable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        environment({"MASTER_PORT": str(server.getsockname()[1])})
        with pytest.raises(InputError, match="MASTER_PORT"):
            distribution.start("cpu")


if __name__ == "__main__":
    as_rank(work)
