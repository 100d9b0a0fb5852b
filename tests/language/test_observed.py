"""What a host shows of its attention, and what routers remember beside its cache."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hosts import DENSE, NATIVE, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, from_pretrained, save_pretrained
from polypath.routing import Attention, routed_layers

# gpt-oss attends to a sink as well, and its rows do not add up to one.
HOSTS = [kind for kind in DENSE | NATIVE if kind != "GptOss"]
every_host = pytest.mark.parametrize("kind", HOSTS)
ROUTERS: dict[str, dict[str, Any]] = {
    "similarity": {},
    "windowed": {"window": 2},
    "attention": {},
    "posterior": {"heads": "all", "sigma": 3.0},
}
every_router = pytest.mark.parametrize("name", ROUTERS)


def model_of(kind: str, name: str = "attention") -> Any:
    torch.manual_seed(0)
    model = tiny_model(kind)
    router = {"windowed": "similarity", "posterior": "attention"}.get(name, name)
    routed = RoutedLayers(router, num_experts=4, hidden=5, options=ROUTERS[name])
    return attach(model, routed).eval()


def told(model: Any, **batch: Tensor) -> list[Attention]:
    """What the routers of a model are told in a forward."""
    found = []
    handles = [
        layer.router.register_forward_pre_hook(lambda _, args: found.append(args[1].attention))
        for layer in routed_layers(model).values()
    ]
    model(**batch, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


@every_host
@torch.no_grad()
def test_the_mean_of_what_is_seen_is_what_the_attention_gave(
    batch: dict[str, Tensor], kind: str
) -> None:
    for attention in told(model_of(kind), **batch):
        heads = attention.probabilities.shape[1]
        values = attention.values.repeat_interleave(heads // attention.values.shape[1], 1)
        mixed = (attention.probabilities @ values).transpose(1, 2).flatten(2)
        torch.testing.assert_close(
            mixed @ attention.projection.T, attention.output, rtol=1e-4, atol=1e-5
        )
        real = batch["attention_mask"].bool()[:, None].expand(-1, heads, -1)
        assert not attention.probabilities.triu(1)[real].any()


@every_host
@torch.no_grad()
def test_looking_changes_nothing(batch: dict[str, Tensor], kind: str) -> None:
    """With no share of the votes in the decision, the model is the one with plain routers."""
    torch.manual_seed(0)
    plain = attach(tiny_model(kind), RoutedLayers(num_experts=4, hidden=5)).eval()
    torch.manual_seed(0)
    routed = RoutedLayers("attention", num_experts=4, hidden=5, options={"start": 0.0})
    ours = attach(tiny_model(kind), routed).eval()
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(
        ours(**batch).logits[real], plain(**batch).logits[real], rtol=1e-3, atol=1e-4
    )


@every_router
@every_host
@torch.no_grad()
def test_generating_step_by_step_is_the_whole_pass(kind: str, name: str) -> None:
    model = model_of(kind, name)
    ids = torch.randint(1, 61, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    out = model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
    parts = [out.logits]
    for end in range(5, 10):
        out = model(
            input_ids=ids[:, end - 1 : end],
            attention_mask=mask[:, :end],
            past_key_values=out.past_key_values,
            use_cache=True,
        )
        parts.append(out.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real], rtol=1e-3, atol=1e-4)


@every_router
@torch.no_grad()
def test_beams_take_what_is_remembered_along(name: str) -> None:
    """The best beam scores as the whole pass scores it."""
    model = model_of("Llama", name)
    ids = torch.randint(1, 61, (2, 5))
    found = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        num_beams=4,
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    logits = model(found.sequences[:, :-1], use_cache=False).logits[:, 4:].log_softmax(-1)
    picked = logits.gather(2, found.sequences[:, 5:, None]).sum((1, 2))
    torch.testing.assert_close(found.sequences_scores, picked, rtol=1e-3, atol=1e-3)


@every_router
@torch.no_grad()
def test_they_are_saved_and_loaded(batch: dict[str, Tensor], tmp_path: Path, name: str) -> None:
    model = model_of("Qwen3", name)
    save_pretrained(model, tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert "observed" not in (tmp_path / "model" / "config.json").read_text()


@torch.no_grad()
def test_a_cache_that_is_not_the_model_s_own_is_refused() -> None:
    plain, model = attach(tiny_model("Llama"), RoutedLayers(num_experts=4)), model_of("Llama")
    ids = torch.randint(1, 61, (2, 5))
    cache = plain(ids, past_key_values=DynamicCache(config=plain.config)).past_key_values
    with pytest.raises(InputError, match="layer 0: the cache holds 6 tokens, its router remem"):
        model(ids[:, :1], past_key_values=cache)


def test_another_attention_leaves_the_router_without(batch: dict[str, Tensor]) -> None:
    model = model_of("Llama")
    model.set_attn_implementation("sdpa")
    with pytest.raises(InputError, match="AttentionRouter needs `attention`"):
        model(**batch)


def test_gradients_go_through_the_attention(batch: dict[str, Tensor]) -> None:
    model = model_of("Llama").train()
    model.activation_checkpointing_enable()
    model(**batch, labels=batch["input_ids"], use_cache=False).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
