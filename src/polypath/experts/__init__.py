"""What is chosen: banks of experts."""

from polypath.experts.feedforward import FeedForwardExperts

__all__ = ["FeedForwardExperts"]
