"""One view per (layer, expert, projection) over any model's own layout, to read and to write."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polypath.errors import InputError, unknown
from polypath.experts.layouts import Bank, Cut, Projection, banks, linears
from polypath.routing import MoE


class ExpertView:
    """One linear map of one expert, wherever it lies: y = weight x + bias.

    layer: dotted name, as in `record`. expert: its number, None for one that serves everything.
    projection: "gate", "up", "down", or the model's own name where the field has none.
    """

    def __init__(self, layer: str, expert: int | None, projection: str, place: Projection) -> None:
        self.layer = layer
        self.expert = expert
        self.projection = projection
        self._place = place

    @property
    def weight(self) -> Tensor:
        """(out, in), a view of the model's parameter; part of its autograd graph.

        Assign to it to write, or change it in place under `torch.no_grad()`.
        """
        return self._place.weight.of(self._place.weight.parameter)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        _write(self._place.weight, value, f"{self}.weight")

    @property
    def bias(self) -> Tensor | None:
        """(out,), a view as `weight` is; None where the map has none."""
        place = self._place.bias
        return None if place is None else place.of(place.parameter)

    @bias.setter
    def bias(self, value: Tensor) -> None:
        if self._place.bias is None:
            raise InputError(f"{self} has no bias to write")
        _write(self._place.bias, value, f"{self}.bias")

    @property
    def grad(self) -> Tensor | None:
        """(out, in), a view of the weight's gradient; None before a backward."""
        grad = self._place.weight.parameter.grad
        return None if grad is None else self._place.weight.of(grad)

    @property
    def parameter(self) -> nn.Parameter:
        """The model's parameter that the weight is part of."""
        return self._place.weight.parameter

    @property
    def places(self) -> list[Cut]:
        """Where its weight and its bias, if it has one, lie in the model."""
        return [place for place in (self._place.weight, self._place.bias) if place is not None]

    def __repr__(self) -> str:
        return f"ExpertView({self.layer!r}, {self.expert}, {self.projection!r})"


@dataclass(frozen=True)
class Coverage:
    """How much of a model's experts and routers is reached.

    reached, total: numbers in their parameters. missed: dotted names of parameters that look like
    an expert's or a router's and are not reached.
    """

    reached: int
    total: int
    missed: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.reached / max(self.total, 1)

    def __str__(self) -> str:
        told = f"{self.share:.1%} of {self.total:,} numbers in experts and routers are reached"
        if self.missed:
            names = ", ".join(self.missed[:3])
            more = f" and {len(self.missed) - 3} more" * (len(self.missed) > 3)
            told += f"; not reached: {names}{more}"
        return told


class ExpertViews:
    """Every expert's projections in a model: `views[layer, expert, projection]`.

    layer: dotted name as in `record`, or the number of the layer in it. expert: from 0.
    Iterating gives every view, layer by layer. Views stay good when the model is moved or cast.

    layers: names of the layers that have experts, from below.
    routers: for each layer, the parameters and buffers of its router by name. What is (E, ...)
        has a row for each expert.
    shared: for each layer, views of what serves everything beside the experts, by projection.
    """

    def __init__(self, model: nn.Module) -> None:
        self.routers: dict[str, dict[str, Tensor]] = {}
        self.shared: dict[str, dict[str, ExpertView]] = {}
        self._experts: dict[str, Bank] = {}
        self._model = model
        for name, bank in banks(model):
            layer = _layer_of(model, name)
            self._experts[layer] = bank
            self._add_neighbours(layer, name)

    def _add_neighbours(self, layer: str, bank: str) -> None:
        """Note the router and the shared experts that stand beside a bank."""
        block = self._model.get_submodule(layer)
        routers, shared = self.routers.setdefault(layer, {}), self.shared.setdefault(layer, {})
        for name, module in block.named_children():
            path = f"{layer}.{name}".lstrip(".")
            if f"{bank}.".startswith(f"{path}."):
                continue
            if "shared" in name:
                for projection, place in linears(module).items():
                    found = name if projection == "linear" else projection
                    shared[found] = ExpertView(layer, None, found, place)
            elif name == "gate" or "router" in name:
                routers.update(module.state_dict(keep_vars=True))

    @property
    def layers(self) -> list[str]:
        return list(self._experts)

    def num_experts(self, layer: str | int) -> int:
        """How many experts a layer has."""
        return len(self._experts[self._layer(layer)])

    def projections(self, layer: str | int, expert: int = 0) -> list[str]:
        """The names of an expert's projections; experts of one kind have the same."""
        return list(self._expert(self._layer(layer), expert))

    def __getitem__(self, key: tuple[str | int, int, str]) -> ExpertView:
        """The view; raises InputError for a layer, an expert or a projection that is not there."""
        layer, expert, projection = self._layer(key[0]), key[1], key[2]
        own = self._expert(layer, expert)
        if projection not in own:
            raise unknown("projection", projection, own)
        return ExpertView(layer, expert, projection, own[projection])

    def __iter__(self) -> Iterator[ExpertView]:
        for layer, bank in self._experts.items():
            for expert, own in enumerate(bank):
                for projection, place in own.items():
                    yield ExpertView(layer, expert, projection, place)

    def __len__(self) -> int:
        return sum(len(own) for bank in self._experts.values() for own in bank)

    def _expert(self, layer: str, expert: int) -> dict[str, Projection]:
        bank = self._experts[layer]
        if not 0 <= expert < len(bank):
            raise InputError(f"{layer} has experts 0 to {len(bank) - 1}, not {expert}")
        return bank[expert]

    def _layer(self, key: str | int) -> str:
        if key in self._experts:
            return str(key)
        found = [name for name in self._experts if re.search(rf"(^|\.){key}(\.|$)", name)]
        if isinstance(key, int) and len(found) == 1:
            return found[0]
        if found:
            raise InputError(f"layer {key} may be {' or '.join(found)}; give the name")
        raise unknown("layer", str(key), self._experts)

    def coverage(self) -> Coverage:
        """How much of the model's experts and routers these views reach."""
        reached = {id(place.parameter) for view in self for place in view.places}
        for views in self.shared.values():
            reached |= {id(place.parameter) for view in views.values() for place in view.places}
        reached |= {id(tensor) for named in self.routers.values() for tensor in named.values()}
        hits = misses = 0
        missed = []
        for name, parameter in self._model.named_parameters():
            if id(parameter) in reached:
                hits += parameter.numel()
            elif _is_expert_like(self._model, name):
                misses += parameter.numel()
                missed.append(name)
        return Coverage(hits, hits + misses, tuple(missed))


def experts_of(model: nn.Module) -> ExpertViews:
    """Views of every expert's projections in a model, routed here or as transformers made it.

    Warns when parameters that look like an expert's or a router's are not reached, and says how
    much that is; see `ExpertViews.coverage`. Raises InputError when nothing is reached at all.
    """
    views = ExpertViews(model)
    coverage = views.coverage()
    if not views:
        missed = f" that can be read: {coverage}" if coverage.missed else ""
        raise InputError(f"experts_of: {type(model).__name__} has no experts{missed}")
    if coverage.missed:
        warnings.warn(f"experts_of: {type(model).__name__}: {coverage}", stacklevel=2)
    return views


def _layer_of(model: nn.Module, bank: str) -> str:
    """The routed layer that a bank belongs to: the MoE around it, or else its parent."""
    parts = bank.split(".")
    above = [".".join(parts[:depth]) for depth in range(len(parts))]
    routed = [name for name in above if isinstance(model.get_submodule(name), MoE)]
    return (routed or above)[-1]


def _is_expert_like(model: nn.Module, name: str) -> bool:
    """Whether a parameter is an expert's or a router's, by its name, its shape and where it is."""
    parts = name.split(".")
    if any(re.search(r"expert|router|(^|_)moe$", part) for part in parts):
        return True
    owners = [model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts))]
    stacked = model.get_parameter(name).dim() == 3
    return any(isinstance(owner, MoE) for owner in owners) or (
        stacked and "Conv" not in type(owners[-1]).__name__
    )


def _write(place: Cut, value: Tensor, where: str) -> None:
    with torch.no_grad():
        own = place.of(place.parameter)
        if value.shape != own.shape:
            raise InputError(f"{where} is {tuple(own.shape)}; {tuple(value.shape)} was given")
        own.copy_(value)
