"""A bank spread over ranks: rows travel to the ranks that own their experts, and come back."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.func import functional_call
from torch.nn import functional as F

from polypath.errors import InputError
from polypath.experts.mixed import ExpertList
from polypath.routing.record import Routing


class ShardedExperts(nn.Module):
    """A bank whose experts lie on different ranks, ⌈E / ranks⌉ on each, in order.

    bank: any bank whose parameters are all stacked, (E, ...) each, with the same values on all
        ranks. They become DTensors, Shard(0) over the mesh; state dicts keep the bank's own names.
    mesh: one dimension, the ranks.

    The contract is the bank's: x (T, D) and a routing over T things and E experts to y (T, D). T
    and K may differ between ranks, and be zero. A thing goes once to each rank that owns experts of
    it, and comes back with their weighted sum. All ranks run forward, and backward, together; an
    expert's gradient is the sum over the rows of all ranks.
    Raises InputError when the bank is not stacked, or too small to give every rank an expert.
    Source: GShard (Lepikhin et al. 2020), section 3.
    """

    def __init__(self, bank: nn.Module, mesh: DeviceMesh) -> None:
        super().__init__()
        self.bank = bank
        self.mesh = mesh
        self.num_experts = _num_experts(bank)
        self.per_rank = -(-self.num_experts // mesh.size())
        if self.per_rank * (mesh.size() - 1) >= self.num_experts:
            raise InputError(
                f"{self.num_experts} experts, {self.per_rank} a rank, leave one of {mesh.size()} "
                "ranks without any; use fewer ranks, or a multiple of their number as experts"
            )
        for module in bank.modules():
            for name, parameter in module.named_parameters(recurse=False):
                own = distribute_tensor(parameter.detach(), mesh, [Shard(0)], src_data_rank=None)
                setattr(module, name, nn.Parameter(own, parameter.requires_grad))
        self.register_state_dict_post_hook(_hide_bank)
        self.register_load_state_dict_pre_hook(_show_bank)

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things to y (T, D)."""
        if routing.num_experts != self.num_experts:
            raise InputError(
                f"a routing over {routing.num_experts} experts for a bank of {self.num_experts}"
            )
        if self.mesh.size() == 1:
            return self.serve(x, routing)
        return self.travel(x, routing)

    def travel(self, x: Tensor, routing: Routing) -> Tensor:
        """Rows go to the owners of their experts, are served there, and come back to be summed."""
        group, ranks = self.mesh.get_group(), self.mesh.size()
        owners = routing.experts // self.per_rank
        owned = owners == torch.arange(ranks, device=x.device)[:, None, None]
        to, things = owned.any(-1).nonzero(as_tuple=True)
        counts = torch.bincount(to, minlength=ranks)
        received, width = _announce(counts, routing.experts.shape[1], group)
        sent = counts.tolist()

        others = ~owned[to, things]
        experts = (routing.experts[things] % self.per_rank).masked_fill(others, -1)
        weights = routing.weights[things].masked_fill(others, 0.0)
        missing = (0, width - others.shape[1])
        going = (F.pad(experts, missing, value=-1), F.pad(weights, missing), x[things])
        experts, weights, rows = (_Exchange.apply(t, sent, received, group) for t in going)
        # The bank reads no scores, only of how many experts they are.
        scores = weights.new_zeros(()).expand(len(rows), self.held)
        served = self.serve(rows, Routing(scores, experts, weights))
        returned = _Exchange.apply(served, received, sent, group)
        return returned.new_zeros(len(x), returned.shape[1]).index_add(0, things, returned)

    def excitations(self, rows: Tensor, stage: str = "gate") -> Tensor:
        """Those of the bank, of all experts on every rank; all ranks ask together.

        Gradients are added up over ranks, as those of what the experts serve.
        """
        asked = functional_call(_Asked(self.bank), self._own("bank."), (rows, stage))
        sizes = torch.Size((asked.shape[0], self.num_experts, asked.shape[2]))
        strides = sizes[1] * sizes[2], sizes[2], 1
        spread = DTensor.from_local(asked, self.mesh, [Shard(1)], shape=sizes, stride=strides)
        return spread.full_tensor(grad_placements=[Partial()])

    def _own(self, prefix: str = "") -> dict[str, Tensor]:
        """What lies on this rank of the bank's parameters, by name."""
        spread = cast("Iterable[tuple[str, DTensor]]", self.bank.named_parameters())
        return {prefix + name: parameter.to_local() for name, parameter in spread}

    @property
    def held(self) -> int:
        """How many experts lie on this rank."""
        return min(self.per_rank, self.num_experts - self.per_rank * self.mesh.get_local_rank())

    def serve(self, rows: Tensor, routing: Routing) -> Tensor:
        """y (R, D) of rows (R, D) that are here, by the experts that are here."""
        own = self._own()
        y = functional_call(self.bank, own, (rows, routing))
        if len(rows):
            return y
        # Whoever got no rows must still take part in the backward of the others.
        return y + sum(t.flatten()[:0].sum() for t in (rows, routing.weights, *own.values()))

    def extra_repr(self) -> str:
        return f"{self.num_experts} experts over {self.mesh.size()} ranks"


class _Asked(nn.Module):
    """A bank asked for its excitations, in the form in which parameters can be put in place."""

    def __init__(self, bank: nn.Module) -> None:
        super().__init__()
        self.bank = bank

    def forward(self, rows: Tensor, stage: str) -> Tensor:
        return cast(Any, self.bank).excitations(rows, stage)


class _Exchange(torch.autograd.Function):
    """all_to_all of rows (sum(sent), ...) to (sum(received), ...); gradients travel back."""

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        arrived = rows.new_empty(sum(received), *rows.shape[1:])
        dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group)
        return arrived

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Exchange.apply(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _announce(sent: Tensor, width: int, group: dist.ProcessGroup) -> tuple[list[int], int]:
    """How many rows come from each rank, and the widest routing of all ranks.

    sent: (ranks,) int64, rows for each rank. width: slots per thing here.
    """
    told = torch.stack([sent, torch.full_like(sent, width)], dim=1)
    heard = torch.empty_like(told)
    dist.all_to_all_single(heard, told, group=group)
    received, widths = heard.T.tolist()
    return received, max(widths)


def _num_experts(bank: nn.Module) -> int:
    if hasattr(bank, "readings"):
        raise InputError(
            f"{type(bank).__name__} cannot be spread over ranks: the layer's router reads all of "
            "them for every thing"
        )
    sizes = {tuple(p.shape[:1]) for p in bank.parameters()}
    stacked = len(sizes) == 1 and sizes != {()} and next(bank.buffers(), None) is None
    if isinstance(bank, ExpertList) or not stacked:
        raise InputError(
            f"{type(bank).__name__} cannot be spread over ranks: every parameter would have to be "
            "stacked over the same number of experts, without buffers beside them"
        )
    return sizes.pop()[0]


def _hide_bank(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, f"{prefix}bank.", prefix)


def _show_bank(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, f"{prefix}bank.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    for name in [name for name in state if name.startswith(old)]:
        state[new + name.removeprefix(old)] = state.pop(name)
