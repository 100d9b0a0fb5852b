"""Tiny decoders with random weights, of every family that hosts routed layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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


def tiny_switch(**changes: Any) -> PreTrainedModel:
    """Switch Transformers with random weights: two routed layers in the encoder, two after it."""
    config = transformers.SwitchTransformersConfig(
        **{
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 12,
            "num_layers": 4,
            "num_sparse_encoder_layers": 2,
            "num_decoder_layers": 4,
            "num_sparse_decoder_layers": 2,
            "num_heads": 2,
            "num_experts": 8,
            "expert_capacity": 3,
            "initializer_factor": 3.0,
            "decoder_start_token_id": 0,
        }
        | changes
    )
    return transformers.SwitchTransformersForConditionalGeneration(config).eval()


def tiny_dino() -> PreTrainedModel:
    """Grounding DINO with random weights, three decoder layers and nine queries."""
    backbone = transformers.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=8,
        depths=[1, 1, 1],
        num_heads=[1, 1, 1],
        window_size=2,
        out_features=["stage2", "stage3"],
    )
    words = transformers.BertConfig(
        vocab_size=1100,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    config = transformers.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=words,
        num_queries=9,
        encoder_layers=1,
        decoder_layers=3,
        d_model=32,
        encoder_ffn_dim=16,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        num_feature_levels=2,
        max_text_len=8,
    )
    model = transformers.GroundingDinoForObjectDetection(config)
    for name, parameter in model.model.decoder.named_parameters():
        if name.endswith(("fc1.bias", "fc2.bias")):
            nn.init.normal_(parameter, std=0.3)
    return model.eval()


def detections(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and boxes of two pictures, the same ones each time."""
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    words = torch.tensor([[101, 5, 1012, 102]] * 2)
    with torch.no_grad():
        found = model(pixel_values=pixels, input_ids=words)
    return found.logits.nan_to_num(neginf=-1e4), found.pred_boxes


def switch_base(num_experts: int) -> PreTrainedModel:
    """The sizes of google/switch-base-N."""
    return tiny_switch(
        vocab_size=32128,
        d_model=768,
        d_kv=64,
        d_ff=3072,
        num_layers=12,
        num_sparse_encoder_layers=6,
        num_decoder_layers=12,
        num_sparse_decoder_layers=6,
        num_heads=12,
        num_experts=num_experts,
    )
