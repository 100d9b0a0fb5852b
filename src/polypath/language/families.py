"""The models that can host routed layers, and where their parts are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def _decoder(model: PreTrainedModel) -> Any:
    return model.get_decoder()


def _detector(model: PreTrainedModel) -> Any:
    """Grounding DINO's decoder, whose queries are few; its encoder stays as it is."""
    return next(m for m in model.modules() if type(m).__name__ == "GroundingDinoDecoder")


def _stacks(model: PreTrainedModel) -> Any:
    """The module that has an encoder and a decoder."""
    return model.base_model


def _blocks(module: Any) -> list[nn.Module]:
    return [*module.encoder.block, *module.decoder.block]


@dataclass(frozen=True)
class Family:
    """Where a family of models keeps its parts.

    body: from a model to the module that runs the layers. layers: its list of layers, by name, or a
        function that lists them. attention, mlp: modules of a layer, by dotted name.
    absorbed: modules of a layer that run before `mlp` and are part of its network; they become
        identities where a routed layer takes its place.
    projection: of an attention, the map to its output.
    width: from the configuration to the width of a feed-forward layer, or of an expert.
    activation: the configuration's name for it.
    pairs: the host expects (y, weights of the chosen experts) of its routed layers, not y alone.
    tells: the layers can be told a context through the arguments of their attentions; others know
        the layout of their things, and what a `given` block says.
    """

    body: Callable[[PreTrainedModel], Any] = _decoder
    layers: str | Callable[[Any], list[nn.Module]] = "layers"
    attention: str = "self_attn"
    mlp: str = "mlp"
    absorbed: tuple[str, ...] = ()
    projection: str = "o_proj"
    width: Callable[[Any], int] = _intermediate_size
    activation: str = "hidden_act"
    pairs: bool = False
    tells: bool = True


FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "qwen3": Family(),
    "gemma": Family(),
    "gemma2": Family(activation="hidden_activation"),
    "gemma3_text": Family(activation="hidden_activation"),
    "gpt2": Family(
        layers="h",
        attention="attn",
        projection="c_proj",
        width=_gpt2_width,
        activation="activation_function",
    ),
    "olmoe": Family(),
    "mixtral": Family(),
    "qwen3_moe": Family(width=_moe_intermediate_size),
    "deepseek_v3": Family(width=_moe_intermediate_size),
    "gpt_oss": Family(pairs=True),
    "switch_transformers": Family(
        body=_stacks,
        layers=_blocks,
        attention="layer.0.SelfAttention",
        mlp="layer.-1.mlp",
        width=lambda config: config.d_ff,
        activation="dense_act_fn",
        tells=False,
    ),
    "grounding-dino": Family(
        body=_detector,
        mlp="fc2",
        absorbed=("fc1", "activation_fn"),
        width=lambda config: config.decoder_ffn_dim,
        activation="activation_function",
        tells=False,
    ),
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
    """What hosts routed layers inside a model: the module that runs the layers, and its family."""

    module: PreTrainedModel
    family: Family

    @property
    def layers(self) -> Sequence[nn.Module]:
        """The layers, from below; an encoder's come before a decoder's."""
        where = self.family.layers
        return getattr(self.module, where) if isinstance(where, str) else where(self.module)

    @property
    def host(self) -> Host:
        # In the module's own dictionary, so that copies of the model carry it.
        return vars(self.module).setdefault("_polypath_host", Host())

    def routed(self) -> dict[int, MoE]:
        """The routed layers by their index, from below."""
        mlps = {index: self.mlp(index) for index in range(len(self.layers))}
        return {index: mlp for index, mlp in mlps.items() if isinstance(mlp, MoE)}

    def mlp(self, index: int) -> nn.Module:
        """The feed-forward part of layer `index`, dense or routed, or the last map of it."""
        return _reach(self.layers[index], self.family.mlp)

    def network(self, index: int) -> list[nn.Module]:
        """The modules that the feed-forward part of layer `index` is made of, in order."""
        before = [getattr(self.layers[index], name) for name in self.family.absorbed]
        return [*before, self.mlp(index)]

    def put(self, index: int, mlp: nn.Module) -> None:
        """Put `mlp` in the place of the feed-forward part of layer `index`."""
        layer = self.layers[index]
        before, _, name = self.family.mlp.rpartition(".")
        setattr(_reach(layer, before), name, mlp)
        for absorbed in self.family.absorbed:
            setattr(layer, absorbed, nn.Identity())

    def attention(self, index: int) -> nn.Module:
        return _reach(self.layers[index], self.family.attention)


def _reach(layer: Any, path: str) -> Any:
    """A part of a layer by its dotted name, where numbers count in lists, from the end too."""
    for name in path.split(".") if path else []:
        layer = layer[int(name)] if name.lstrip("-").isdigit() else getattr(layer, name)
    return layer


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The decoder of a model; raises InputError when its family is not a known host."""
    if not isinstance(model, PreTrainedModel):
        raise InputError(
            f"{type(model).__name__} is not a transformers model; attach takes a PreTrainedModel"
        )
    kind = model.config.model_type
    if kind not in FAMILIES:  # the language model inside a larger one
        kind = model.get_decoder().config.model_type
    if kind not in FAMILIES:
        raise InputError(
            f"{type(model).__name__} ({kind}) is not a host of routed layers; "
            f"supported: {', '.join(FAMILIES)}"
        )
    return Decoder(FAMILIES[kind].body(model), FAMILIES[kind])
