"""Who carries rows to experts and back: one contract, several engines."""

from polypath.routing.dispatch.engine import ENGINES, dispatch
from polypath.routing.dispatch.network import Linear, Network, StreamedNetwork, Weights

__all__ = ["ENGINES", "Linear", "Network", "StreamedNetwork", "Weights", "dispatch"]
