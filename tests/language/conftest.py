"""What tests of language hosts are given."""

import pytest
import torch

from hosts import VOCABULARY


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sequences of seven tokens, the first padded on its left, the last on its right."""
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    mask[2, 5:] = 0
    return {"input_ids": torch.randint(0, VOCABULARY, (3, 7)), "attention_mask": mask}
