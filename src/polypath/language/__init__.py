"""Language models as hosts of routed layers."""

from polypath.language.attach import attach
from polypath.language.config import RoutedLayers

__all__ = ["RoutedLayers", "attach"]
