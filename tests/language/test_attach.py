import copy

import pytest
import torch
from torch import Tensor, nn

from hosts import DENSE, NATIVE, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.language.stacks import build_stack
from polypath.routing import (
    MoE,
    TopKRouter,
    losses,
    record,
    replay,
    routed_layers,
    update_biases,
)


@pytest.mark.parametrize("kind", DENSE)
def test_routed_layers_take_the_place_of_dense_ones(batch: dict, kind: str) -> None:
    model = tiny_model(kind)
    dense = model(**batch).logits
    attach(model, RoutedLayers(num_experts=4, hidden=5), layers=[0, 2])
    assert [name.split(".")[2] for name in routed_layers(model)] == ["0", "2"]
    assert not torch.allclose(model(**batch).logits, dense)


@pytest.mark.parametrize("kind", DENSE)
def test_equal_experts_that_copy_the_dense_layer_change_nothing(batch: dict, kind: str) -> None:
    """Whatever the routes are: weights that sum to one over equal experts give the dense layer."""
    model = tiny_model(kind)
    dense = model(**batch).logits
    mlps = [layer.mlp for layer in model.get_decoder().get_submodule(layers_of(kind))]

    class Copies(nn.Module):
        def __init__(self, mlp: nn.Module) -> None:
            super().__init__()
            self.mlp = mlp

        def forward(self, x, routing):
            return self.mlp(x) * routing.weights.sum(-1, keepdim=True)

    attach(model, lambda index: MoE(TopKRouter(16, 4, 2), Copies(mlps[index])))
    torch.testing.assert_close(model(**batch).logits, dense)


def layers_of(kind: str) -> str:
    return "h" if kind == "GPT2" else "layers"


def test_width_dtype_and_device_are_the_models() -> None:
    model = tiny_model("Llama").to(torch.bfloat16)
    attach(model, RoutedLayers(num_experts=2, k=1, bias_rate=0.1), layers=[1])
    layer = model.model.layers[1].mlp
    assert layer.experts.down_proj.shape == (2, 16, 24)
    assert {p.dtype for p in layer.parameters()} == {torch.bfloat16}
    assert layer.router.selection.bias.value.dtype == torch.float32
    assert not layer.training
    widths = {}
    for kind in DENSE:
        attach(model := tiny_model(kind), RoutedLayers(num_experts=2, k=1), [0])
        widths[kind] = next(iter(routed_layers(model).values())).experts.down_proj.shape[2]
    assert widths == dict.fromkeys(DENSE, 24) | {"GPT2": 64}


@pytest.mark.parametrize("kind", DENSE | NATIVE)
def test_routes_losses_and_biases_of_every_host(batch: dict[str, Tensor], kind: str) -> None:
    weights = {"load_balance": 0.5, "router_z": 0.25}
    model = tiny_model(kind).train()
    attach(model, RoutedLayers(num_experts=4, bias_rate=0.1, gate="sigmoid", losses=weights))
    with record(model) as routes:
        logits = model(**batch).logits
    parts = [part for (part,) in routes.values()]
    assert len(parts) == 3 and all(part.experts.shape == (21, 2) for part in parts)
    found = losses(model)
    counted = batch["attention_mask"].flatten().bool()
    wanted = [part.scores[counted].logsumexp(1).square().mean() for part in parts]
    torch.testing.assert_close(found["router_z"], 0.25 * torch.stack(wanted).mean())

    update_biases(model)
    for layer, part in zip(routed_layers(model).values(), parts, strict=True):
        load = torch.bincount(part.experts[counted].flatten(), minlength=4).float()
        moved = layer.router.selection.bias.value
        torch.testing.assert_close(moved, 0.1 * torch.sign(load.mean() - load))
        nn.init.normal_(moved)
    with replay(model, routes):
        torch.testing.assert_close(model(**batch).logits, logits, rtol=0, atol=0)
    assert not torch.allclose(model(**batch).logits, logits)


def test_copies_are_whole_and_apart(batch: dict) -> None:
    model = attach(tiny_model("Llama"), RoutedLayers(router="hash", num_experts=4))
    twin = copy.deepcopy(model)
    torch.testing.assert_close(twin(**batch).logits, model(**batch).logits, rtol=0, atol=0)
    nn.init.zeros_(twin.model.layers[0].mlp.experts.down_proj)
    del model
    with record(twin) as routes:
        twin(**batch)
    assert all(len(parts) == 1 for parts in routes.values())


def test_a_function_that_fails_changes_nothing() -> None:
    model = tiny_model("Llama")
    looks = repr(model)
    with pytest.raises(InputError, match="made a Linear for layer 2"):
        attach(
            model,
            lambda i: build_stack(RoutedLayers(), 16, 4, 1)[0] if i < 2 else nn.Linear(16, 16),
        )
    assert repr(model) == looks


def test_wrong_hosts_and_layers_are_told() -> None:
    from transformers import BertConfig, BertModel

    bert = BertModel(
        BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=8)
    )
    with pytest.raises(InputError, match=r"BertModel \(bert\) is not a host .* llama, qwen3"):
        attach(bert, RoutedLayers())
    with pytest.raises(InputError, match="Linear is not a transformers model"):
        attach(nn.Linear(2, 2), RoutedLayers())
    with pytest.raises(InputError, match="no layer 3; the model has layers 0 to 2"):
        attach(tiny_model("Llama"), RoutedLayers(), layers=[3])
