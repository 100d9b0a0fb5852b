"""Attention that can be looked at: what it gave to whom, where a routed layer asks for it.

The name of an attention implementation of transformers. A layer whose arguments bring a place for
what is seen runs the family's own plain attention and puts it there; others run fused, as usual.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, eager_mask

from polypath.language.families import Decoder
from polypath.routing import Attention

IMPLEMENTATION = "observed"
PLACE = "routing_attention"


def attend(
    attention: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attention as transformers calls it: (B, H, N, W), (B, G, M, W) twice and a mask to both."""
    seen: dict[str, Tensor] | None = kwargs.pop(PLACE, None)
    if seen is None:
        return sdpa_attention_forward(attention, query, key, value, mask, **kwargs)
    plain = vars(sys.modules[type(attention).__module__])["eager_attention_forward"]
    output, probabilities = plain(attention, query, key, value, mask, **kwargs)
    seen["probabilities"], seen["values"] = probabilities, value
    return output, probabilities


AttentionInterface.register(IMPLEMENTATION, attend)
ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, eager_mask)


def observe(decoder: Decoder) -> None:
    """Let the decoder's attentions be looked at; in place of fused ones of other kinds."""
    decoder.module.set_attn_implementation(IMPLEMENTATION)


def observed(decoder: Decoder, index: int, seen: dict[str, Tensor], output: Tensor) -> Attention:
    """The attention of layer `index`, of which `seen` was put down, and which gave `output`."""
    projection = getattr(decoder.attention(index), decoder.family.projection)
    # transformers' Conv1D keeps its weight the other way around.
    weight = projection.weight if isinstance(projection, nn.Linear) else projection.weight.T
    bias = projection.bias
    return Attention(
        seen["probabilities"], seen["values"], weight, output if bias is None else output - bias
    )
