"""Gates: what the scores mean as probabilities, and how much each chosen expert counts.

A gate answers `probabilities(scores)`, (T, E), over all experts, and `weights(scores,
probabilities, experts)`, (T, K), for the chosen ones; empty slots (-1) weigh 0.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn


def _chosen(values: Tensor, experts: Tensor, empty: float) -> Tensor:
    """(T, K): the values (T, E) at the chosen experts, `empty` where a slot is empty."""
    picked = values.gather(1, experts.clamp_min(0))
    return picked.masked_fill(experts < 0, empty)


class SoftmaxGate(nn.Module):
    """Softmax over all experts, or over the chosen ones only.

    over="all": softmax, then the chosen probabilities as they are (OLMoE, DeepSeekMoE).
    over="chosen": softmax over the chosen scores (Mixtral); equal to renormalising the above.
    scale: multiplies the weights.
    """

    def __init__(self, over: Literal["all", "chosen"] = "all", scale: float = 1.0) -> None:
        super().__init__()
        self.over = over
        self.scale = scale

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        if self.over == "all":
            weights = _chosen(probabilities, experts, 0.0)
        else:
            chosen = _chosen(scores, experts, -torch.inf)
            none = (experts < 0).all(-1, keepdim=True)
            weights = chosen.masked_fill(none, 0.0).softmax(-1).masked_fill(experts < 0, 0.0)
        return weights * self.scale if self.scale != 1.0 else weights

    def extra_repr(self) -> str:
        return f"over={self.over!r}, scale={self.scale}"


class SigmoidGate(nn.Module):
    """Sigmoid of each score by itself; the chosen ones divided by their sum when `normalise`.

    Source: DeepSeek-V3, equations 13 to 15.
    """

    def __init__(self, normalise: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.normalise = normalise
        self.scale = scale

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores.sigmoid()

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        weights = _chosen(probabilities, experts, 0.0)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale if self.scale != 1.0 else weights

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}, scale={self.scale}"


class UniformGate(nn.Module):
    """Every chosen expert counts the same; for routers that do not score."""

    def probabilities(self, scores: Tensor) -> Tensor:
        return scores

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        filled = (experts >= 0).to(scores.dtype)
        return filled / filled.sum(-1, keepdim=True).clamp_min(1.0)
