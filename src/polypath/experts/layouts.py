"""Where models keep their experts' matrices: stacked, fused, interleaved, transposed or apart.

Nothing here knows a model family: layouts are read from what modules say about themselves and from
the field's names for projections. What cannot be read so is not guessed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from polypath.experts.activations import ClampedSwiGLU
from polypath.experts.factored import FactoredExperts
from polypath.experts.feedforward import FeedForwardExperts
from polypath.experts.shared import SharedExpert

# The field's names for the three projections of a gated network, and for the two of a plain one.
PROJECTIONS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "wi_0": "gate",
    "wi_1": "up",
    "wi": "up",
    "wo": "down",
    "fc1": "up",
    "fc2": "down",
    "c_fc": "up",
    "c_proj": "down",
}
FUSED = "gate_up_proj"

# Stacked modules of transformers that do not say how their weights lie: (transposed, interleaved).
SILENT = {"Llama4TextExperts": (True, False)}


@dataclass(frozen=True, eq=False)
class Cut:
    """A matrix (out, in) or a bias (out,) inside a parameter, read and written in place.

    module, name: where the parameter is. rows: the outputs, after `transposed` is undone. expert:
    its place in the first dimension, or None where the parameter is this expert's alone.
    """

    module: nn.Module
    name: str
    rows: slice
    expert: int | None = None
    transposed: bool = False

    @property
    def parameter(self) -> nn.Parameter:
        return getattr(self.module, self.name)

    def of(self, tensor: Tensor) -> Tensor:
        """The same cut of a tensor shaped as the parameter; a view of it."""
        own = tensor if self.expert is None else tensor[self.expert]
        return (own.T if self.transposed else own)[self.rows]


@dataclass(frozen=True, eq=False)
class Projection:
    """One linear map of one expert: where its weight and its bias are."""

    weight: Cut
    bias: Cut | None


Bank = list[dict[str, Projection]]
"""The projections of each expert of a bank, by name."""


def banks(model: nn.Module) -> Iterator[tuple[str, Bank]]:
    """The banks of experts of a model by their dotted names."""
    for name, module in model.named_modules():
        listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
        if listed and "expert" in name.rpartition(".")[2]:
            bank = [linears(network) for network in module.children()]
        else:
            bank = _stacked(module)
        if any(bank):
            yield name, bank


def linears(network: nn.Module) -> dict[str, Projection]:
    """The linear maps of a network by the field's names, or their own where the field has none.

    A network that is a linear map itself is called "linear".
    """
    found = {}
    for path, module in network.named_modules():
        transposed = type(module).__name__ == "Conv1D"  # GPT-2's linear map
        if not (transposed or isinstance(module, nn.Linear)):
            continue
        name = path.rpartition(".")[2]
        fused = name == FUSED or (isinstance(network, SharedExpert) and network.fused == name)
        outs = module.weight.shape[1 if transposed else 0]
        for projection, rows in _parts(name, fused, outs).items():
            weight = Cut(module, "weight", rows, transposed=transposed)
            bias = None if module.bias is None else Cut(module, "bias", rows)
            found[projection or path or "linear"] = Projection(weight, bias)
    return found


def _stacked(module: nn.Module) -> Bank:
    """The experts of a module whose parameters are stacked, (E, ...) each; none in another."""
    layout = _layout(module)
    if layout is None:
        return []
    transposed, interleaved = layout
    bank: Bank = []
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() != 3:
            continue
        bank = bank or [{} for _ in parameter]
        outs = parameter.shape[2 if transposed else 1]
        biased = getattr(module, f"{name}_bias", None) is not None
        for projection, rows in _parts(name, name == FUSED, outs, interleaved).items():
            for expert, projections in enumerate(bank):
                weight = Cut(module, name, rows, expert, transposed)
                bias = Cut(module, f"{name}_bias", rows, expert) if biased else None
                projections[projection or name] = Projection(weight, bias)
    return bank


def _layout(module: Any) -> tuple[bool, bool] | None:
    """(transposed, interleaved) of a module with stacked parameters, None of any other."""
    if isinstance(module, FactoredExperts):
        return False, False
    if isinstance(module, FeedForwardExperts):
        return module.transposed, isinstance(module.network.activation, ClampedSwiGLU)
    if hasattr(module, "is_transposed") and hasattr(module, "is_concatenated"):
        return module.is_transposed, not module.is_concatenated
    return SILENT.get(type(module).__name__)


def _parts(name: str, fused: bool, outs: int, interleaved: bool = False) -> dict[str, slice]:
    """The projections in a parameter or module called `name`, and the rows of each."""
    if not fused:
        return {PROJECTIONS.get(name, ""): slice(None)}
    if interleaved:
        return {"gate": slice(0, None, 2), "up": slice(1, None, 2)}
    return {"gate": slice(0, outs // 2), "up": slice(outs // 2, None)}
