"""Two ranks that train a model against one process that sees the whole batch."""

import itertools
import json
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.experts.shared import SharedExpert
from polypath.language import RoutedLayers, attach
from polypath.routing import (
    LoadBalance,
    MoE,
    RouterZ,
    Routes,
    Routing,
    TopKRouter,
    given,
    losses,
    record,
    replay,
    update_biases,
    whole_batch,
)
from polypath.training import distribution
from torchruns import as_rank, torchrun

WORDS, LENGTH, ROWS, STEPS, MIDDLE = 13, 6, 5, 6, 3


class Block(nn.Module):
    """Mixing over time and a routed layer."""

    def __init__(self, dim: int, scorer: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mix = nn.Linear(LENGTH, LENGTH)
        router = TopKRouter(
            dim, 4, 2, scorer, "softmax", [LoadBalance(0.1), RouterZ(0.05)], bias_rate=0.02
        )
        self.moe = MoE(router, FeedForwardExperts(4, dim, 16), SharedExpert(dim, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(x.mT).mT
        return x + self.moe(self.norm(x))


class Decoder(nn.Module):
    """Embedding, blocks and a head that is tied to the embedding."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(WORDS, dim)
        self.blocks = nn.ModuleList(Block(dim, scorer) for scorer in ("linear", "cosine"))
        self.head = nn.Linear(dim, WORDS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.embed(input_ids)
        with given(mask=attention_mask.flatten().bool()):
            for block in self.blocks:
                x = block(x)
        return self.head(x)


def blocks() -> nn.Module:
    return Decoder().double()


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=WORDS,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        initializer_range=0.3,
    )
    routed = RoutedLayers(
        num_experts=5, k=2, bias_rate=0.02, losses={"load_balance": 0.1, "router_z": 0.05}
    )
    return attach(transformers.LlamaForCausalLM(config), routed, layers=[0, 2])


MODELS: dict[str, Callable[[], nn.Module]] = {"blocks": blocks, "llama": llama}
ARMS = list(itertools.product(MODELS, (False, True)))


def batch(step: int) -> tuple[Tensor, Tensor]:
    """Tokens (ROWS, LENGTH + 1) of the global batch of a step, and which are not padding."""
    random = torch.Generator().manual_seed(step)
    tokens = torch.randint(0, WORDS, (ROWS, LENGTH + 1), generator=random)
    ends = torch.randint(2, LENGTH + 2, (ROWS, 1), generator=random)
    return tokens, torch.arange(LENGTH + 1) < ends


class Training:
    """A loop as a user would write it, over micro-batches; `first` keeps the first gradients."""

    def __init__(self, model: str, shard_experts: bool = False, parts: int = 1) -> None:
        torch.manual_seed(distribution.rank())  # rank 0's weights become everybody's
        self.model = distribution.parallelise(MODELS[model](), shard_experts)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=0.02, weight_decay=0.1)
        self.parts = parts
        self.first: dict[str, Tensor] = {}

    def rows(self, step: int) -> list[tuple[Tensor, Tensor]]:
        """This rank's micro-batches."""
        own = torch.arange(ROWS).chunk(distribution.world())[distribution.rank()]
        tokens, real = (t[own].chunk(self.parts) for t in batch(step))
        return list(zip(tokens, real, strict=True))

    def nats(self, tokens: Tensor, real: Tensor) -> Tensor:
        """The summed cross-entropy of targets that are not padding."""
        out = self.model(input_ids=tokens[:, :-1], attention_mask=real[:, :-1].long())
        logits = out if isinstance(out, Tensor) else out.logits
        return F.cross_entropy(logits[real[:, 1:]], tokens[:, 1:][real[:, 1:]], reduction="sum")

    def backward(self, step: int) -> Tensor:
        """Gradients of the step's batch; this rank's share of its loss."""
        targets = batch(step)[1][:, 1:].sum()
        parts = self.rows(step)
        passes = [lambda part=part: self.nats(*part) for part in parts]
        share = torch.zeros(())
        with whole_batch(self.model, passes) if len(parts) > 1 else nullcontext():
            for run in passes:
                loss = run() / targets + sum(losses(self.model).values())
                loss.backward()
                share = share + loss.detach()
        return share

    def run(self, start: int, end: int) -> list[tuple[float, float]]:
        """Train; the loss of the global batch and the norm of its gradient, for each step."""
        history = []
        for step in range(start, end):
            share = self.backward(step)
            if step == 0:
                self.first = {
                    name: (p.grad.full_tensor() if isinstance(p, DTensor) else p.grad).clone()
                    for name, p in self.model.state_dict(keep_vars=True).items()
                    if p.requires_grad
                }
            norm = distribution.clip_grad_norm(self.model, 0.5)
            self.optimizer.step()
            self.optimizer.zero_grad()
            update_biases(self.model)
            history.append((float(distribution.summed(share)), float(norm)))
        return history

    @property
    def state(self) -> dict[str, Tensor]:
        return distribution.full_state(self.model, self.optimizer)

    def load(self, state: dict[str, Tensor]) -> None:
        distribution.load_full_state(self.model, self.optimizer, state)

    def routes(self) -> Routes:
        """Where the first batch goes; it goes there again in a replay."""
        with torch.no_grad(), record(self.model) as routes:
            nats = [self.nats(*part) for part in self.rows(0)]
        with torch.no_grad(), replay(self.model, routes):
            assert nats == [self.nats(*part) for part in self.rows(0)]
        return routes


def work(folder: Path) -> None:
    """Both models in both ways, into files: trained through, and from one process's middle."""
    if distribution.is_main():
        (folder / "main was here").touch()
    distribution.wait()
    assert (folder / "main was here").exists()
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
