"""Several processes that train one model: torchrun's ranks, FSDP2, and experts spread over ranks.

One rule scales the loss, on one rank or many: **a rank's loss is its share of the global batch's
loss, and gradients are summed over ranks.** The share of a task is the rank's summed loss divided
by the count of targets on all ranks; auxiliary losses of polypath.routing are shares already. So
the loop calls `backward` on the share and multiplies by nothing: `parallelise` makes FSDP add where
it would average, and `ShardedExperts` add by nature. A small model stays whole on every rank:
`replicate` makes its weights equal, and `sum_gradients` adds.

What takes part in a collective (forward, backward, clipping, gathering a state) runs on all ranks.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from polypath.errors import InputError
from polypath.experts.sharded import ShardedExperts
from polypath.routing import MoE, routed_layers

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
_LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
Value = TypeVar("Value")
_HOW = "start with `torchrun --nproc-per-node N`, or unset RANK, WORLD_SIZE and LOCAL_RANK"


def start(device: str | None = None) -> torch.device:
    """Join the processes that torchrun started, and answer the device of this one.

    device: "cpu" (gloo) or "cuda" (nccl); the GPU where there is one by default.
    Outside torchrun there is nothing to join. Raises InputError when the environment is not whole,
    has more processes than GPUs, or names a place where nobody is met.
    """
    kind = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if not any(name in os.environ for name in _LAUNCHED):
        return torch.device(kind)
    here = _environment()
    if kind == "cpu":
        _join("gloo")
        return torch.device(kind)
    own = torch.device(kind, here["LOCAL_RANK"])
    if own.index >= torch.cuda.device_count():
        raise InputError(
            f"LOCAL_RANK={own.index}, but this machine has {torch.cuda.device_count()} GPUs; "
            "torchrun's --nproc-per-node may be their number at most"
        )
    torch.cuda.set_device(own)
    _join("cpu:gloo,cuda:nccl", device_id=own)
    return own


def _join(backend: str, **options: Any) -> None:
    try:
        dist.init_process_group(backend, **options)
    except dist.DistError as error:
        place = f"MASTER_ADDR={os.environ['MASTER_ADDR']} MASTER_PORT={os.environ['MASTER_PORT']}"
        raise InputError(f"cannot meet the other ranks at {place}: {error}") from error


def _environment() -> dict[str, int]:
    """torchrun's numbers by name; raises InputError for what is missing or wrong."""
    missing = [name for name in (*_NUMBERS, "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise InputError(f"torchrun's environment lacks {', '.join(missing)}; {_HOW}")
    wrong = [name for name in _NUMBERS if not os.environ[name].isdecimal()]
    if wrong:
        raise InputError(f"{wrong[0]}={os.environ[wrong[0]]!r} is not a number; {_HOW}")
    here = {name: int(os.environ[name]) for name in _NUMBERS}
    if here["RANK"] >= here["WORLD_SIZE"]:
        raise InputError(f"RANK={here['RANK']} of WORLD_SIZE={here['WORLD_SIZE']}; {_HOW}")
    return here


def stop() -> None:
    """Leave what `start` joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes files and talks."""
    return rank() == 0


def wait() -> None:
    """Hold every rank until all have come here."""
    if dist.is_initialized():
        dist.barrier()


def summed(value: Tensor) -> Tensor:
    """The sum of a metric over all ranks, the same on each."""
    value = value.detach().clone()
    if dist.is_initialized():
        dist.all_reduce(value)
    return value


def any_rank(flag: bool) -> bool:
    """Whether any rank says so, the same answer on each: ranks stop at the same step or hang."""
    return bool(summed(torch.tensor(int(flag))))


def from_main(value: Value) -> Value:
    """Rank 0's value on every rank, such as the folder that it chose, or what it measured."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def replicate(model: nn.Module) -> None:
    """Give every rank rank 0's weights and buffers; what is spread over ranks stays as it is."""
    if world() == 1:
        return
    for tensor in (*model.parameters(), *model.buffers()):
        if not isinstance(tensor, DTensor):
            dist.broadcast(tensor.detach(), src=0)


def sum_gradients(model: nn.Module) -> None:
    """Add gradients up over ranks, in place; those of DTensors are sums already.

    A parameter that only some ranks reached counts as 0 on the others; one that none reached stays
    without a gradient, as in one process.
    """
    whole = [p for p in model.parameters() if p.requires_grad and not isinstance(p, DTensor)]
    if world() == 1 or not whole:
        return
    reached = summed(torch.tensor([int(p.grad is not None) for p in whole]))
    own = [p for p, ranks in zip(whole, reached.tolist(), strict=True) if ranks]
    if not own:
        return
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    total = summed(torch.cat([grad.flatten() for grad in grads]))
    for p, grad in zip(own, total.split([p.numel() for p in own]), strict=True):
        p.grad = grad.view_as(p).to(p.dtype)


def parallelise(model: nn.Module, shard_experts: bool = False) -> nn.Module:
    """Spread a model over all ranks with FSDP2, in place; every rank takes rank 0's weights.

    shard_experts: experts stay whole on the ranks that own them and rows travel (`ShardedExperts`),
        instead of parameters travelling to the rows.
    Call it with the model on its device and before the optimiser is made: parameters become
    DTensors. Alone, the model stays as it is.
    """
    if world() == 1:
        return model
    replicate(model)
    # Logits are views, which only matters to those who write into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(next(model.parameters()).device.type, (world(),))
    spread: set[nn.Parameter] = set()
    if shard_experts:
        routed = list(routed_layers(model).values())
        banks = dict.fromkeys(moe.experts for moe in routed)  # several layers may share one
        sharded = {bank: ShardedExperts(bank, mesh) for bank in banks}
        for moe in routed:
            moe.experts = sharded[moe.experts]
            spread.update(moe.experts.parameters())
    layers = list(_layers(model))
    common = _common(layers)
    if len(common):
        # A layer's own group would fold them up while another layer still needs them.
        model.add_module("common_to_layers", common)
    for layer in layers:
        fully_shard(layer, mesh=mesh, ignored_params=spread | set(common.parameters()))
    fully_shard(model, mesh=mesh, ignored_params=spread)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            # An expert may have rows on some ranks only; its gradient is zero on the others.
            module.set_reduce_scatter_unused_params(True, recurse=False)
    return model


def _layers(module: nn.Module) -> Iterator[nn.Module]:
    """The entries of the outermost module lists: a decoder's layers."""
    for child in module.children():
        if isinstance(module, nn.ModuleList) and not isinstance(child, nn.ModuleList):
            yield child
        elif not isinstance(child, MoE):  # whose experts do not run on every rank alike
            yield from _layers(child)


def _common(layers: Iterable[nn.Module]) -> nn.ModuleList:
    """The modules with parameters of their own that lie in several layers: a cell, a pool."""
    holders = Counter(module for layer in layers for module in set(layer.modules()))
    return nn.ModuleList(
        module
        for module, count in holders.items()
        if count > 1 and any(True for _ in module.parameters(recurse=False))
    )


def clip_grad_norm(model: nn.Module, max_norm: float) -> Tensor:
    """Scale gradients so that the norm of all of them, on all ranks, is at most `max_norm`.

    Returns the norm before, a scalar, the same on every rank.
    """
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Copies of a model's and its optimiser's tensors, whole and on the CPU, on rank 0.

    model.NAME: parameters (tied ones once) and persistent buffers. optimizer.NAME.KEY: what the
    optimiser keeps of a parameter. Names and shapes do not depend on the number of ranks. All ranks
    call it; the others get {}.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in _named(model).items():
        state[f"model.{name}"] = tensor
        for key, value in optimizer.state.get(tensor, {}).items():
            if isinstance(value, Tensor):
                state[f"optimizer.{name}.{key}"] = value
    # In one order on all ranks, whatever the order in which an optimiser keeps its tensors.
    gathered = ((name, _full(tensor)) for name, tensor in sorted(state.items()))
    return {name: tensor.to("cpu", copy=True) for name, tensor in gathered if is_main()}


def load_full_state(
    model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Tensor]
) -> None:
    """Put back what `full_state` gathered; every rank is given all of it and takes its part.

    Raises InputError when names or shapes are not those of this model.
    """
    load_weights(model, state)
    named = _named(model)
    kept: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith("optimizer."):
            owner, _, key = name.removeprefix("optimizer.").rpartition(".")
            kept.setdefault(owner, {})[key] = _like(named[owner], value)
    described = optimizer.state_dict()
    order = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = {parameter: number for number, parameter in enumerate(order)}
    described["state"] = {numbers[named[owner]]: values for owner, values in kept.items()}
    optimizer.load_state_dict(described)


@torch.no_grad()
def load_weights(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put back the model's part of what `full_state` gathered.

    Raises InputError when names or shapes are not those of this model.
    """
    named = _named(model)
    _check(named, state)
    for name, tensor in named.items():
        tensor.copy_(_like(tensor, state[f"model.{name}"]))


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by their names in a single process, each once."""
    named: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            named[name] = tensor
    return named


def _check(named: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    expected = {f"model.{name}" for name in named}
    given = {name for name in state if name.startswith("model.")}
    kept = {name for name in state if name.startswith("optimizer.")}
    owners = {name.removeprefix("optimizer.").rpartition(".")[0] for name in kept}
    for name in sorted(expected ^ given):
        fault = "lacks" if name in expected else "has an unknown"
        raise InputError(f"this state {fault} {name}; it was saved from another model")
    for name in sorted(owners - named.keys()):
        raise InputError(f"this state keeps an optimiser's tensors of unknown {name!r}")
    for name, tensor in named.items():
        if (found := state[f"model.{name}"].shape) != tensor.shape:
            raise InputError(
                f"model.{name} is {tuple(found)} in this state, {tuple(tensor.shape)} here"
            )


def _full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _like(target: Tensor, full: Tensor) -> Tensor:
    """A copy, spread over ranks as `target` is; what has another shape stays whole."""
    if not isinstance(target, DTensor) or full.shape != target.shape:
        return full.clone()
    here = full.to(target.device)
    return distribute_tensor(here, target.device_mesh, target.placements, src_data_rank=None)
