from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from hosts import VOCABULARY


@pytest.fixture
def ids() -> Tensor:
    """(3, 12) token ids."""
    return torch.randint(VOCABULARY, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def logits(ids: Tensor) -> Callable[[PreTrainedModel], Tensor]:
    """From a model to what it says of the ids."""

    def of(model: PreTrainedModel) -> Tensor:
        with torch.no_grad():
            return model(input_ids=ids).logits

    return of


@pytest.fixture
def texts() -> dict[str, list[Tensor]]:
    """Two texts of two batches each."""
    generator = torch.Generator().manual_seed(2)
    return {
        name: [torch.randint(VOCABULARY, (2, 9), generator=generator) for _ in range(2)]
        for name in ("one", "other")
    }
