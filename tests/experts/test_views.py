"""Views are checked by what they are for: an expert rebuilt from its views computes the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    JetMoeConfig,
    JetMoeForCausalLM,
    Llama4TextConfig,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersModel,
)
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama4.modeling_llama4 import Llama4TextExperts

from hosts import DENSE, NATIVE, tiny_model
from polypath.errors import InputError
from polypath.experts import ClampedSwiGLU, FeedForwardExperts
from polypath.experts.mixed import ExpertList
from polypath.experts.views import ExpertViews, experts_of
from polypath.language import RoutedLayers, attach
from polypath.routing import MoE, Routing, TopKRouter, record, routed_layers

Curve = Callable[[Tensor], Tensor]


def rebuilt(views: ExpertViews, layer: str | int, expert: int, x: Tensor, curve: Curve) -> Tensor:
    """What one expert computes on rows x (T, D), from its views alone."""
    maps = {name: views[layer, expert, name] for name in views.projections(layer)}
    hidden = {name: F.linear(x, v.weight, v.bias) for name, v in maps.items() if name != "down"}
    inner = curve(hidden["up"]) if "gate" not in hidden else curve(hidden["gate"]) * hidden["up"]
    return F.linear(inner, maps["down"].weight, maps["down"].bias)


def clamped(views: ExpertViews, layer: str | int, expert: int, x: Tensor) -> Tensor:
    """The same of gpt-oss, whose gate and up are clamped."""
    maps = {name: views[layer, expert, name] for name in ("gate", "up", "down")}
    gate = F.linear(x, maps["gate"].weight, maps["gate"].bias).clamp(max=7.0)
    up = F.linear(x, maps["up"].weight, maps["up"].bias).clamp(-7.0, 7.0)
    inner = (up + 1) * gate * torch.sigmoid(1.702 * gate)
    return F.linear(inner, maps["down"].weight, maps["down"].bias)


def alone(x: Tensor, expert: int, num_experts: int) -> Routing:
    """All things to one expert, with weight one."""
    experts = torch.full((len(x), 1), expert)
    return Routing(torch.zeros(len(x), num_experts), experts, torch.ones(len(x), 1))


@pytest.mark.parametrize("adopted", [False, True], ids=["native", "adopted"])
@pytest.mark.parametrize("kind", NATIVE)
def test_every_expert_of_every_family(kind: str, adopted: bool) -> None:
    model = tiny_model(kind)
    if adopted:
        attach(model)
    views, x = experts_of(model), torch.randn(5, 16)
    assert views.coverage().share == 1
    for layer in views.layers:
        bank = model.get_submodule(layer).experts
        for expert in range(views.num_experts(layer)):
            route = alone(x, expert, 8)
            given = (x, route) if adopted else (x, route.experts, route.weights)
            found = (
                clamped(views, layer, expert, x)
                if kind == "GptOss"
                else rebuilt(views, layer, expert, x, F.silu)
            )
            torch.testing.assert_close(found, bank(*given), rtol=1e-4, atol=1e-5)


def test_shared_experts_and_routers_of_deepseek() -> None:
    model = tiny_model("DeepseekV3")
    native, x = model.model.layers[1].mlp, torch.randn(5, 16)
    for _ in range(2):  # native, then adopted
        views = experts_of(model)
        (name, *_) = views.layers
        maps = views.shared[name]
        inner = F.silu(x @ maps["gate"].weight.T) * (x @ maps["up"].weight.T)
        wanted = (native.shared_experts or model.model.layers[1].mlp.shared)(x)
        torch.testing.assert_close(inner @ maps["down"].weight.T, wanted)
        weight, bias = views.routers[name].values()
        assert weight.shape == (8, 16) and bias.shape == (8,)
        scores = torch.sigmoid(x @ weight.T) + bias
        attach(model)
        layer = model.model.layers[1].mlp
        routing = layer.router(x)
        torch.testing.assert_close(
            scores, routing.probabilities + layer.router.selection.bias.value
        )


@pytest.mark.parametrize("kind", DENSE)
def test_attached_layers(kind: str) -> None:
    model = attach(tiny_model(kind), RoutedLayers(num_experts=4, shared_hidden=6, scorer="cosine"))
    views, x = experts_of(model), torch.randn(5, 16)
    assert views.layers == list(routed_layers(model))
    assert views.coverage().share == 1
    for name, layer in routed_layers(model).items():
        for expert in range(4):
            found = rebuilt(views, name, expert, x, F.silu)
            torch.testing.assert_close(found, layer.experts(x, alone(x, expert, 4)))
        maps = views.shared[name]
        inner = F.silu(x @ maps["gate"].weight.T) * (x @ maps["up"].weight.T)
        torch.testing.assert_close(inner @ maps["down"].weight.T, layer.shared(x))
        assert views.routers[name]["scorer.weight"] is layer.router.scorer.weight


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    kind=st.sampled_from(["swiglu", "gelu", "clamped"]),
    bias=st.booleans(),
    transposed=st.booleans(),
)
def test_stacked_banks_of_any_shape(
    sizes: tuple[int, int, int], kind: str, bias: bool, transposed: bool
) -> None:
    num_experts, dim, hidden = sizes
    network: Any = ClampedSwiGLU() if kind == "clamped" else kind
    bank = FeedForwardExperts(num_experts, dim, hidden, network, bias, transposed)
    for parameter in bank.parameters():
        nn.init.normal_(parameter)
    views, x = experts_of(nn.ModuleDict({"experts": bank})), torch.randn(3, dim)
    for expert in range(num_experts):
        found = (
            clamped(views, "", expert, x)
            if kind == "clamped"
            else rebuilt(views, "", expert, x, F.gelu if kind == "gelu" else F.silu)
        )
        torch.testing.assert_close(found, bank(x, alone(x, expert, num_experts)))


class Apart(nn.Module):
    """A gated network of linear maps under other names."""

    def __init__(self, gate: str, up: str, down: str) -> None:
        super().__init__()
        self.names = (gate, up, down)
        for name, ins, outs in ((gate, 6, 4), (up, 6, 4), (down, 4, 6)):
            setattr(self, name, nn.Linear(ins, outs))

    def forward(self, x: Tensor) -> Tensor:
        gate, up, down = (getattr(self, name) for name in self.names)
        return down(F.silu(gate(x)) * up(x))


@pytest.mark.parametrize("names", [("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")])
def test_experts_in_lists(names: tuple[str, str, str]) -> None:
    block = nn.Module()
    block.gate = nn.Linear(6, 3, bias=False)
    block.experts = nn.ModuleList(Apart(*names) for _ in range(3))
    model = nn.ModuleDict({"layers": nn.ModuleList([nn.Identity(), block])})
    views, x = experts_of(model), torch.randn(5, 6)
    assert views.layers == ["layers.1"]
    assert views.routers["layers.1"]["weight"] is block.gate.weight
    assert views.coverage().reached == sum(p.numel() for p in model.parameters())
    for expert, network in enumerate(block.experts):
        torch.testing.assert_close(rebuilt(views, 1, expert, x, F.silu), network(x))


def test_experts_of_different_kinds_side_by_side() -> None:
    networks = [nn.Identity(), Apart("w1", "w3", "w2"), nn.Linear(6, 6)]
    layer = MoE(TopKRouter(6, 3, 2), ExpertList(networks))
    views = experts_of(layer)
    assert views.layers == [""] and views.num_experts("") == 3
    assert [views.projections("", expert) for expert in range(3)] == [
        [],
        ["gate", "up", "down"],
        ["linear"],
    ]
    assert views["", 2, "linear"].parameter is networks[2].weight
    assert views.coverage().share == 1
    with pytest.raises(InputError, match="unknown projection 'gate'; known: linear"):
        views["", 2, "gate"]


def test_experts_of_gpt2s_transposed_linear_maps() -> None:
    config = tiny_model("GPT2").config
    model = nn.ModuleDict({"experts": nn.ModuleList(GPT2MLP(12, config) for _ in range(2))})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    views, x = experts_of(model), torch.randn(5, 16)
    for expert, network in enumerate(model["experts"]):
        found = rebuilt(views, "", expert, x, ACT2FN["gelu_new"])
        torch.testing.assert_close(found, network(x))


def test_experts_in_dictionaries() -> None:
    config = SwitchTransformersConfig(
        vocab_size=8, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_decoder_layers=2, num_heads=2,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, num_experts=3,
    )  # fmt: skip
    model = SwitchTransformersModel(config).eval()
    views, x = experts_of(model), torch.randn(5, 8)
    assert views.coverage().share == 1 and len(views) == 2 * 3 * 2
    with pytest.raises(InputError, match=r"layer 1 may be encoder.* or decoder.*give the name"):
        views[1, 0, "up"]
    for layer in views.layers:
        for expert, network in enumerate(model.get_submodule(layer).experts.children()):
            torch.testing.assert_close(rebuilt(views, layer, expert, x, F.relu), network(x))
        assert [t.shape for t in views.routers[layer].values()] == [(3, 8)]


def test_a_family_that_is_no_host() -> None:
    """Qwen2-MoE, whose shared expert has a gate of its own."""
    config = Qwen2MoeConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, moe_intermediate_size=4, shared_expert_intermediate_size=4,
        num_experts=3, num_experts_per_tok=1,
    )  # fmt: skip
    model = Qwen2MoeForCausalLM(config)
    views, block, x = experts_of(model), model.model.layers[0].mlp, torch.randn(5, 8)
    assert views.coverage().reached == sum(p.numel() for p in block.parameters())
    assert views.shared[views.layers[0]]["shared_expert_gate"].parameter.shape == (1, 8)
    for expert in range(3):
        wanted = block.experts(x, torch.full((5, 1), expert), torch.ones(5, 1))
        torch.testing.assert_close(rebuilt(views, 0, expert, x, F.silu), wanted)


def test_stacked_experts_that_do_not_say_how_they_lie() -> None:
    config = Llama4TextConfig(hidden_size=6, intermediate_size=4, num_local_experts=3)
    model = nn.ModuleDict({"experts": Llama4TextExperts(config)})
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(5, 6)
    wanted = model["experts"](x.repeat(3, 1)).view(3, 5, 6)
    views = experts_of(model)
    for expert in range(3):
        torch.testing.assert_close(rebuilt(views, "", expert, x, F.silu), wanted[expert])


@pytest.mark.parametrize("kind", NATIVE)
def test_what_is_written_changes_the_output_as_predicted(kind: str) -> None:
    """Twice the down projection of one expert adds once what it contributed."""
    model = attach(tiny_model(kind))
    views, x = experts_of(model), torch.randn(9, 16)
    name = views.layers[-1]
    layer = model.get_submodule(name)
    with torch.no_grad():
        before = layer.router(x)
        y = layer.experts(x, before)
        contribution = (
            layer.experts(x, alone(x, 5, 8))
            * (torch.zeros(9, 8).scatter(1, before.experts, before.weights)[:, 5:6])
        )
        down = views[name, 5, "down"]
        down.weight = 2 * down.weight
        if down.bias is not None:
            down.bias = 2 * down.bias
        torch.testing.assert_close(layer.experts(x, before), y + contribution)
        down.weight.mul_(0.5)
        if down.bias is not None:
            down.bias.mul_(0.5)
        torch.testing.assert_close(layer.experts(x, before), y)


@pytest.mark.parametrize("kind", NATIVE)
def test_writing_reaches_the_untouched_model(kind: str) -> None:
    """An expert that is emptied in every layer serves as one that was never there."""
    model = tiny_model(kind)
    ids = torch.randint(0, 61, (2, 5))
    for view in experts_of(model):
        if view.expert == 2:
            view.weight = torch.zeros_like(view.weight)
            if view.bias is not None:
                view.bias = torch.zeros_like(view.bias)
    emptied = model(ids).logits
    attach(model)
    for layer in routed_layers(model).values():
        layer.router.register_forward_hook(without_two)
    torch.testing.assert_close(model(ids).logits, emptied, rtol=1e-4, atol=1e-5)


def without_two(router: nn.Module, args: tuple, routing: Routing) -> Routing:
    out = routing.experts == 2
    experts, weights = routing.experts.masked_fill(out, -1), routing.weights.masked_fill(out, 0)
    return Routing(routing.scores, experts, weights, routing.probabilities, routing.mask)


def test_views_take_part_in_autograd() -> None:
    model = attach(tiny_model("GptOss"))
    views = experts_of(model)
    gate = views[0, 3, "gate"]
    assert gate.grad is None
    gate.weight.square().sum().backward()
    torch.testing.assert_close(gate.grad, 2 * gate.weight)
    assert views[0, 3, "up"].grad.count_nonzero() == 0
    assert views[0, 2, "gate"].grad.count_nonzero() == 0
    assert gate.parameter.grad.count_nonzero() == gate.weight.numel()


def test_views_outlive_casts_and_loads() -> None:
    model = attach(tiny_model("Olmoe"))
    up = experts_of(model)[1, 2, "up"]
    model.to(torch.bfloat16)
    assert up.weight.dtype == torch.bfloat16
    state = {name: torch.full_like(t, 3) for name, t in model.state_dict().items()}
    model.load_state_dict(state, assign=True)
    assert (up.weight == 3).all()


def test_every_view_once() -> None:
    views = experts_of(tiny_model("Qwen3Moe"))
    keys = [(view.layer, view.expert, view.projection) for view in views]
    assert len(set(keys)) == len(keys) == len(views) == 2 * 8 * 3
    assert all(
        views[key].parameter is view.parameter for key, view in zip(keys, views, strict=True)
    )
    assert str(views[2, 7, "down"]) == "ExpertView('model.layers.2.mlp', 7, 'down')"


def test_what_is_not_reached_is_told() -> None:
    model = tiny_model("Olmoe")
    model.model.layers[0].mlp.experts.scale = nn.Parameter(torch.ones(8, 5))
    model.model.other = nn.Module()
    model.model.other.stack = nn.Parameter(torch.ones(2, 3, 4))
    with pytest.warns(UserWarning, match="experts_of: OlmoeForCausalLM: 99.8% of 28,096 numbers"):
        coverage = experts_of(model).coverage()
    assert coverage.missed == ("model.layers.0.mlp.experts.scale", "model.other.stack")
    assert coverage.total - coverage.reached == 40 + 24
    wanted = 3 * (8 * 3 * 24 * 16 + 8 * 16)
    assert coverage.reached == wanted and coverage.share == wanted / (wanted + 64)


def test_layouts_that_are_not_known_are_not_guessed() -> None:
    config = JetMoeConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_key_value_heads=1, kv_channels=4,
        intermediate_size=8, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    model = JetMoeForCausalLM(config)
    with pytest.raises(InputError, match=r"has no experts that can be read: 0.0% of .*weight"):
        experts_of(model)
    with pytest.raises(InputError, match=r"LlamaForCausalLM has no experts$"):
        experts_of(tiny_model("Llama"))


def test_wrong_keys_and_shapes_are_told() -> None:
    views = experts_of(tiny_model("Mixtral"))
    with pytest.raises(InputError, match="unknown projection 'gat'; did you mean 'gate'"):
        views[0, 0, "gat"]
    with pytest.raises(InputError, match=r"layers.0.mlp has experts 0 to 7, not 8"):
        views[0, 8, "gate"]
    with pytest.raises(InputError, match=r"unknown layer '3'; known: model\.layers\.0\.mlp"):
        views[3, 0, "gate"]
    with pytest.raises(InputError, match=r"unknown layer 'model\.layers\.0\.mpl'; did you mean"):
        views["model.layers.0.mpl", 0, "gate"]
    with pytest.raises(InputError, match=r"'gate'\).weight is \(24, 16\); \(16, 24\) was given"):
        views[0, 0, "gate"].weight = torch.zeros(16, 24)
    with pytest.raises(InputError, match=r"'gate'\) has no bias to write"):
        views[0, 0, "gate"].bias = torch.zeros(24)


def test_recorded_layers_and_views_share_their_names() -> None:
    model = attach(tiny_model("DeepseekV3"))
    with record(model) as routes:
        model(torch.randint(0, 61, (1, 4)))
    assert list(routes) == experts_of(model).layers
