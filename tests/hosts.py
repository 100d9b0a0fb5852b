"""Tiny decoders with random weights, of every family that hosts routed layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from polypath.errors import InputError
from polypath.language import from_pretrained

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
    | {
        "vocab_size": VOCABULARY,
        "n_embd": 16,
        "n_layer": 3,
        "n_head": 2,
        "initializer_range": 0.3,
        "resid_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "attn_pdrop": 0.0,
    },
}
EXPERTS = COMMON | {"num_local_experts": 8, "num_experts_per_tok": 3}
NATIVE: dict[str, dict[str, Any]] = {
    "Olmoe": EXPERTS | {"num_experts": 8},
    "Mixtral": EXPERTS,
    "Qwen3Moe": EXPERTS
    | {"num_experts": 8, "moe_intermediate_size": 12, "head_dim": 8, "mlp_only_layers": [1]},
    "DeepseekV3": COMMON
    | {
        "num_key_value_heads": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 3,
        "n_group": 4,
        "topk_group": 2,
        "moe_intermediate_size": 12,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 8,
        "q_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
    },
    "GptOss": EXPERTS | {"head_dim": 8, "sliding_window": 4},
}


def tiny_model(kind: str, **changes: Any) -> PreTrainedModel:
    """A model of the family with random weights, ready to be compared with another."""
    config = getattr(transformers, f"{kind}Config")(**(DENSE | NATIVE)[kind] | changes)
    model = AutoModelForCausalLM.from_config(config)
    for name, tensor in model.named_buffers():
        if name.endswith("e_score_correction_bias"):  # transformers starts it at zero
            tensor.normal_(std=0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def change_json(path: Path, **changes: Any) -> None:
    """Change values of a JSON object on disk."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(folder: Path, message: str) -> None:
    """Check that reading the checkpoint gives one line that holds `message`."""
    with pytest.raises(InputError) as caught:
        from_pretrained(folder)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
