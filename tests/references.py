"""Slow references: the equations as they read, one number at a time, in float64.

Each is differentiable through torch, so that `assert_same` can compare values and gradients.
T things, D dimensions, E experts, K slots; ids of experts are lists of int, -1 where a slot is
empty.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

INF = float("inf")


def assert_same(fast: Tensor, slow: Tensor, leaves: Sequence[Tensor], tolerance: float = 1e-9):
    """Both have the same values, and the same gradients with respect to all leaves."""
    torch.testing.assert_close(fast, slow, rtol=tolerance, atol=tolerance, check_dtype=False)
    probe = torch.randn_like(slow)
    for ours, theirs in zip(
        gradients((fast * probe).sum(), leaves),
        gradients((slow * probe).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def gradients(value: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    """Of a scalar; zeros for leaves that it does not depend on."""
    if not value.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    return list(torch.autograd.grad(value, leaves, retain_graph=True, materialize_grads=True))


def leaves_of(module: nn.Module, *inputs: Tensor) -> list[Tensor]:
    return [*inputs, *module.parameters()]


def rows(values: list[list[Tensor]], width: int) -> Tensor:
    """(T, width) of nested lists of scalars; keeps the width when there are no rows."""
    if not values or not width:
        return torch.zeros(len(values), width, dtype=torch.float64)
    return torch.stack([torch.stack(row) for row in values])


def dot(a: Tensor, b: Tensor) -> Tensor:
    total = a.new_zeros(())
    for i in range(len(a)):
        total = total + a[i] * b[i]
    return total


# Scorers


def linear_scores(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """s_te = w_e · x_t + b_e."""
    return rows(
        [
            [dot(row, w) + (0 if bias is None else bias[e]) for e, w in enumerate(weight)]
            for row in x
        ],
        len(weight),
    )


def noisy_scores(x: Tensor, weight: Tensor, noise: Tensor, epsilon: Tensor) -> Tensor:
    """s_te = w_e · x_t + ε_te log(1 + exp(n_e · x_t)): Shazeer et al. 2017, equation 4."""
    spread = (1 + linear_scores(x, noise).exp()).log()
    return linear_scores(x, weight) + epsilon * spread


def cosine_scores(x: Tensor, projection: Tensor, weight: Tensor, temperature: Tensor) -> Tensor:
    """s_te = (P x_t · w_e) / (‖P x_t‖ ‖w_e‖ τ): X-MoE, section 3.2."""
    low = linear_scores(x, projection)
    return rows(
        [
            [dot(p, w) / (dot(p, p).sqrt() * dot(w, w).sqrt() * temperature) for w in weight]
            for p in low
        ],
        len(weight),
    )


# Gates: one row of scores to one row of numbers


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """exp s_e / Σ exp s; -inf may not be chosen, and a row of them has no probabilities."""
    powers = [torch.zeros_like(s) if s == -INF else s.exp() for s in scores]
    total = sum(powers)
    return [p / total if total > 0 else p for p in powers]


def sigmoid(score: Tensor) -> Tensor:
    return torch.zeros_like(score) if score == -INF else 1 / (1 + (-score).exp())


def softmax_weights(scores: Tensor, experts: list[int], over: str) -> list[Tensor]:
    zero = scores.new_zeros(())
    chosen = [e for e in experts if e >= 0]
    if over == "chosen":
        weights = dict(zip(chosen, softmax([scores[e] for e in chosen]), strict=True))
    else:
        weights = dict(enumerate(softmax(list(scores))))
    return [weights[e] if e >= 0 else zero for e in experts]


def sigmoid_weights(scores: Tensor, experts: list[int], normalise: bool) -> list[Tensor]:
    """DeepSeek-V3, equations 13 to 15."""
    weights = [sigmoid(scores[e]) if e >= 0 else scores.new_zeros(()) for e in experts]
    total = sum(weights)
    return [w / total for w in weights] if normalise and total > 0 else weights


def uniform_weights(experts: list[int]) -> list[float]:
    filled = sum(e >= 0 for e in experts)
    return [1 / filled if e >= 0 else 0.0 for e in experts]


# Selections


def top_k(ranking: list[float], k: int) -> list[int]:
    """The k highest, best first, without those of -inf; -1 behind them."""
    order = sorted(range(len(ranking)), key=lambda e: -ranking[e])
    best = [e for e in order[:k] if ranking[e] > -INF]
    return best + [-1] * (k - len(best))


def in_best_groups(ranking: list[float], groups: int, best: int) -> list[float]:
    """-inf outside of the best groups; a group counts the sum of its two highest."""
    size = len(ranking) // groups
    worth = [sum(sorted(ranking[g * size : (g + 1) * size])[-2:]) for g in range(groups)]
    chosen = top_k(worth, best)
    return [r if e // size in chosen else -INF for e, r in enumerate(ranking)]


def expert_choice(wanted: Tensor, capacity: int) -> set[tuple[int, int]]:
    """Pairs (thing, expert): every expert's `capacity` best things, without those of -inf."""
    return {
        (t, e)
        for e in range(wanted.shape[1])
        for t in top_k(wanted[:, e].tolist(), min(capacity, len(wanted)))
        if t >= 0
    }


def queue(experts: list[list[int]], room: int) -> list[list[int]]:
    """GShard, algorithm 1: all first choices queue before all second ones; the late get -1."""
    served: dict[int, int] = {}
    kept = [[-1] * len(row) for row in experts]
    for slot in range(len(experts[0]) if experts else 0):
        for thing, row in enumerate(experts):
            expert = row[slot]
            if expert >= 0 and served.get(expert, 0) < room:
                served[expert] = served.get(expert, 0) + 1
                kept[thing][slot] = expert
    return kept


# Losses, over things that count


def load_balance(probabilities: Tensor, experts: Tensor, mask: Sequence[bool]) -> Tensor:
    """E Σ_e f_e P_e; f_e the share of choices, P_e the mean share of probability.

    E is the mean number of experts that may be chosen, those of a probability.
    """
    counted = [t for t in range(len(mask)) if mask[t]]
    candidates = sum(int((probabilities[t] > 0).sum()) for t in counted) / max(len(counted), 1)
    choices = [e for t in counted for e in experts[t].tolist() if e >= 0]
    loss = probabilities.new_zeros(())
    for e in range(probabilities.shape[1]):
        f = choices.count(e) / max(len(choices), 1)
        p = sum(shares(probabilities[t])[e] for t in counted)
        loss = loss + candidates * f * p / max(len(counted), 1)
    return loss


def sequence_balance(
    probabilities: Tensor, experts: Tensor, mask: Sequence[bool], length: int
) -> Tensor:
    """Load balance within each sequence, averaged over things: DeepSeek-V3, equation 17."""
    loss = probabilities.new_zeros(())
    for start in range(0, len(mask), length):
        part = slice(start, start + length)
        own = load_balance(probabilities[part], experts[part], mask[part])
        loss = loss + own * sum(mask[part]) / max(sum(mask), 1)
    return loss


def shares(probabilities: Tensor) -> list[Tensor]:
    """Scaled to sum to one, where anything may be chosen."""
    total = sum(probabilities)
    return [p / total if total > 0 else p for p in probabilities]


def importance(weights: Tensor, experts: Tensor, mask: Sequence[bool], num_experts: int) -> Tensor:
    """Squared coefficient of variation of Σ weights: Shazeer et al. 2017, equation 7."""
    sums = [weights.new_zeros(()) for _ in range(num_experts)]
    for t, counts in enumerate(mask):
        for slot, e in enumerate(experts[t].tolist()):
            if counts and e >= 0:
                sums[e] = sums[e] + weights[t, slot]
    mean = sum(sums) / num_experts
    variance = sum((s - mean) ** 2 for s in sums) / num_experts
    return variance / mean**2 if mean > 0 else mean


def router_z(scores: Tensor, mask: Sequence[bool]) -> Tensor:
    """Mean of (log Σ exp s)²: ST-MoE, equation 5; 0 where nothing may be chosen."""

    def of(t: int) -> Tensor:
        powers = [s.exp() for s in scores[t] if s > -INF]
        return sum(powers).log() ** 2 if powers else scores.new_zeros(())

    return mean_over(of, mask, scores)


def entropy(probabilities: Tensor, mask: Sequence[bool]) -> Tensor:
    """Mean of -Σ p log p, of probabilities scaled to sum to one."""
    zero = probabilities.new_zeros(())

    def of(t: int) -> Tensor:
        return -sum((p * p.log() for p in shares(probabilities[t]) if p > 0), zero)

    return mean_over(of, mask, probabilities)


def mean_over(of: Callable[[int], Tensor], mask: Sequence[bool], like: Tensor) -> Tensor:
    values = [of(t) for t in range(len(mask)) if mask[t]]
    return sum(values) / len(values) if values else like.new_zeros(())


# The layer


def mixture(
    x: Tensor, experts: Tensor, weights: Tensor, bank: Sequence[Callable[[Tensor], Tensor]]
) -> Tensor:
    """y_t = Σ weight · expert(x_t) over the chosen experts: Shazeer et al. 2017, equation 1."""
    y = []
    for t in range(len(x)):
        parts = [
            w * bank[e](x[t])
            for e, w in zip(experts[t].tolist(), weights[t], strict=True)
            if e >= 0
        ]
        y.append(sum(parts, torch.zeros_like(x[t])))
    return torch.stack(y) if y else torch.zeros_like(x)
