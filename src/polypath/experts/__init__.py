"""What is chosen: banks of experts."""

from polypath.experts.activations import ClampedSwiGLU
from polypath.experts.factored import FactoredExperts
from polypath.experts.feedforward import FeedForwardExperts
from polypath.experts.mixed import ExpertList
from polypath.experts.shared import SharedExpert
from polypath.experts.views import Coverage, ExpertView, ExpertViews, experts_of

__all__ = [
    "ClampedSwiGLU",
    "Coverage",
    "ExpertList",
    "ExpertView",
    "ExpertViews",
    "FactoredExperts",
    "FeedForwardExperts",
    "SharedExpert",
    "experts_of",
]
