import json
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.language import RoutedLayers
from polypath.language.stacks import build_stack
from polypath.routing import RoutingContext, losses

ROUTERS = ["top-k", "expert-choice", "hash", "soft"]
CONTEXT = RoutingContext(shape=(1, 5), tokens=torch.arange(5))


@pytest.mark.parametrize("router", ROUTERS)
def test_json_keeps_every_value(router: str) -> None:
    own = RoutedLayers(router=router, num_experts=3, hidden=5, shared_hidden=2, kind="gelu")
    assert RoutedLayers.from_json(json.loads(json.dumps(own.to_json()))) == own


@pytest.mark.parametrize("router", ROUTERS)
def test_built_layer_is_what_the_config_says(router: str) -> None:
    layer = build_stack(RoutedLayers(router=router, num_experts=4, k=2, hidden=3), 8, 99, 1)[0]
    routing = layer.route(torch.randn(5, 8), CONTEXT)
    assert layer.experts.down_proj.shape == (4, 8, 3)
    assert routing.num_experts == 4
    used = {"top-k": 10, "hash": 10, "soft": 20, "expert-choice": 4 * 3}[router]  # 3 = ⌈2 · 5 / 4⌉
    assert routing.count().sum() == used


def test_losses_on_parameters_take_settings_and_draw_apart() -> None:
    wanted = {"coupling": {"weight": 0.5, "alpha": 0.8, "noise": False}, "orthogonality": 0.1}
    routed = RoutedLayers(num_experts=4, losses=wanted)
    assert RoutedLayers.from_json(json.loads(json.dumps(routed.to_json()))) == routed
    layers = build_stack(routed, 8, 3, 2)
    own = [layer.losses["coupling"] for layer in layers]
    assert [(loss.weight, loss.alpha, loss.noise, loss.seed) for loss in own] == [
        (0.5, 0.8, False, 0),
        (0.5, 0.8, False, 1),
    ]
    assert layers[0].losses["orthogonality"].weight == 0.1


def test_width_is_the_hosts_unless_told() -> None:
    assert build_stack(RoutedLayers(), 8, 12, 1)[0].experts.down_proj.shape == (8, 8, 12)


def test_shared_expert_serves_everything() -> None:
    layer = build_stack(
        RoutedLayers(num_experts=2, k=1, hidden=3, shared_hidden=5, kind="geglu"), 8, 3, 1
    )[0]
    x = torch.randn(6, 8)
    assert layer.shared.up.weight.shape == (10, 8)
    torch.testing.assert_close(layer(x), layer.experts(x, layer.last) + layer.shared(x))


def test_top_k_balances_unless_told_otherwise() -> None:
    assert RoutedLayers().losses == {"load_balance": 0.01}
    assert RoutedLayers(bias_rate=0.1).losses == {}
    assert RoutedLayers(losses={}).losses == {}
    assert RoutedLayers(router="hash").losses == {}


def test_losses_keep_their_names_and_weights() -> None:
    weights = {"load_balance": 1.0, "sequence_balance": 2.0, "router_z": 3.0, "entropy": 4.0}
    layer = build_stack(RoutedLayers(num_experts=4, losses=weights), 8, 3, 1)[0]
    layer(torch.randn(1, 5, 8))
    values = losses(layer)
    assert values.keys() == weights.keys()
    # One sequence is the whole batch, so both balances differ by their weights alone.
    torch.testing.assert_close(values["sequence_balance"], 2 * values["load_balance"])
    entropy = torch.distributions.Categorical(logits=layer.last.scores).entropy().mean()
    torch.testing.assert_close(values["entropy"], 4 * entropy)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"router": "topk"}, "unknown router 'topk'; did you mean 'top-k'?"),
        ({"kind": "swigl"}, "unknown kind 'swigl'; did you mean 'swiglu'?"),
        ({"scorer": "cosin"}, "unknown scorer 'cosin'; did you mean 'cosine'?"),
        ({"gate": "softmx"}, "unknown gate 'softmx'; did you mean 'softmax'?"),
        ({"losses": {"load_balanc": 1.0}}, "did you mean 'load_balance'?"),
        ({"losses": {"entropy": "much"}}, "losses['entropy']: expected a number, not 'much'"),
        ({"losses": {"entropy": {"weight": 1.0}}}, "losses['entropy']: expected a number"),
        ({"losses": {"coupling": {"alfa": 1.0}}}, "unknown setting 'alfa'; did you mean 'alpha'?"),
        ({"losses": {"coupling": {"noise": 1}}}, "['noise']: expected true or false, not 1"),
        ({"losses": {"coupling": {"alpha": -1.0}}}, "coupling: alpha=-1.0; at least 0 is needed"),
        ({"losses": 0.1}, "losses: expected a mapping of names to numbers or None, not 0.1"),
        ({"num_experts": "8"}, "num_experts: expected a whole number, not '8'"),
        ({"num_experts": 2.0}, "num_experts: expected a whole number, not 2.0"),
        (
            {"hidden": True},
            "hidden: expected a whole number or a list of whole numbers or None, not True",
        ),
        ({"hidden": 0}, "hidden=0; at least 1 is needed"),
        ({"num_experts": 0}, "num_experts=0; at least 1 is needed"),
        ({"num_experts": 4, "k": 5}, "k=5 of num_experts=4; k must be ≤ num_experts"),
        ({"capacity": 0.0}, "capacity=0.0; a positive number or None is right"),
        ({"bias_rate": -1}, "bias_rate=-1; a positive number or None is right"),
        ({"router": "hash", "scorer": "cosine"}, "a 'hash' router has no scorer"),
        ({"router": "hash", "losses": {"entropy": 1.0}}, "a 'hash' router has no losses"),
        ({"router": "soft", "k": 3}, "a 'soft' router has no k"),
        ({"router": "soft", "gate": "sigmoid"}, "a 'soft' router has no gate"),
        ({"router": "expert-choice", "capacity": 1.0}, "'expert-choice' router has no capacity"),
    ],
)
def test_wrong_values_get_one_line(values: dict, message: str) -> None:
    with pytest.raises(InputError) as caught:
        RoutedLayers(**values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_of_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="unknown field 'num_expert'; did you mean 'num_experts'"):
        RoutedLayers.from_json({"num_expert": 4})
    with pytest.raises(InputError, match="expected an object, not 3"):
        RoutedLayers.from_json(3)


@given(k=st.integers(1, 6), num_experts=st.integers(1, 6), bias=st.booleans())
def test_any_top_k_within_range_builds(k: int, num_experts: int, bias: bool) -> None:
    values = {"num_experts": num_experts, "k": k, "bias_rate": 0.1 if bias else None}
    if k > num_experts:
        with pytest.raises(InputError):
            RoutedLayers(**values)
        return
    own = RoutedLayers(**values)
    assert asdict(own) == own.to_json()
    layer = build_stack(own, 4, 3, 1)[0]
    assert layer(torch.randn(2, 3, 4)).shape == (2, 3, 4)
    assert layer.last.experts.shape == (6, k)
