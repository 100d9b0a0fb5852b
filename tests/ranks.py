"""Work for several processes: how tests start them, and what they compute."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor, multiprocessing, nn

from polypath.routing import (
    Entropy,
    Importance,
    LoadBalance,
    MoE,
    RouterZ,
    TopKRouter,
    given,
    losses,
    update_biases,
    whole_batch,
)

Part = tuple[Tensor, Tensor]
"""Things (batch, length, D) and which of them count, (batch, length)."""


def on_ranks(work: Callable[[int], dict[str, Tensor]], world: int, folder: Path) -> list[dict]:
    """What `work(rank)` gives on each of `world` gloo processes. It has to be importable."""
    multiprocessing.spawn(_rank, (work, world, folder), nprocs=world)
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)]


def _rank(rank: int, work: Callable[[int], dict[str, Tensor]], world: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/join",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=60),
    )
    save_file(work(rank), folder / f"{rank}.safetensors")
    dist.destroy_process_group()


# Auxiliary losses of a batch that is seen in parts


class Rotated(nn.Module):
    """A stand-in for experts: things turned by an amount that depends on their routing."""

    def forward(self, x: Tensor, routing) -> Tensor:
        return x + routing.weights.sum(-1, keepdim=True).to(x) * x.roll(1, -1)


def two_layers() -> nn.Module:
    torch.manual_seed(0)

    def layer(gate: str) -> MoE:
        every = [LoadBalance(1.0), LoadBalance(0.5, "sequence"), Importance(2.0), RouterZ(1.0)]
        losses = [*every, Entropy(-0.3)]
        return MoE(TopKRouter(6, 5, 2, gate=gate, losses=losses, bias_rate=0.25), Rotated())

    return nn.Sequential(layer("softmax"), layer("sigmoid")).double()


def batch() -> Part:
    """Seven sequences of four, with padding that differs much from one to the next."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(7, 4, 6, dtype=torch.float64, generator=generator)
    mask = torch.arange(4) < torch.tensor([4, 1, 3, 0, 4, 2, 1])[:, None]
    return x, mask


def losses_of(parts: list[Part], together: bool) -> dict[str, Tensor]:
    """Summed losses, gradients and biases after one step over `parts` by `two_layers`."""
    model = two_layers()

    def run(part: Part) -> Tensor:
        x, mask = part
        with given(mask=mask.flatten()):
            return model(x)

    def step() -> dict[str, Tensor]:
        sums: dict[str, Tensor] = {}
        for part in parts:
            run(part)
            found = losses(model)
            sum(found.values()).backward()
            for name, value in found.items():
                sums[name] = sums.get(name, 0) + value.detach()
        return sums

    if together:
        with whole_batch(model, [lambda part=part: run(part) for part in parts]):
            sums = step()
    else:
        sums = step()
    update_biases(model)
    state = {name: value for name, value in model.state_dict().items() if "bias" in name}
    return sums | {f"grad.{n}": p.grad for n, p in model.named_parameters()} | state


def split(sizes: list[int]) -> list[Part]:
    x, mask = batch()
    return list(zip(x.split(sizes), mask.split(sizes), strict=True))


def losses_on(rank: int) -> dict[str, Tensor]:
    """One part to each of two ranks; then three to one and a larger one to the other.

    Between the two, the first rank looks at its part by itself and without gradients.
    """
    alone = losses_of([split([4, 3])[rank]], together=False)
    own = without_gradients(split([4, 3])[0]) if rank == 0 else {}
    parts = split([1, 2, 1, 3])
    many = losses_of([parts[:3], parts[3:]][rank], together=True)
    kinds = {"alone": alone, "own": own, "many": many}
    return {f"{kind}.{n}": v for kind, found in kinds.items() for n, v in found.items()}


@torch.no_grad()
def without_gradients(part: Part) -> dict[str, Tensor]:
    model, (x, mask) = two_layers(), part
    with given(mask=mask.flatten()):
        model(x)
    return losses(model)
