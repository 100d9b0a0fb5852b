from typing import Any

import numpy as np
import pytest
import torch

from polypath.errors import InputError
from polypath.graphs.ogb import ogb_split

PARTS: dict[str, dict[str, Any]] = {
    "train": {"edge": torch.tensor([[0, 1], [1, 2], [2, 1], [3, 4]])},
    "valid": {"edge": torch.tensor([[2, 3], [1, 0]]), "edge_neg": torch.tensor([[0, 4], [0, 3]])},
    "test": {"edge": torch.tensor([[4, 5], [3, 2]]), "edge_neg": torch.tensor([[1, 5]])},
}


@pytest.mark.parametrize("kind", [torch.as_tensor, np.asarray])
def test_the_split_is_ogbs_without_what_was_seen_before(kind: Any) -> None:
    parts = {part: {key: kind(own) for key, own in own.items()} for part, own in PARTS.items()}
    split = ogb_split(parts, 6)
    assert split.train.T.tolist() == [[0, 1], [1, 2], [3, 4]]
    assert split.valid.T.tolist() == [[2, 3]] and split.test.T.tolist() == [[4, 5]]
    assert split.valid_negatives.T.tolist() == [[0, 4], [0, 3]]
    assert split.test_negatives.T.tolist() == [[1, 5]]
    assert split.graph.num_edges == 3


def test_negatives_that_are_edges_are_a_leak() -> None:
    leaky = PARTS | {"test": PARTS["test"] | {"edge_neg": torch.tensor([[1, 0]])}}
    with pytest.raises(InputError, match="1 pairs of test_negatives are in train too"):
        ogb_split(leaky, 6)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"valid": {}}, "valid has nothing; edge and edge_neg of pairs are right"),
        ({"train": {"source_node": torch.arange(3)}}, "train has source_node; edge and"),
        ({"train": {"edge": torch.ones(2, 3)}}, r"edge of train is \(2, 3\) of torch.float32"),
    ],
)
def test_what_is_no_split_of_ogbs_is_told(changed: dict, told: str) -> None:
    with pytest.raises(InputError, match=told):
        ogb_split(PARTS | changed, 6)
