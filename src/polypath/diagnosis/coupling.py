"""How tightly a model's routers and experts hold together, read from its weights alone.

Source: Coupling Experts and Routers in Mixture-of-Experts via an Auxiliary Loss, arXiv 2512.23447.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.routing import routed_layers
from polypath.routing.coupling import centres, coupling, excitement, noise_bound, strength


@dataclass(frozen=True, eq=False)
class LayerCoupling:
    """A layer's rows against its experts; float32, E experts.

    matrix: (E, E), how strongly row i excites expert j.
    bound: (E,), ε, how far apart the rows lie: larger is more specialised, in a model that was
        trained with the coupling loss.
    rows: (E,), lengths of the rows. gates: (E,), Frobenius norms of the experts' gate projections.
        Both tell whether a small loss is only a small scale.
    """

    matrix: Tensor
    bound: Tensor
    rows: Tensor
    gates: Tensor

    @property
    def strength(self) -> float:
        """α*, the least α that leaves no loss: 1 or less where every row excites its own most."""
        return strength(self.matrix)

    def loss(self, alpha: float = 1.0) -> float:
        """The coupling loss of the clean rows, without noise."""
        return float(coupling(self.matrix, alpha))


@torch.no_grad()
def layer_coupling(layer: Any) -> LayerCoupling:
    """Of one routed layer.

    Raises InputError where its router has no row per expert in the experts' space, or its experts
    are not stacked.
    """
    rows = centres(layer.router, "coupling")
    if not hasattr(layer.experts, "gates"):
        raise InputError(f"coupling: {type(layer.experts).__name__} does not show its projections")
    return LayerCoupling(
        excitement(rows, layer.experts),
        noise_bound(rows),
        rows.norm(dim=1),
        layer.experts.gates().float().flatten(1).norm(dim=1),
    )


def layer_couplings(model: nn.Module) -> dict[str, LayerCoupling]:
    """Of every routed layer of a model that has one, by its dotted name."""
    found = {}
    for name, layer in routed_layers(model).items():
        try:
            found[name] = layer_coupling(layer)
        except InputError:  # a router without rows
            continue
    return found
