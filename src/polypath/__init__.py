"""Models that choose their path: build, train, convert and understand routed models.

The names are fetched when they are first used, so that `import polypath` and the command line's
help need neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from polypath.errors import InputError
    from polypath.experts import ExpertList, FeedForwardExperts, experts_of
    from polypath.language import RoutedLayers, attach, detach, from_pretrained, save_pretrained
    from polypath.routing import (
        MoE,
        Routes,
        Routing,
        RoutingContext,
        TopKRouter,
        given,
        losses,
        record,
        replay,
        routed_layers,
        update_biases,
        whole_batch,
    )

__version__ = "0.1.0"

__all__ = [
    "ExpertList",
    "FeedForwardExperts",
    "InputError",
    "MoE",
    "RoutedLayers",
    "Routes",
    "Routing",
    "RoutingContext",
    "TopKRouter",
    "attach",
    "detach",
    "experts_of",
    "from_pretrained",
    "given",
    "losses",
    "record",
    "replay",
    "routed_layers",
    "save_pretrained",
    "update_biases",
    "whole_batch",
]


def __getattr__(name: str) -> Any:
    """The public name `name`, from the room that has it."""
    if name in __all__:
        for room in ("errors", "routing", "experts", "language"):
            found = getattr(import_module(f"polypath.{room}"), name, None)
            if found is not None:
                return found
    raise AttributeError(f"module 'polypath' has no attribute {name!r}")
