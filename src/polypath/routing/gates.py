"""Gates: what the scores mean as probabilities, and how much each chosen expert counts.

Scores of -inf are experts that may not be chosen: they have probability 0 and weigh 0.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from polypath.errors import unknown


def lowest(values: Tensor) -> float:
    """The lowest value; -inf where there is none, and on a GPU, which asking would make wait.

    What is known to have no empty slots needs none of the steps that mask them.
    """
    return float(values.detach().min()) if values.is_cpu and values.numel() else -torch.inf


def chosen(values: Tensor, experts: Tensor, empty: float) -> Tensor:
    """(T, K): the values (T, E) at the chosen experts, `empty` where a slot is empty."""
    if lowest(experts) >= 0:
        return values.gather(1, experts)
    picked = values.gather(1, experts.clamp_min(0))
    return picked.masked_fill(experts < 0, empty)


def softmax(scores: Tensor) -> Tensor:
    """Softmax of each row."""
    # Rows that do not fill a CPU's vector of 16 floats are slow one by one, fast side by side.
    if scores.is_cpu and scores.shape[1] < 16:
        return scores.T.softmax(0).T
    return scores.softmax(-1)


class Gate(Protocol):
    """What a router asks of its gate; a gate is an nn.Module that answers both.

    probabilities: of scores (T, E), over all experts (T, E), or None where there are none.
    weights: (T, K), of the chosen experts (T, K) int64; empty slots (-1) weigh 0.
    """

    def probabilities(self, scores: Tensor) -> Tensor | None: ...

    def weights(self, scores: Tensor, probabilities: Any, experts: Tensor) -> Tensor: ...


class SoftmaxGate(nn.Module):
    """Softmax over all experts, or over the chosen ones only.

    over="all": softmax, then the chosen probabilities as they are (OLMoE, DeepSeekMoE).
    over="chosen": softmax over the chosen scores (Mixtral); equal to renormalising the above.
    scale: multiplies the weights.
    """

    def __init__(self, over: Literal["all", "chosen"] = "all", scale: float = 1.0) -> None:
        super().__init__()
        if over not in ("all", "chosen"):
            raise unknown("softmax over", over, ("all", "chosen"))
        self.over = over
        self.scale = scale

    def probabilities(self, scores: Tensor) -> Tensor:
        return softmax(scores)

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        if self.over == "all":
            weights = chosen(probabilities, experts, 0.0)
        else:
            picked = chosen(scores, experts, -torch.inf)
            weights = softmax(picked)
            if lowest(picked) == -torch.inf:
                # A row of nothing but -inf gives NaN; its gradient ends where they were filled in.
                weights = weights.masked_fill(picked == -torch.inf, 0.0)
        return weights * self.scale if self.scale != 1.0 else weights

    def extra_repr(self) -> str:
        return f"over={self.over!r}, scale={self.scale}"


def softmax_gate(name: str) -> SoftmaxGate:
    """The gate "softmax" (over all) or "softmax-chosen"; raises InputError for another name."""
    over: dict[str, Literal["all", "chosen"]] = {"softmax": "all", "softmax-chosen": "chosen"}
    if name not in over:
        raise unknown("gate over probabilities", name, over)
    return SoftmaxGate(over[name])


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
        weights = chosen(probabilities, experts, 0.0)
        if self.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return weights * self.scale if self.scale != 1.0 else weights

    def extra_repr(self) -> str:
        return f"normalise={self.normalise}, scale={self.scale}"


class HardGate(nn.Module):
    """Every chosen expert counts `scale`, however it scored; no gradient reaches the scores.

    through: the weights have the gradient of the chosen probabilities (straight-through).
    Probabilities are a softmax over all experts, for losses that teach the router.
    Source: FactorLLM (2024), where scale is ⌊E / k⌋.
    """

    def __init__(self, scale: float = 1.0, through: bool = False) -> None:
        super().__init__()
        self.scale = scale
        self.through = through

    def probabilities(self, scores: Tensor) -> Tensor:
        return softmax(scores)

    def weights(self, scores: Tensor, probabilities: Tensor, experts: Tensor) -> Tensor:
        weights = (experts >= 0).to(scores.dtype) * self.scale
        if self.through:
            soft = chosen(probabilities, experts, 0.0)
            weights = weights + (soft - soft.detach())
        return weights

    def extra_repr(self) -> str:
        return f"scale={self.scale}" + ", through" * self.through


class UniformGate(nn.Module):
    """Every chosen expert counts the same; for routers whose scores mean no more than an order."""

    def probabilities(self, scores: Tensor) -> None:
        return None

    def weights(self, scores: Tensor, probabilities: None, experts: Tensor) -> Tensor:
        filled = (experts >= 0).to(scores.dtype)
        return filled / filled.sum(-1, keepdim=True).clamp_min(1.0)
