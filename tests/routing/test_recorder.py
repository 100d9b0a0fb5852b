"""Recording and replaying: exactness, errors, and models left as they were."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from polypath.errors import InputError
from polypath.experts import FeedForwardExperts
from polypath.routing import (
    LoadBalance,
    MoE,
    Routes,
    RoutingContext,
    TopKRouter,
    given,
    losses,
    record,
    replay,
)


def layer(**options) -> MoE:
    router = TopKRouter(8, 6, 2, losses=[LoadBalance(1.0)], **options)
    nn.init.normal_(router.scorer.weight)
    return MoE(router, FeedForwardExperts(6, 8, 4))


class Deep(nn.Module):
    """Eleven layers beside a residual stream, so that their names do not sort as they run."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layer(**options) for _ in range(11))
        self.checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        for moe in self.layers:
            y = checkpoint(moe, x, use_reentrant=False) if self.checkpointing else moe(x)
            x = F.normalize(x + y)
        return x


NAMES = [f"layers.{i}" for i in range(11)]


def state(model: nn.Module) -> list:
    return [(m.listeners[:], m.override) for m in model.modules() if isinstance(m, MoE)]


def test_record_gives_what_the_routers_decide() -> None:
    model, xs = Deep(), [torch.randn(size, 8) for size in (5, 0, 1)]
    with record(model) as routes:
        ys = [model(x) for x in xs]
    assert list(routes) == NAMES
    for x, y, turn in zip(xs, ys, range(3), strict=True):
        for name, moe in zip(NAMES, model.layers, strict=True):
            expected = moe.router(x, RoutingContext())
            assert torch.equal(routes[name][turn].experts, expected.experts)
            assert torch.equal(routes[name][turn].weights, expected.weights)
            assert not routes[name][turn].weights.requires_grad
            x = F.normalize(x + moe(x))
        assert torch.equal(x, y)


def test_recording_off_is_no_code_at_all() -> None:
    model = Deep()
    assert state(model) == [([], None)] * 11
    with record(model):
        assert all(len(listeners) == 1 for listeners, _ in state(model))
    assert state(model) == [([], None)] * 11


def test_recording_changes_no_output() -> None:
    model, x = Deep(), torch.randn(7, 8)
    plain = model(x)
    with record(model):
        assert torch.equal(model(x), plain)


def test_records_nest_and_end_on_errors() -> None:
    model, x = Deep(), torch.randn(3, 8)
    with record(model) as outer:
        model(x)
        with pytest.raises(KeyError), record(model) as inner:
            model(x)
            raise KeyError
        model(x)
    assert (len(outer["layers.0"]), len(inner["layers.0"])) == (3, 1)
    assert torch.equal(outer["layers.0"][1].experts, inner["layers.0"][0].experts)
    assert state(model) == [([], None)] * 11


def test_records_are_kept_where_asked() -> None:
    model = layer()
    with record(model, device="meta") as routes:
        model(torch.randn(3, 8))
    assert routes[""][0].scores.device.type == "meta"


def test_joined_is_all_things_of_a_layer() -> None:
    model = Deep()
    with record(model) as routes:
        for size in (5, 2):
            model(torch.randn(size, 8))
    assert [len(routing) for routing in routes.joined().values()] == [7] * 11
    first, second = routes["layers.3"]
    assert torch.equal(routes.joined()["layers.3"].load(), first.load() + second.load())


@pytest.mark.parametrize("weights", ["recorded", "computed"])
@pytest.mark.parametrize(
    "options", [{}, {"gate": "softmax", "capacity": 0.8}, {"scorer": "noisy"}], ids=str
)
def test_replay_goes_the_same_way_to_the_bit(weights: str, options: dict) -> None:
    model, xs = Deep(**options), [torch.randn(size, 8) for size in (9, 4)]
    with record(model) as routes:
        ys = [model(x) for x in xs]
    with replay(model, routes, weights), record(model) as again:
        replayed = [model(x) for x in xs]
    assert state(model) == [([], None)] * 11
    for name in routes:
        for ours, theirs in zip(again[name], routes[name], strict=True):
            assert torch.equal(ours.experts, theirs.experts)
    if weights == "recorded" or options.get("scorer") != "noisy":  # noise is drawn anew
        assert all(torch.equal(a, b) for a, b in zip(replayed, ys, strict=True))


def test_replay_weighs_without_the_choices_that_capacity_dropped() -> None:
    model, x = layer(capacity=0.5), torch.randn(9, 8)
    with record(model) as routes:
        model(x)
    assert set(routes[""][0].count().tolist()) == {0, 1, 2}
    with replay(model, routes, "computed"):
        model(x)
    served = model.last.count() > 0
    torch.testing.assert_close(model.last.weights.sum(-1), served.float())


def test_replayed_experts_teach_the_router() -> None:
    model, x = layer(), torch.randn(9, 8)
    with record(model) as routes:
        model(x)
    with torch.no_grad():
        model.router.scorer.weight.normal_()
    with replay(model, routes, "computed"):
        y = model(x)
    routing = model.last
    assert torch.equal(routing.experts, routes[""][0].experts)
    chosen = (x @ model.router.scorer.weight.T).gather(1, routing.experts)
    torch.testing.assert_close(routing.weights, chosen.softmax(-1))
    (y.sum() + losses(model)["load_balance"]).backward()
    assert model.router.scorer.weight.grad.any()


def test_replay_of_weights_asks_no_router() -> None:
    model, x = layer(), torch.randn(9, 8)
    with record(model) as routes:
        expected = model(x)
    with torch.no_grad():
        model.router.scorer.weight.fill_(torch.nan)
    with replay(model, routes):
        assert torch.equal(model(x), expected)
        model.zero_grad()
    assert model.router.scorer.weight.grad is None


def gradients(model: Deep, xs: list[Tensor]) -> list[Tensor]:
    model.zero_grad()
    for x in xs:
        (model(x)[:, 0].sum() + losses(model)["load_balance"]).backward()
    return [parameter.grad for parameter in model.parameters()]


def test_checkpointing_is_neither_recorded_nor_a_turn_of_the_replay() -> None:
    model, xs = Deep(), [torch.randn(5, 8) for _ in range(3)]
    with record(model) as routes:
        for x in xs:
            model(x)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    with replay(model, routes, "computed"):
        expected = gradients(model, xs)
    model.checkpointing = True
    with record(model) as again, replay(model, routes, "computed"):
        found = gradients(model, xs)
    assert all(len(parts) == 3 for parts in again.values())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with replay(model, routes, "computed"):
        late = model(xs[0]).sum() + model(xs[1]).sum()
        with pytest.raises(InputError, match="call backward after each forward"):
            late.backward()


def test_replays_nest_and_end_on_errors() -> None:
    model, x = layer(), torch.randn(4, 8)
    with record(model) as first:
        model(x)
    with torch.no_grad():
        model.router.scorer.weight.normal_()
    with record(model) as second:
        model(x)
    with replay(model, first):
        with pytest.raises(KeyError), replay(model, second):
            model(x)
            assert torch.equal(model.last.experts, second[""][0].experts)
            raise KeyError
        model(x)
        assert torch.equal(model.last.experts, first[""][0].experts)
    assert state(model) == [([], None)]


def test_replay_refuses_what_was_not_recorded() -> None:
    model, x = Deep(), torch.randn(4, 8)
    with record(model) as routes:
        model(x)
    with replay(model, routes):
        model(x)
        with pytest.raises(InputError, match=r"layers\.0 ran more often than was recorded, 1 t"):
            model(x)
    with replay(model, routes), pytest.raises(InputError, match="got 3 things, 4 were recorded"):
        model(x[:3])
    some = Routes({name: routes[name] for name in list(routes)[:9]})
    with (
        pytest.raises(InputError, match=r"recorded for layers\.10, layers\.9"),
        replay(model, some),
    ):
        pass
    with pytest.raises(InputError, match="did you mean 'computed'"):
        replay(model, routes, "compute").__enter__()
    assert state(model) == [([], None)] * 11


@pytest.mark.parametrize("block", [record, lambda model: replay(model, Routes({}))])
def test_models_without_routed_layers_are_refused(block) -> None:
    with pytest.raises(InputError, match="Linear has no routed layers"), block(nn.Linear(2, 2)):
        pass


# Files and copies


def assert_equal(ours: Routes, theirs: Routes) -> None:
    assert list(ours) == list(theirs), "layers in the order of the model"
    for name in theirs:
        for a, b in zip(ours[name], theirs[name], strict=True):
            assert a.tensors().keys() == b.tensors().keys()
            assert all(torch.equal(a.tensors()[n], t) for n, t in b.tensors().items())


def test_file_round_trip(tmp_path: Path) -> None:
    model = Deep()
    with record(model) as routes:
        for size in (5, 0, 3):
            with given(mask=torch.rand(size) < 0.5):
                model(torch.randn(size, 8))
    routes.save(tmp_path / "routes.safetensors")
    read = Routes.read(tmp_path / "routes.safetensors")
    assert_equal(read, routes)
    x = torch.randn(5, 8)
    with replay(model, {name: parts[:1] for name, parts in routes.items()}):
        expected = model(x)
    with replay(model, read):
        assert torch.equal(model(x), expected)


def test_file_of_a_layer_that_never_ran(tmp_path: Path) -> None:
    with record(layer()) as routes:
        pass
    routes.save(tmp_path / "routes.safetensors")
    assert_equal(Routes.read(tmp_path / "routes.safetensors"), routes)


@pytest.mark.parametrize(
    ("tensors", "facts"),
    [
        ({"0/0/scores": torch.ones(2, 2)}, {}),
        ({"0/0/scores": torch.ones(2, 2)}, {"layers": '["0"]'}),
        ({"1/0/scores": torch.ones(2, 2)}, {"layers": '["0"]'}),
        ({"0/first/scores": torch.ones(2, 2)}, {"layers": '["0"]'}),
        ({"weight": torch.ones(2, 2)}, {"layers": '["0"]'}),
        ({}, {"layers": "0]"}),
        ({}, {"layers": "7"}),
    ],
)
def test_other_files_are_refused(
    tensors: dict[str, Tensor], facts: dict[str, str], tmp_path: Path
) -> None:
    save_file(tensors, tmp_path / "other.safetensors", facts)
    with pytest.raises(InputError, match=r"holds no recorded routes|missing"):
        Routes.read(tmp_path / "other.safetensors")


def test_copies_and_states_know_nothing_of_listeners() -> None:
    model, x = layer(), torch.randn(4, 8)
    with record(model) as routes, replay(model, {"": []}):
        copied = deepcopy(model)
    copied(x)
    assert routes[""] == []
    assert state(copied) == [([], None)]
    model(x)
    assert deepcopy(model).last is None
    other = layer()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}
