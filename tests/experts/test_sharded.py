"""Experts on two ranks against the same bank in one process, which sees the rows of both."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from polypath.errors import InputError
from polypath.experts import ExpertList, FeedForwardExperts
from polypath.experts.sharded import ShardedExperts
from polypath.routing import Routing
from torchruns import as_rank, torchrun

D, HIDDEN, RANKS = 8, 12, 2


@dataclass(frozen=True)
class Case:
    """Rows of two ranks; each rank has its own number of things and of slots."""

    num_experts: int = 4
    things: tuple[int, int] = (7, 5)
    slots: tuple[int, int] = (2, 2)
    experts: tuple[int, ...] | None = None  # those that are chosen; all when None
    empty: float = 0.0  # the share of empty slots
    kind: str = "swiglu"
    bias: bool = False
    dtype: torch.dtype = torch.float64
    engine: str | None = None
    x_grad: bool = True
    weights_grad: bool = True

    def bank(self, engine: str | None = "reference") -> FeedForwardExperts:
        torch.manual_seed(0)
        bank = FeedForwardExperts(self.num_experts, D, HIDDEN, self.kind, self.bias, engine=engine)
        for parameter in bank.parameters():
            nn.init.normal_(parameter, std=0.5)
        return bank.to(self.dtype)

    def rows(self, rank: int) -> dict[str, Tensor]:
        """What a rank has: x, experts and weights of a routing, and the gradient of its y."""
        random = torch.Generator().manual_seed(1 + rank)
        things, slots = self.things[rank], self.slots[rank]
        chosen = torch.tensor(self.experts or range(self.num_experts))
        order = torch.rand(things, len(chosen), generator=random).argsort(1)[:, :slots]
        experts = chosen[order].masked_fill(
            torch.rand(things, slots, generator=random) < self.empty, -1
        )
        weights = torch.rand(things, slots, generator=random).masked_fill(experts < 0, 0.0)
        x, grad = torch.randn(2, things, D, generator=random).to(self.dtype)
        return {
            "x": x.requires_grad_(self.x_grad),
            "experts": experts,
            "weights": weights.requires_grad_(self.weights_grad),
            "grad": grad,
        }

    def serve(self, bank: nn.Module, rank: int) -> dict[str, Tensor]:
        """y, and the gradients of x and weights; what was not reached has a gradient of zero."""
        rows = self.rows(rank)
        scores = torch.zeros(self.things[rank], self.num_experts)
        y = bank(rows["x"], Routing(scores, rows["experts"], rows["weights"]))
        if y.requires_grad:
            y.backward(rows["grad"])
        return {"y": y.detach(), "x": gradient(rows["x"]), "weights": gradient(rows["weights"])}


def gradient(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad


CASES = {
    "plain": Case(),
    "bias": Case(bias=True, kind="gelu"),
    "one expert a rank": Case(num_experts=2, slots=(1, 1)),
    "uneven experts": Case(num_experts=5, slots=(3, 3)),
    "all experts": Case(slots=(4, 4)),
    "slots differ": Case(slots=(1, 3)),
    "empty slots": Case(slots=(3, 3), empty=0.6),
    "nothing chosen": Case(empty=1.0),
    "all rows to rank 1": Case(experts=(2, 3)),
    "an expert without rows": Case(experts=(0, 1, 3)),
    "no rows on rank 0": Case(things=(0, 5)),
    "no rows on rank 0, all to it": Case(things=(0, 5), experts=(0, 1)),
    "no rows at all": Case(things=(0, 0)),
    "x without gradient": Case(x_grad=False, things=(0, 5), experts=(0, 1)),
    "weights without gradient": Case(weights_grad=False),
    "only the bank learns": Case(x_grad=False, weights_grad=False, experts=(2, 3)),
    "bfloat16": Case(dtype=torch.bfloat16),
}
for engine in ("stream", "grouped"):
    single = {"dtype": torch.float32, "engine": engine, "bias": True}
    CASES |= {
        f"{engine}": Case(**single),
        f"{engine}, no rows on rank 0": Case(**single, things=(0, 5), experts=(2, 3)),
        f"{engine}, all rows to rank 1": Case(**single, experts=(2, 3)),
        f"{engine}, nothing chosen": Case(**single, empty=1.0),
    }


def work(folder: Path) -> None:
    """Every case on this rank, into a file; rank 0 adds the whole gradients of the bank."""
    mesh = init_device_mesh("cpu", (RANKS,))
    for name, case in CASES.items():
        sharded = ShardedExperts(case.bank(case.engine), mesh)
        out = case.serve(sharded, mesh.get_rank())
        for parameter, tensor in sharded.bank.named_parameters():
            out[f"bank.{parameter}"] = tensor.grad.full_tensor()
        save_file(out, folder / f"{name} {mesh.get_rank()}")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that two ranks wrote all cases into."""
    folder = tmp_path_factory.mktemp("ranks")
    torchrun(__file__, folder)
    return folder


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_equal_one_bank(name: str, outputs: Path) -> None:
    case = CASES[name]
    bank = case.bank()
    expected = [case.serve(bank, rank) for rank in range(RANKS)]  # gradients of the bank add up
    close = {"rtol": 5e-2, "atol": 5e-2} if case.dtype == torch.bfloat16 else {}
    for rank in range(RANKS):
        found = load_file(outputs / f"{name} {rank}")
        gradients = {f"bank.{n}": gradient(p) for n, p in bank.named_parameters()}
        torch.testing.assert_close(found, expected[rank] | gradients, **close)


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[DeviceMesh]:
    """A mesh of as many ranks as the test asks for, of which this process is one; all are mute."""
    ranks = request.param
    distributed.init_process_group("fake", store=FakeStore(), rank=ranks - 1, world_size=ranks)
    yield init_device_mesh("cpu", (ranks,))
    distributed.destroy_process_group()


@pytest.mark.parametrize("mesh", [1], indirect=True)
def test_one_rank_is_the_bank_itself(mesh: DeviceMesh) -> None:
    case = CASES["empty slots"]
    bank, sharded = case.bank(), ShardedExperts(case.bank(), mesh)
    assert torch.equal(case.serve(sharded, 0)["y"], case.serve(bank, 0)["y"])
    for whole, spread in zip(bank.parameters(), sharded.parameters(), strict=True):
        assert torch.equal(spread.grad.to_local(), whole.grad)


@pytest.mark.parametrize("mesh", [3], indirect=True)
def test_each_rank_keeps_its_slice_alone(mesh: DeviceMesh) -> None:
    bank = FeedForwardExperts(7, D, HIDDEN)
    bank.down_proj.requires_grad_(False)
    whole = {name: p.detach().clone() for name, p in bank.named_parameters()}
    sharded = ShardedExperts(bank, mesh)
    for name, parameter in sharded.bank.named_parameters():
        own = parameter.to_local()
        assert torch.equal(own, whole[name][6:])  # 3 + 3 + 1, and this is the last rank
        assert own.untyped_storage().nbytes() == own.nbytes
        assert parameter.requires_grad == (name != "down_proj")


@pytest.mark.parametrize("mesh", [2], indirect=True)
def test_state_dicts_keep_the_names_of_the_bank(mesh: DeviceMesh) -> None:
    model = nn.Sequential(nn.Identity(), ShardedExperts(CASES["bias"].bank(), mesh))
    plain = nn.Sequential(nn.Identity(), CASES["bias"].bank())
    state = model.state_dict()
    assert state.keys() == plain.state_dict().keys()
    with torch.no_grad():
        model[1].bank.down_proj.mul_(0)
    model.load_state_dict({name: tensor + 1 for name, tensor in state.items()})
    assert model[1].bank.down_proj.to_local().eq(1).all()


@pytest.mark.parametrize("mesh", [3], indirect=True)
def test_too_few_experts_are_refused(mesh: DeviceMesh) -> None:
    with pytest.raises(InputError, match="4 experts, 2 a rank, leave one of 3 ranks without any"):
        ShardedExperts(CASES["plain"].bank(), mesh)


@pytest.mark.parametrize("mesh", [2], indirect=True)
def test_what_cannot_be_spread_is_refused(mesh: DeviceMesh) -> None:
    class Normed(FeedForwardExperts):
        def __init__(self) -> None:
            super().__init__(4, D, HIDDEN)
            self.norm = nn.LayerNorm(D)

    alike = ExpertList(nn.Linear(4, 4) for _ in range(4))  # shapes alone do not tell
    for bank in (Normed(), nn.Identity(), nn.BatchNorm1d(4), alike):
        with pytest.raises(InputError, match=f"{type(bank).__name__} cannot be spread over ranks"):
            ShardedExperts(bank, mesh)
    sharded = ShardedExperts(CASES["plain"].bank(), mesh)
    with pytest.raises(InputError, match="a routing over 3 experts for a bank of 4"):
        rows = CASES["plain"].rows(0)
        sharded(rows["x"], Routing(torch.zeros(7, 3), rows["experts"], rows["weights"]))


if __name__ == "__main__":
    as_rank(work)
