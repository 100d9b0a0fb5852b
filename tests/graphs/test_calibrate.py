import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from polypath.errors import InputError
from polypath.graphs.calibrate import PlattScaling


def fitted(right: torch.Tensor, wrong: torch.Tensor) -> PlattScaling:
    scaling = PlattScaling(right.shape[1])
    scaling.fit(right, wrong)
    return scaling


def by_descent(right: np.ndarray, wrong: np.ndarray) -> tuple[float, float]:
    """Platt's likelihood with both kinds as heavy, minimised by another way."""
    targets = 1 - 1 / (len(right) + 2), 1 / (len(wrong) + 2)

    def loss(values: np.ndarray) -> float:
        total = 0.0
        for scores, target in zip((right, wrong), targets, strict=True):
            z = values[0] * scores + values[1]
            total += float(np.mean(np.logaddexp(0, z) - target * z))
        return total

    found = minimize(
        loss,
        np.zeros(2),
        method="Nelder-Mead",
        options={"xatol": 1e-9, "fatol": 1e-14, "maxiter": 9000},
    )
    return tuple(found.x)  # type: ignore[return-value]


@settings(max_examples=12)
@given(st.integers(0, 2**20), st.integers(3, 40), st.integers(3, 90))
def test_the_likelihood_is_the_greatest(seed: int, right: int, wrong: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    positives = torch.randn(right, 1, generator=generator) + 1.0
    negatives = torch.randn(wrong, 1, generator=generator) - 1.0
    scaling = fitted(positives, negatives)
    scale, offset = by_descent(positives[:, 0].numpy(), negatives[:, 0].numpy())
    assert float(scaling.scale) == pytest.approx(scale, rel=1e-3, abs=1e-3)
    assert float(scaling.offset) == pytest.approx(offset, rel=1e-3, abs=1e-3)


def test_logits_are_found_again() -> None:
    """Where classes are normal with one spread s and means ±m, the logit is 2 m x / s²."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 40_000, 1, generator=generator)
    scaling = fitted(30 + 10 * (noise[0] + 0.75), 30 + 10 * (noise[1] - 0.75))
    assert float(scaling.scale) == pytest.approx(0.15, rel=0.03)
    assert float(scaling.offset) == pytest.approx(-4.5, rel=0.03)


def test_each_expert_is_fitted_alone_and_of_any_size() -> None:
    generator = torch.Generator().manual_seed(0)
    right, wrong = (torch.randn(50, 2, generator=generator) + mean for mean in (1.0, -1.0))
    sizes = torch.tensor([1e-4, 1e4])
    both = fitted(right * sizes, wrong * sizes)
    for place in range(2):
        alone = fitted(right[:, place : place + 1], wrong[:, place : place + 1])
        torch.testing.assert_close(
            both(right * sizes)[:, place],
            alone(right[:, place : place + 1])[:, 0],
            rtol=1e-3,
            atol=1e-3,
        )


def test_it_ends_where_scores_tell_both_apart() -> None:
    scaling = fitted(torch.ones(8, 1), torch.zeros(8, 1))
    # The targets of 8 and 8 are 0.9 and 0.1, and two values can reach both.
    torch.testing.assert_close(
        scaling(torch.tensor([[1.0], [0.0]])).sigmoid(),
        torch.tensor([[0.9], [0.1]]),
        atol=1e-4,
        rtol=0,
    )


def test_no_ranking_is_turned_around() -> None:
    wrong_way = fitted(torch.tensor([[0.0], [1.0]]), torch.tensor([[5.0], [6.0]]))
    assert float(wrong_way.scale) == 0 and float(wrong_way.offset) == pytest.approx(0.0, abs=1e-6)
    constant = fitted(torch.full((6, 1), 3.0), torch.full((2, 1), 3.0))
    assert float(constant.scale) == 0
    # Targets 7/8 and 1/4, each kind as heavy: (7/8 + 1/4) / 2.
    assert float(constant.offset.sigmoid()) == pytest.approx(0.5625)


def test_it_is_the_identity_before() -> None:
    scores = torch.randn(4, 3)
    assert torch.equal(PlattScaling(3)(scores), scores)


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        (torch.zeros(0, 2), torch.zeros(3, 2), r"\(0, 2\) of positives"),
        (
            torch.zeros(3, 2),
            torch.tensor([[0.0, torch.nan]]),
            "of negatives are none or not finite",
        ),
    ],
)
def test_scores_have_to_be_there(right: torch.Tensor, wrong: torch.Tensor, told: str) -> None:
    with pytest.raises(InputError, match=told):
        fitted(right, wrong)
