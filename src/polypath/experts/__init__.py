"""What is chosen: banks of experts."""

from polypath.experts.activations import ClampedSwiGLU
from polypath.experts.feedforward import FeedForwardExperts

__all__ = ["ClampedSwiGLU", "FeedForwardExperts"]
