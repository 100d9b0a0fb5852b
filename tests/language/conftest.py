"""What tests of language hosts are given."""

from pathlib import Path

import pytest
import torch

from hosts import VOCABULARY, tiny_model
from polypath.language import RoutedLayers, attach, save_pretrained


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sequences of seven tokens, the first padded on its left, the last on its right."""
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    mask[2, 5:] = 0
    return {"input_ids": torch.randint(0, VOCABULARY, (3, 7)), "attention_mask": mask}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint with routed layers."""
    save_pretrained(attach(tiny_model("Llama"), RoutedLayers(num_experts=4)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain checkpoint with routed layers of its own."""
    save_pretrained(attach(tiny_model("Olmoe")), tmp_path / "plain")
    return tmp_path / "plain"
