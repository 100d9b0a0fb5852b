"""The routed layer: a router, a bank of experts, and perhaps one expert that serves everything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from polypath.routing.context import RoutingContext, current
from polypath.routing.record import Routing
from polypath.routing.selection import SelectionBias

Listener = Callable[["MoE", Routing], None]
Override = Callable[["MoE", Tensor, RoutingContext], Routing]


class MoE(nn.Module):
    """y = Σ weight · expert(x) over each thing's chosen experts, plus `shared(x)`.

    router: x (T, D), context to Routing. experts: x (T, D), Routing to y (T, D).
    shared: a module (T, D) to (T, D) that serves everything, or None.
    Source: Shazeer et al. 2017, equation 1; shared experts: DeepSeekMoE (2024).
    """

    def __init__(self, router: nn.Module, experts: nn.Module, shared: nn.Module | None = None):
        super().__init__()
        self.router = router
        self.experts = experts
        self.shared = shared
        self.listeners: list[Listener] = []
        self.override: Override | None = None
        self.last: Routing | None = None

    def forward(self, x: Tensor, context: RoutingContext | None = None) -> Tensor:
        """x (..., D) to y (..., D); the routing goes to whoever listens (see `record`)."""
        context = context or current()
        if context.shape is None:
            context = replace(context, shape=tuple(x.shape[:-1]))
        rows = x.reshape(-1, x.shape[-1])
        routing = self.route(rows, context)
        self.last = routing if torch.is_grad_enabled() else routing.detach()
        for listener in self.listeners:
            listener(self, routing)
        y = self.experts(rows, routing)
        if self.shared is not None:
            y = y + self.shared(rows)
        return y.view(x.shape)

    def route(self, rows: Tensor, context: RoutingContext) -> Routing:
        """The routing of rows (T, D): the router's, unless `replay` put another in its place."""
        if self.override is not None:
            return self.override(self, rows, context)
        return self.router(rows, context)

    def __getstate__(self) -> dict:
        """Copies carry neither listeners nor the last routing, which holds autograd history."""
        return self.__dict__ | {"listeners": [], "override": None, "last": None}


def routed_layers(model: nn.Module) -> dict[str, MoE]:
    """The routed layers of a model by their dotted names, in the order of the model."""
    return {name: module for name, module in model.named_modules() if isinstance(module, MoE)}


def losses(model: nn.Module) -> dict[str, Tensor]:
    """The auxiliary losses of the last forward by name, each the mean over the routed layers.

    Already weighted: add them to the task's loss as they are.
    """
    layers = [layer.last for layer in routed_layers(model).values() if layer.last is not None]
    gathered: dict[str, list[Tensor]] = {}
    for routing in layers:
        for name, value in routing.losses.items():
            gathered.setdefault(name, []).append(value)
    return {name: torch.stack(values).sum() / len(layers) for name, values in gathered.items()}


def update_biases(model: nn.Module) -> None:
    """Move every selection bias against the load it has seen; call it once after each step."""
    for bias in _biases(model):
        bias.update()


def _biases(model: nn.Module) -> Iterator[SelectionBias]:
    return (m for m in model.modules() if isinstance(m, SelectionBias))
