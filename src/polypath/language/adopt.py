"""The routed layers that a checkpoint brings, as `MoE` modules on the checkpoint's own tensors.

Adopting moves the parameters out of the native block into a MoE of the same meaning; nothing is
copied. The emptied block is kept, and releasing moves them back into it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts.activations import Activation, ClampedSwiGLU
from polypath.experts.feedforward import FeedForwardExperts, Kind
from polypath.experts.mixed import ExpertList
from polypath.routing import (
    AuxiliaryLoss,
    FirstCome,
    LinearScorer,
    LoadBalance,
    MoE,
    Router,
    RouterZ,
    SelectionBias,
    SigmoidGate,
    SoftmaxGate,
    TopK,
)
from polypath.routing.gates import Gate

KINDS: dict[str, Kind] = {"silu": "swiglu", "gelu_pytorch_tanh": "geglu"}


@dataclass(frozen=True)
class Reading:
    """How the blocks of a family read as a MoE.

    choice: from the configuration and the number of experts to the selection and the gate.
    parts: from the block's own names to those of the MoE.
    listed: what experts are called that are modules of their own, before their number.
    """

    choice: Callable[[Any, int], tuple[nn.Module, Gate]]
    parts: Mapping[str, str]
    listed: str = ""

    @property
    def scorer_bias(self) -> bool:
        return "router.scorer.bias" in self.parts.values()

    def moves(self, block: Any) -> Mapping[str, str]:
        """The parts of a block, each of its listed experts among them."""
        if not self.listed:
            return self.parts
        every = {f"{self.listed}{i}": f"experts.{i}" for i in range(len(block.experts))}
        return {**self.parts, **every}


def _normalised(config: Any, num_experts: int) -> tuple[TopK, Gate]:
    return TopK(config.num_experts_per_tok), SoftmaxGate("chosen")


def _softmax(config: Any, num_experts: int) -> tuple[TopK, Gate]:
    over: Literal["all", "chosen"] = "chosen" if config.norm_topk_prob else "all"
    return TopK(config.num_experts_per_tok), SoftmaxGate(over)


def _sigmoid(config: Any, num_experts: int) -> tuple[TopK, Gate]:
    bias = SelectionBias(num_experts)
    selection = TopK(config.num_experts_per_tok, bias, config.n_group, config.topk_group)
    return selection, SigmoidGate(config.norm_topk_prob, config.routed_scaling_factor)


def _switch(config: Any, num_experts: int) -> tuple[FirstCome, Gate]:
    return FirstCome(config.expert_capacity), SoftmaxGate("all")


BANK = {name: name for name in ("experts.gate_up_proj", "experts.down_proj")}
OFFSETS = {f"{name}_bias": f"{name}_bias" for name in BANK}
SCORER = {"gate.weight": "router.scorer.weight"}

READINGS: dict[str, Reading] = {
    "olmoe": Reading(_softmax, BANK | SCORER),
    "qwen3_moe": Reading(_softmax, BANK | SCORER),
    "mixtral": Reading(_normalised, BANK | SCORER),
    "deepseek_v3": Reading(
        _sigmoid,
        BANK
        | SCORER
        | {
            "gate.e_score_correction_bias": "router.selection.bias.value",
            "shared_experts": "shared",
        },
    ),
    "gpt_oss": Reading(
        _normalised,
        BANK
        | OFFSETS
        | {"router.weight": "router.scorer.weight", "router.bias": "router.scorer.bias"},
    ),
    "switch_transformers": Reading(
        _switch, {"router.classifier.weight": "router.scorer.weight"}, "experts.expert_"
    ),
}


@dataclass
class Native:
    """The block that an adopted layer came from, emptied.

    parts: from the block's own names to those of the layer. looks: how the layer looked.
    """

    block: Any
    parts: Mapping[str, str]
    looks: str

    def name(self, own: str) -> str:
        """The block's name for a parameter that the layer calls `own`."""
        for native, routed in self.parts.items():
            if own == routed or own.startswith(f"{routed}."):
                return native + own[len(routed) :]
        return own

    def check(self, layer: MoE) -> None:
        """Raise InputError when the layer was changed into something that its block cannot hold."""
        if looks(layer) != self.looks:
            raise InputError(
                f"a layer adopted from {type(self.block).__name__} was changed and has no native "
                "form; put layers of your own in with attach(model, routed)"
            )


def looks(layer: MoE) -> str:
    """What decides what a layer computes, but for the numbers in it: all of it but the losses."""
    router = layer.router
    parts = [*router.named_children()] if isinstance(router, Router) else [("", router)]
    decisive = {name: part for name, part in parts if name != "losses"}
    return f"{decisive} {router.extra_repr()} {layer.experts} {layer.shared}"


def adopt(block: Any, config: Any) -> tuple[MoE, Native]:
    """A MoE that computes what `block` does, with its parameters; the block is left without them.

    In float32 both agree to rounding. In half precision routers here still score in float32, where
    most native ones do not, and may choose otherwise between experts that are nearly equal.
    Raises InputError when there is no bank of experts with the block's activation.
    """
    reading = READINGS[config.model_type]
    with torch.device("meta"):  # only shapes: parameters are moved in
        experts: nn.Module
        if reading.listed:
            num_experts = len(block.experts)
            experts = ExpertList(nn.Identity() for _ in range(num_experts))
        else:
            num_experts = len(block.experts.down_proj)
            experts = _bank(block.experts, config)
        scorer = LinearScorer(config.hidden_size, num_experts, reading.scorer_bias)
    selection, gate = reading.choice(config, num_experts)
    layer = MoE(Router(scorer, selection, gate, _losses(config)), experts)
    parts = reading.moves(block)
    jitter = getattr(config, "router_jitter_noise", 0.0)
    if jitter > 0:
        layer.register_forward_pre_hook(Jitter(jitter))
    for native, own in parts.items():
        _move(block, native, layer, own)
    return layer.train(block.training), Native(block, parts, looks(layer))


def release(layer: MoE, native: Native) -> nn.Module:
    """The native block with the parameters of its adopted layer, which is left without them."""
    for name, own in native.parts.items():
        _move(layer, own, native.block, name)
    return native.block.train(layer.training)


@dataclass(frozen=True)
class Jitter:
    """A pre-hook that multiplies what a layer gets in training by 1 ± noise (Mixtral's option)."""

    noise: float

    def __call__(self, layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if not layer.training:
            return None
        x, *others = args
        return x * torch.empty_like(x).uniform_(1 - self.noise, 1 + self.noise), *others


def _bank(experts: Any, config: Any) -> FeedForwardExperts:
    """An empty bank for a native one; the native module says how its stacked weights lie."""
    num_experts, *sizes = experts.down_proj.shape
    hidden, dim = sizes if experts.is_transposed else sizes[::-1]
    return FeedForwardExperts(
        num_experts,
        dim,
        hidden,
        _activation(experts, config),
        bias=experts.has_bias,
        transposed=experts.is_transposed,
    )


def _activation(experts: Any, config: Any) -> Kind | Activation:
    if not experts.is_concatenated:
        return ClampedSwiGLU(experts.alpha, experts.limit)
    if config.hidden_act not in KINDS:
        raise InputError(
            f"cannot adopt {type(experts).__name__}: its activation is {config.hidden_act!r}; "
            f"known: {', '.join(KINDS)}"
        )
    return KINDS[config.hidden_act]


def _losses(config: Any) -> list[AuxiliaryLoss]:
    """The losses that the configuration weighs; transformers does not divide balance by k."""
    k = getattr(config, "num_experts_per_tok", 1)
    weights = {
        LoadBalance: getattr(config, "router_aux_loss_coef", 0.0) * k,
        RouterZ: getattr(config, "router_z_loss_coef", 0.0),
    }
    return [loss(weight) for loss, weight in weights.items() if weight]


def _move(source: nn.Module, name: str, target: nn.Module, own: str) -> None:
    """Move a parameter, buffer or module by its dotted name, leaving None behind."""
    before, _, last = name.rpartition(".")
    holder = source.get_submodule(before)
    value = getattr(holder, last)
    setattr(holder, last, None)
    before, _, last = own.rpartition(".")
    setattr(target.get_submodule(before), last, value)
