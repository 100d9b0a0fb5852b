"""Tiny decoders with random weights, of every family that hosts routed layers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, PreTrainedModel

VOCABULARY = 61
NO_SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
COMMON = NO_SPECIAL | {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.3,
}
HEADS = COMMON | {"head_dim": 8}
DENSE: dict[str, dict[str, Any]] = {
    "Llama": COMMON,
    "Qwen3": HEADS,
    "Gemma": HEADS,
    "Gemma2": HEADS,
    "Gemma3Text": HEADS | {"sliding_window": 4},
    "GPT2": NO_SPECIAL
    | {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 3, "n_head": 2, "initializer_range": 0.3},
}


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of the family with random weights, ready to be compared with another."""
    config = getattr(transformers, f"{kind}Config")(**DENSE[kind] | changes)
    model = AutoModelForCausalLM.from_config(config)
    return model.eval()


@pytest.fixture
def tiny() -> Callable[..., PreTrainedModel]:
    return tiny_model


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Three sequences of seven tokens, the first padded on its left, the last on its right."""
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, :3] = 0
    mask[2, 5:] = 0
    return {"input_ids": torch.randint(0, VOCABULARY, (3, 7)), "attention_mask": mask}
