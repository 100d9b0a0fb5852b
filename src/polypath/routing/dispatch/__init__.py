"""Who carries rows to experts and back: one contract, several engines."""

from polypath.routing.dispatch.engine import ENGINES, dispatch
from polypath.routing.dispatch.network import Linear, Network, Weights

__all__ = ["ENGINES", "Linear", "Network", "Weights", "dispatch"]
