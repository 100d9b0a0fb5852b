"""Models that choose their path: build, train, convert and understand routed models."""

__version__ = "0.1.0"
