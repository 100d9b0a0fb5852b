"""The decoders that can host routed layers, and where their parts are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from polypath.errors import InputError
from polypath.routing import MoE


def _intermediate_size(config: Any) -> int:
    return config.intermediate_size


def _moe_intermediate_size(config: Any) -> int:
    return config.moe_intermediate_size


def _gpt2_width(config: Any) -> int:
    return config.n_inner or 4 * config.n_embd


@dataclass(frozen=True)
class Family:
    """Where a family of decoders keeps its parts.

    layers: the decoder's list of layers. attention, mlp: modules of a layer.
    projection: of an attention, the map to its output.
    width: from the configuration to the width of a feed-forward layer, or of an expert.
    pairs: the host expects (y, weights of the chosen experts) of its routed layers, not y alone.
    """

    layers: str = "layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    projection: str = "o_proj"
    width: Callable[[Any], int] = _intermediate_size
    pairs: bool = False


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(),
    "gemma3_text": Family(),
    "gpt2": Family(layers="h", attention="attn", projection="c_proj", width=_gpt2_width),
    "olmoe": Family(),
    "mixtral": Family(),
    "qwen3_moe": Family(width=_moe_intermediate_size),
    "deepseek_v3": Family(width=_moe_intermediate_size),
    "gpt_oss": Family(pairs=True),
}


@dataclass
class Host:
    """What a decoder that hosts routed layers keeps about them.

    origins: what each routed layer was made from, by its index: RoutedLayers, the emptied native
        block of an adopted one, or None where a function made it.
    handles: of the hooks through which the decoder tells its layers their context.
    """

    origins: dict[int, Any] = field(default_factory=dict)
    handles: list[RemovableHandle] = field(default_factory=list)


@dataclass(frozen=True)
class Decoder:
    """The decoder inside a model: the module that runs the layers, and its family."""

    module: PreTrainedModel
    family: Family

    @property
    def layers(self) -> nn.ModuleList:
        return getattr(self.module, self.family.layers)

    @property
    def host(self) -> Host:
        # In the module's own dictionary, so that copies of the model carry it.
        return vars(self.module).setdefault("_polypath_host", Host())

    def routed(self) -> dict[int, MoE]:
        """The routed layers by their index, from below."""
        mlps = {index: self.mlp(index) for index in range(len(self.layers))}
        return {index: mlp for index, mlp in mlps.items() if isinstance(mlp, MoE)}

    def mlp(self, index: int) -> nn.Module:
        """The feed-forward part of layer `index`, dense or routed."""
        return getattr(self.layers[index], self.family.mlp)

    def put(self, index: int, mlp: nn.Module) -> None:
        """Put `mlp` in the place of the feed-forward part of layer `index`."""
        setattr(self.layers[index], self.family.mlp, mlp)

    def attention(self, index: int) -> nn.Module:
        return getattr(self.layers[index], self.family.attention)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of a model; raises InputError when its family is not a known host."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is not a transformers model; attach takes a PreTrainedModel"
        )
    module = model.get_decoder()
    kind = module.config.model_type
    if kind not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} ({kind}) is not a host of routed layers; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return Decoder(module, FAMILIES[kind])
