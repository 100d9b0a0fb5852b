import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import label_ranking_average_precision_score

from polypath.errors import InputError
from polypath.graphs import (
    expected_hits,
    filtered_ranks,
    hits_at,
    mean_reciprocal_rank,
    ranks_among,
)

WHOLE = st.lists(st.integers(0, 6).map(float), min_size=1, max_size=12).map(torch.tensor)


@given(WHOLE, WHOLE, st.integers(1, 4))
def test_hits_are_counted(positives: torch.Tensor, negatives: torch.Tensor, k: int) -> None:
    best = sorted(negatives.tolist(), reverse=True)
    wanted = [len(best) < k or score > best[k - 1] for score in positives.tolist()]
    assert hits_at(positives, negatives, k) == pytest.approx(sum(wanted) / len(wanted))


@given(WHOLE, WHOLE)
def test_ranks_are_counted(positives: torch.Tensor, negatives: torch.Tensor) -> None:
    above = [sum(n > p for n in negatives.tolist()) for p in positives.tolist()]
    equal = [sum(n == p for n in negatives.tolist()) for p in positives.tolist()]
    for ties, share in (("middle", 0.5), ("against", 1.0)):
        wanted = [1 + a + share * e for a, e in zip(above, equal, strict=True)]
        assert ranks_among(positives, negatives, ties).tolist() == wanted
        own = negatives.expand(len(positives), -1)
        assert ranks_among(positives, own, ties).tolist() == wanted


def test_known_facts_do_not_compete() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.8, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0, 0.0]])
    known = torch.tensor([[True, False, False, False, False], [False, True, False, False, True]])
    truth = torch.tensor([1, 1])
    assert filtered_ranks(scores, truth, known).tolist() == [3.0, 4.0]
    assert known[1, 1]  # what was given stays as it is
    nothing = torch.zeros_like(known)
    assert filtered_ranks(scores, truth, nothing).tolist() == [4.0, 5.0]


def test_reciprocal_ranks_are_sklearns_for_one_truth() -> None:
    scores = torch.randn(20, 9)
    truth = torch.randint(9, (20,))
    labels = torch.nn.functional.one_hot(truth, 9)
    found = mean_reciprocal_rank(filtered_ranks(scores, truth, torch.zeros_like(labels).bool()))
    wanted = label_ranking_average_precision_score(labels.numpy(), scores.numpy())
    assert found == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("negatives", "wanted"),
    [(50, [1, 0.97695, 0.45075, 0.04154]), (49, [1, 0.97982, 0.47871, 0.04945])],
)
def test_expected_hits_are_the_specifications(negatives: int, wanted: list[float]) -> None:
    for rank, value in zip([1, 100, 200, 300], wanted, strict=True):
        found = expected_hits(torch.tensor([rank]), 1000, 10, negatives)
        assert found == pytest.approx(value, abs=5e-6)


def test_expected_hits_are_those_of_draws() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(200, (40_000, 50), generator=generator) < 29
    wanted = float((drawn.sum(1) < 10).double().mean())
    assert expected_hits(torch.tensor([30.0]), 200) == pytest.approx(wanted, abs=0.01)


def test_wrong_input_is_told() -> None:
    with pytest.raises(InputError, match="k=0"):
        hits_at(torch.ones(2), torch.ones(2), 0)
    with pytest.raises(InputError, match="1 of 2 scores of positives are NaN"):
        ranks_among(torch.tensor([1.0, float("nan")]), torch.ones(2))
