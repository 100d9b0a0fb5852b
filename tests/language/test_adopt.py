import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hosts import NATIVE, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, detach
from polypath.language.stacks import build_stack
from polypath.routing import losses, record, replay, routed_layers, update_biases

ROUTED = {"Qwen3Moe": [0, 2], "DeepseekV3": [1, 2]}
every_family = pytest.mark.parametrize("kind", NATIVE)


def storage(model: nn.Module) -> dict[int, torch.Size]:
    return {t.data_ptr(): t.shape for t in model.state_dict(keep_vars=True).values()}


def cached_steps(model: PreTrainedModel, batch: dict[str, Tensor]) -> Tensor:
    """Logits of a prefill of four tokens and of the others one by one, through the cache."""
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache, logits = None, []
    for start, end in [(0, 4), (4, 5), (5, 6), (6, 7)]:
        out = model(ids[:, start:end], attention_mask=mask[:, :end], past_key_values=cache)
        cache = out.past_key_values
        logits.append(out.logits)
    return torch.cat(logits, 1)


@every_family
@torch.no_grad()
def test_logits_stay(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    before, stepped = model(**batch).logits, cached_steps(model, batch)
    written = model.generate(**batch, max_new_tokens=5, do_sample=False)
    attach(model)
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached_steps(model, batch), stepped, rtol=1e-5, atol=1e-5)
    assert model.generate(**batch, max_new_tokens=5, do_sample=False).equal(written)


@every_family
def test_parameters_are_the_checkpoints_own(kind: str) -> None:
    model = tiny_model(kind)
    before = storage(model)
    parameters = set(model.parameters())
    attach(model)
    assert storage(model) == before
    assert set(model.parameters()) == parameters
    indices = [int(name.split(".")[2]) for name in routed_layers(model)]
    assert indices == ROUTED.get(kind, [0, 1, 2])


@every_family
def test_detaching_is_exact(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    logits, before, looks = model(**batch).logits, storage(model), repr(model)
    names = list(model.state_dict())
    detach(attach(attach(model)))
    assert "save_pretrained" not in vars(model)
    assert list(model.state_dict()) == names
    assert storage(model) == before
    assert repr(model) == looks
    assert model(**batch).logits.equal(logits)
    with pytest.raises(InputError, match="has no adopted layers"):
        detach(model)


@every_family
def test_detached_copies_are_whole_and_apart(batch: dict[str, Tensor], kind: str) -> None:
    model = attach(tiny_model(kind))
    twin = copy.deepcopy(model)
    logits = model(**batch).logits
    assert twin(**batch).logits.equal(logits)
    assert not storage(twin).keys() & storage(model).keys()
    detach(twin)
    assert list(routed_layers(model)) and not routed_layers(twin)
    torch.testing.assert_close(twin(**batch).logits, logits, rtol=1e-5, atol=1e-5)


@every_family
def test_routes_are_those_of_transformers(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    native: list[tuple[Tensor, ...]] = []
    for module in model.modules():
        if type(module).__name__.lower().endswith("topkrouter"):
            module.register_forward_hook(lambda module, args, output: native.append(output))
    with torch.no_grad():
        model(**batch)
    with record(attach(model)) as routes:
        model(**batch)
    for (scores, weights, experts), (routing,) in zip(native, routes.values(), strict=True):
        torch.testing.assert_close(routing.scores, scores, rtol=1e-5, atol=1e-5)
        assert routing.experts.sort(-1).values.equal(experts.sort(-1).values)
        by_expert = torch.zeros_like(scores).scatter(1, experts, weights)
        torch.testing.assert_close(
            torch.zeros_like(scores).scatter(1, routing.experts, routing.weights),
            by_expert,
            rtol=1e-5,
            atol=1e-6,
        )
        assert routing.mask.equal(batch["attention_mask"].bool().flatten())


@every_family
def test_recorded_routes_are_taken_again(batch: dict[str, Tensor], kind: str) -> None:
    model = attach(tiny_model(kind))
    with record(model) as routes:
        logits = model(**batch).logits
    for layer in routed_layers(model).values():
        nn.init.normal_(layer.router.scorer.weight)
    assert not torch.allclose(model(**batch).logits, logits)
    with replay(model, routes):
        torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)


@every_family
def test_gradients_stay(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    before = gradients(model, batch)
    after = gradients(attach(model), batch)
    assert before.keys() == after.keys()
    for name, grad in before.items():
        torch.testing.assert_close(after[name], grad, rtol=1e-4, atol=1e-5)


def gradients(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[int, Tensor]:
    """By the address of the parameter, which adopting does not change."""
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {p.data_ptr(): p.grad.clone() for p in model.parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", ["Olmoe", "Mixtral", "Qwen3Moe", "GptOss"])
def test_balance_loss_is_the_one_that_the_config_weighs(
    batch: dict[str, Tensor], kind: str
) -> None:
    """On one layer: over several, transformers takes them for one layer of more things."""
    model = tiny_model(kind, num_hidden_layers=1, router_aux_loss_coef=0.3)
    native = model(**batch, output_router_logits=True)
    adopted = attach(model)(**batch, output_router_logits=True)
    torch.testing.assert_close(losses(model)["load_balance"], 0.3 * native.aux_loss)
    torch.testing.assert_close(adopted.aux_loss, native.aux_loss)
    torch.testing.assert_close(adopted.router_logits, native.router_logits)


@pytest.mark.parametrize("kind", ["Olmoe", "Qwen3Moe"])
@pytest.mark.parametrize("normalised", [False, True])
def test_both_settings_of_norm_topk_prob(
    batch: dict[str, Tensor], kind: str, normalised: bool
) -> None:
    model = tiny_model(kind, norm_topk_prob=normalised)
    before = model(**batch).logits
    torch.testing.assert_close(attach(model)(**batch).logits, before, rtol=1e-5, atol=1e-5)
    total = next(iter(routed_layers(model).values())).last.weights.sum(-1)
    assert torch.allclose(total, torch.ones(21)) == normalised


@pytest.mark.parametrize("changes", [{"norm_topk_prob": False}, {"n_group": 1, "topk_group": 1}])
def test_other_settings_of_deepseek(batch: dict[str, Tensor], changes: dict[str, Any]) -> None:
    model = tiny_model("DeepseekV3", **changes)
    before = model(**batch).logits
    torch.testing.assert_close(attach(model)(**batch).logits, before, rtol=1e-5, atol=1e-5)


def test_the_clamp_of_gpt_oss_is_the_configs(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(1)
    usual = tiny_model("GptOss")(**batch).logits
    torch.manual_seed(1)
    model = tiny_model("GptOss", swiglu_limit=0.2, swiglu_alpha=1.0)
    before = model(**batch).logits
    assert not torch.allclose(before, usual)
    torch.testing.assert_close(attach(model)(**batch).logits, before, rtol=1e-5, atol=1e-5)


def test_jitter_of_mixtral_draws_alike(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Mixtral", router_jitter_noise=0.3)
    still = model(**batch).logits
    model.train()
    torch.manual_seed(1)
    noisy = model(**batch).logits
    attach(model)
    torch.manual_seed(1)
    torch.testing.assert_close(model(**batch).logits, noisy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model.eval()(**batch).logits, still, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(noisy, still)


def test_gelu_experts_and_others(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Mixtral", hidden_act="gelu_pytorch_tanh")
    before = model(**batch).logits
    torch.testing.assert_close(attach(model)(**batch).logits, before, rtol=1e-5, atol=1e-5)
    odd = tiny_model("Mixtral", hidden_act="relu")
    with pytest.raises(InputError, match="MixtralExperts: its activation is 'relu'; known: silu"):
        attach(odd)
    assert not routed_layers(odd)


def test_biases_move_in_the_checkpoint(batch: dict[str, Tensor]) -> None:
    model = attach(tiny_model("DeepseekV3")).train()
    before = model.state_dict(keep_vars=True)["model.layers.1.mlp.router.selection.bias.value"]
    start = before.clone()
    model(**batch)
    load = routed_layers(model)["model.layers.1.mlp"].last.load()
    update_biases(model)
    after = detach(model).model.layers[1].mlp.gate.e_score_correction_bias
    assert after is before
    torch.testing.assert_close(after, start + 1e-3 * torch.sign(load.mean() - load))


@every_family
def test_other_layers_take_the_place_of_native_ones(batch: dict[str, Tensor], kind: str) -> None:
    model = attach(tiny_model(kind))
    attach(model, RoutedLayers("hash", num_experts=4), layers=[2])
    with record(model) as routes:
        model(**batch)
    assert routes["model.layers.2.mlp"][0].num_experts == 4
    assert routes["model.layers.2.mlp"][0].mask.equal(batch["attention_mask"].bool().flatten())
    detach(model)
    assert list(routed_layers(model)) == ["model.layers.2.mlp"]


def test_only_what_was_adopted_goes_back() -> None:
    model = attach(tiny_model("Olmoe"), layers=[1])
    assert list(routed_layers(model)) == ["model.layers.1.mlp"]
    layer = model.model.layers[1].mlp
    layer.router = build_stack(RoutedLayers(num_experts=8), 16, 4, 1)[0].router
    with pytest.raises(InputError, match="adopted from OlmoeSparseMoeBlock was changed"):
        detach(model)


def test_nothing_to_adopt_is_told() -> None:
    with pytest.raises(InputError, match="no experts to adopt in LlamaModel; give RoutedLayers"):
        attach(tiny_model("Llama"))
    with pytest.raises(InputError, match=r"to adopt in layers \[1\] of Qwen3MoeModel"):
        attach(tiny_model("Qwen3Moe"), layers=[0, 1])
