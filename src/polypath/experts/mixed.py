"""Different networks side by side as one bank."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing.dispatch import Network, Weights, dispatch
from polypath.routing.record import Routing


class SideBySide(Network):
    """Each expert is a module of its own; there are no stacked weights."""

    grouped = False

    def __init__(self, modules: nn.ModuleList) -> None:
        self.modules = modules

    def serve(self, expert: int, rows: Tensor, weights: Weights) -> Tensor:
        return self.modules[expert](rows)


class ExpertList(nn.ModuleList):
    """Any modules as experts; each maps rows (R, D) to (R, D). Those without rows do not run."""

    def __init__(self, modules: Iterable[nn.Module], engine: str | None = None) -> None:
        super().__init__(modules)
        self.engine = engine

    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        """x (T, D), routing over T things and as many experts as there are modules, to y (T, D)."""
        if routing.num_experts != len(self):
            raise InputError(
                f"a routing over {routing.num_experts} experts for {len(self)} modules"
            )
        return dispatch(x, routing, SideBySide(self), (), self.engine)
