"""One matrix: every part of a routed model enters it as a row, and passes the same checks.

To enter a router, add a row to ROUTERS; to enter a bank of experts, add one to BANKS:

    Row("name", lambda: MyRouter(DIM, EXPERTS), context=tokens, per_thing=False)

- `make` takes no arguments and draws from torch's generator. A router serves DIM dimensions and
  EXPERTS experts, and may choose as it likes; a bank has EXPERTS experts, DIM → DIM.
- `context` gives what it reads beside the things, as fields of RoutingContext for T things.
- `per_thing=False` says that a thing's result depends on the things beside it.
- `double=False` says that it does not compute in float64, and says so itself.
- `idle` names parameters that are not to get a gradient, and the row says why.

Rows of both lists are joined to routed layers: each router with the first bank and each bank with
the first router pass every check (SYSTEMS), all pairs pass that of `test_pairs`. A whole model with
routed layers inside enters SYSTEMS itself: a System is a module, what it is given, and its context.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts import (
    ClampedSwiGLU,
    ExpertList,
    FactoredExperts,
    FeedForwardExperts,
    SharedExpert,
)
from polypath.experts.activations import ACTIVATIONS, Activation
from polypath.experts.compressed import CompressedExpert
from polypath.experts.merged import MergedExperts
from polypath.routing import (
    Attention,
    AttentionRouter,
    AutonomousRouter,
    DynamicRouter,
    Entropy,
    ExpertChoiceRouter,
    FirstCome,
    HashRouter,
    Importance,
    LinearScorer,
    LoadBalance,
    MoE,
    PerSlice,
    PregatingScorer,
    ProgressiveScaling,
    RecurrentRouter,
    Router,
    RouterZ,
    Routing,
    SelectionBias,
    SigmoidGate,
    SimilarityRouter,
    SoftmaxGate,
    SoftRouter,
    TopK,
    TopKRouter,
    given,
    losses,
    record,
    replay,
    routed_layers,
    update_biases,
)

DIM, EXPERTS, THINGS = 8, 4, 24
"""Enough things for every expert to be chosen by some."""


def nothing(things: int) -> dict[str, Any]:
    return {}


def tokens(things: int) -> dict[str, Any]:
    return {"tokens": torch.arange(things)}


def sequence(things: int) -> dict[str, Any]:
    """One sequence of tokens."""
    places = torch.arange(things)
    return {"tokens": places % 11, "positions": places, "shape": (1, things)}


def attention(things: int) -> dict[str, Any]:
    """Each thing attends to itself alone, so that the attention of some things is a part of it."""
    eye = torch.eye(things, dtype=torch.float64).expand(1, 2, -1, -1)
    values = torch.linspace(-1, 1, 6 * things, dtype=torch.float64).view(1, 2, things, 3)
    output = values.transpose(1, 2).flatten(2) @ torch.ones(6, DIM, dtype=torch.float64)
    projection = torch.ones(DIM, 6, dtype=torch.float64)
    return {"attention": Attention(eye, values, projection, output)}


@dataclass(frozen=True)
class Row:
    name: str
    make: Callable[[], nn.Module]
    context: Callable[[int], dict[str, Any]] = nothing
    per_thing: bool = True
    double: bool = True
    idle: frozenset[str] = frozenset()
    sums: bool = False  # over a sequence, where nothing times NaN is NaN, as in attention


def grouped() -> Router:
    """DeepSeek-V3's router: sigmoid, groups, a bias that only the selection sees."""
    selection = TopK(2, SelectionBias(EXPERTS, rate=0.1), groups=2, best_groups=1)
    return Router(LinearScorer(DIM, EXPERTS), selection, SigmoidGate(scale=2.5))


def recurrent() -> Router:
    return RecurrentRouter(DIM, EXPERTS, 2, nn.GRUCell(5, 5), losses=[LoadBalance()])


def scaled() -> Router:
    limit = ProgressiveScaling(EXPERTS, 2, 10, 20)
    return TopKRouter(DIM, EXPERTS, 2, gate="softmax", losses=[LoadBalance()], candidates=limit)


def switch() -> Router:
    """Switch Transformers' router: the highest score, where its expert has room."""
    return Router(LinearScorer(DIM, EXPERTS), FirstCome(3), SoftmaxGate(), [LoadBalance()])


def per_slice() -> Router:
    """The best copy of each of two slices."""
    return Router(LinearScorer(DIM, EXPERTS), PerSlice(2), SoftmaxGate("chosen"))


def pregated() -> Router:
    """Read-ME's router ahead of the layers."""
    scorer = PregatingScorer(11, EXPERTS, width=8, heads=2)
    return Router(scorer, TopK(2), SoftmaxGate("chosen"), [LoadBalance()])


ROUTERS = [
    Row("top-k", lambda: TopKRouter(DIM, EXPERTS, 2, losses=[LoadBalance(), RouterZ()])),
    Row("softmax", lambda: TopKRouter(DIM, EXPERTS, 1, gate="softmax", losses=[Importance()])),
    Row("sigmoid", lambda: TopKRouter(DIM, EXPERTS, 2, gate="sigmoid", losses=[Entropy()])),
    Row("cosine", lambda: TopKRouter(DIM, EXPERTS, 2, "cosine")),
    Row("noisy", lambda: TopKRouter(DIM, EXPERTS, 2, "noisy")),
    Row("loss-free", lambda: TopKRouter(DIM, EXPERTS, 2, gate="sigmoid", bias_rate=0.1)),
    Row("grouped", grouped),
    Row(
        "capacity",
        lambda: TopKRouter(DIM, EXPERTS, 2, gate="softmax", capacity=0.8),
        per_thing=False,
    ),
    Row("expert-choice", lambda: ExpertChoiceRouter(DIM, EXPERTS), per_thing=False),
    Row("soft", lambda: SoftRouter(DIM, EXPERTS, losses=[Entropy()])),
    Row("hash", lambda: HashRouter(EXPERTS, 2), context=tokens),
    Row("mlp", lambda: TopKRouter(DIM, EXPERTS, 2, "mlp")),
    # The state below is that of no layer: nothing for the cell's map of states but its bias.
    Row("recurrent", recurrent, idle=frozenset({"scorer.cell.weight_hh"})),
    Row(
        "similarity",
        lambda: SimilarityRouter(DIM, EXPERTS, 2, losses=[LoadBalance()]),
        sums=True,
    ),
    Row(
        "attention",
        lambda: AttentionRouter(DIM, EXPERTS, 2, losses=[LoadBalance()]),
        context=attention,
        sums=True,
    ),
    Row("dynamic", lambda: DynamicRouter(DIM, EXPERTS, "mass", 0.7, [LoadBalance()])),
    Row("scaled", scaled, context=lambda things: {"step": 15}),
    Row("affine", lambda: TopKRouter(DIM, EXPERTS, 2, "affine", scale=2.0)),
    Row("hard", lambda: TopKRouter(DIM, EXPERTS, 2, gate="hard", losses=[Entropy()])),
    Row("per-slice", per_slice),
    Row("switch", switch),
    Row("pregated", pregated, context=sequence, sums=True),
]


def different() -> ExpertList:
    """Networks of different kinds and depths side by side."""
    deep = nn.Sequential(nn.Linear(DIM, 5), nn.Tanh(), nn.Linear(5, DIM))
    linear, normed = nn.Linear(DIM, DIM), nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, DIM))
    return ExpertList([deep, linear, normed, SharedExpert(DIM, 6)])


def feedforward(kind: str | Activation = "swiglu", **options: Any) -> Callable[[], nn.Module]:
    return lambda: FeedForwardExperts(EXPERTS, DIM, 6, kind, **options)


def compressed() -> ExpertList:
    """Low-rank matrices beside a few rows."""
    return ExpertList(
        CompressedExpert.split(
            [torch.randn(12, DIM) / 3, None, torch.randn(DIM, 6) / 3, None],
            ACTIVATIONS["swiglu"],
            2,
        )
        for _ in range(EXPERTS)
    )


BANKS = [
    Row("swiglu", feedforward()),
    Row("geglu", feedforward("geglu", bias=True)),
    Row("gelu", feedforward("gelu")),
    Row("relu", feedforward("relu")),
    Row("relu2", feedforward("relu2", bias=True)),
    Row("gpt-oss", feedforward(ClampedSwiGLU(), bias=True, transposed=True)),
    Row("reference", feedforward(bias=True, engine="reference")),
    Row("stream", feedforward(bias=True, engine="stream")),
    Row("grouped", feedforward(bias=True, engine="grouped"), double=False),
    Row("different", different),
    Row("factored", lambda: FactoredExperts(EXPERTS, DIM, 6)),
    Row("merged", lambda: MergedExperts(FeedForwardExperts(2, DIM, 6), [0, 1, 1, 0], 2)),
    Row("compressed", compressed),
]


@dataclass(frozen=True)
class System:
    """A module with routed layers, what it is given, and the context that it reads."""

    name: str
    make: Callable[[], nn.Module]
    context: Callable[[int], dict[str, Any]] = nothing
    per_thing: bool = True
    double: bool = True
    idle: frozenset[str] = frozenset()
    sums: bool = False

    def seeded(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return self.make()

    def run(self, module: nn.Module, x: Tensor, seed: int = 0, **context: Any) -> Tensor:
        torch.manual_seed(seed)
        with given(**(self.context(len(x)) | context)):
            return module(x)


def layer(router: Row, bank: Row) -> System:
    return System(
        f"{router.name} {bank.name}",
        lambda: MoE(router.make(), bank.make()),
        lambda things: router.context(things) | bank.context(things),
        router.per_thing and bank.per_thing,
        router.double and bank.double,
        frozenset({f"router.{n}" for n in router.idle} | {f"experts.{n}" for n in bank.idle}),
        router.sums or bank.sums,
    )


def autonomous() -> MoE:
    experts = FactoredExperts(EXPERTS, DIM, 6, rank=3)
    return MoE(AutonomousRouter(experts, 2, [LoadBalance()]), experts)


SYSTEMS = [
    *(layer(router, BANKS[0]) for router in ROUTERS),
    *(layer(ROUTERS[0], bank) for bank in BANKS[1:]),
    System("autonomous", autonomous),
]


def things(number: int = THINGS, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(number, DIM, generator=generator).to(dtype)


def stirred(module: nn.Module) -> nn.Module:
    """All parameters away from where they start, which may be zero."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return module


every_system = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)


@every_system
@pytest.mark.parametrize("number", [THINGS, 1, 0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_routings_are_whole(system: System, number: int, dtype: torch.dtype) -> None:
    module = stirred(system.seeded()).to(dtype)
    if dtype == torch.float64 and not system.double:
        with pytest.raises(InputError, match="float64"):
            system.run(module, things(number, dtype))
        return
    with record(module) as routes:
        y = system.run(module, things(number, dtype))
    assert y.dtype == dtype
    assert len(y) == number
    assert y.isfinite().all()
    for (routing,) in routes.values():
        assert_whole(routing, torch.float64 if dtype == torch.float64 else torch.float32)


def assert_whole(routing: Routing, dtype: torch.dtype) -> None:
    """Shapes are kept by the record itself; here are dtypes and values."""
    assert routing.experts.dtype == torch.int64
    assert {routing.scores.dtype, routing.weights.dtype} == {dtype}
    filled = routing.experts >= 0
    assert ((routing.experts >= -1) & (routing.experts < routing.num_experts)).all()
    assert routing.weights.isfinite().all()
    assert routing.weights[~filled].eq(0).all()
    for row in routing.experts.tolist():
        chosen = [expert for expert in row if expert >= 0]
        assert len(set(chosen)) == len(chosen), "an expert serves a thing once"
    if routing.probabilities is not None:
        assert routing.probabilities.dtype == dtype
        assert (routing.probabilities >= 0).all()
        assert routing.entropy().isfinite().all()


@every_system
def test_same_seed_same_numbers(system: System) -> None:
    first, second, other = system.seeded(1), system.seeded(1), system.seeded(2)
    ours = system.run(first, things(), seed=3)
    assert torch.equal(ours, system.run(second, things(), seed=3))
    assert not torch.equal(ours, system.run(other, things(), seed=3))


@every_system
def test_save_and_load(system: System, tmp_path: Path) -> None:
    module = stirred(system.seeded(1))
    system.run(module, things())
    update_biases(module)
    save_file(module.state_dict(), tmp_path / "model.safetensors")
    with torch.device("meta"):
        loaded = system.seeded(2)
    assert {p.device.type for p in loaded.state_dict().values()} == {"meta"}
    loaded.to_empty(device="cpu").load_state_dict(load_file(tmp_path / "model.safetensors"))
    expected = system.run(module, things(), seed=3)
    assert torch.equal(system.run(loaded, things(), seed=3), expected)
    update_biases(module)
    update_biases(loaded)
    assert_same_state(loaded, module)


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    mine, others = ours.state_dict(), theirs.state_dict()
    assert mine.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


@every_system
def test_record_and_replay(system: System, tmp_path: Path) -> None:
    module, parts = stirred(system.seeded()), [things(THINGS), things(0), things(5)]
    with record(module) as routes:
        expected = [system.run(module, part) for part in parts]
    routes.save(tmp_path / "routes.safetensors")
    routes = type(routes).read(tmp_path / "routes.safetensors")
    with replay(module, routes):
        for part, y in zip(parts, expected, strict=True):
            assert torch.equal(system.run(module, part, seed=9), y)
    with replay(module, routes, weights="computed"), record(module) as again:
        for part, y in zip(parts, expected, strict=True):
            torch.testing.assert_close(system.run(module, part), y)
    for name in routes:
        for ours, theirs in zip(again[name], routes[name], strict=True):
            assert torch.equal(ours.experts, theirs.experts)


@every_system
def test_gradients_reach_everything(system: System) -> None:
    module, x = stirred(system.seeded()), things().requires_grad_()
    y = system.run(module, x)
    (y.square().sum() + sum(losses(module).values())).backward()
    assert x.grad.isfinite().all()
    served = torch.stack([moe.last.count() for moe in routed_layers(module).values()]).any(0)
    assert torch.equal(x.grad.any(-1), served)
    for name, parameter in module.named_parameters():
        reached = parameter.grad is not None and bool(parameter.grad.any())
        assert reached != (name in system.idle), name
        assert parameter.grad is None or parameter.grad.isfinite().all(), name


@every_system
def test_empty_batches_have_gradients_too(system: System) -> None:
    module, x = system.seeded(), things(0).requires_grad_()
    residual = x + system.run(module, x)
    (residual.sum() + sum(losses(module).values())).backward()
    assert x.grad.shape == x.shape
    assert not any(value.any() for value in losses(module).values())
    assert not any(p.grad.any() for p in module.parameters() if p.grad is not None)


def of_things(context: dict[str, Any], which: Tensor | slice) -> dict[str, Any]:
    """What the context says of some of the things."""

    def part(value: Any) -> Any:
        if isinstance(value, Attention):
            among = value.probabilities[:, :, which][..., which]
            values, output = value.values[:, :, which], value.output[:, which]
            return Attention(among, values, value.projection, output)
        if isinstance(value, tuple):  # the shape of one sequence
            return (1, len(torch.arange(value[1])[which]))
        return value[which] if isinstance(value, Tensor) else value

    return {name: part(value) for name, value in context.items()}


@every_system
def test_a_thing_of_nan_is_seen_and_spoils_nothing_before_it(system: System) -> None:
    module, x = stirred(system.seeded()).eval(), things()
    clean = system.run(module, x)
    x[7] = torch.nan
    y = system.run(module, x)
    assert y[7].isnan().any()
    if system.per_thing and not system.sums:
        torch.testing.assert_close(y[:7], clean[:7])


@every_system
def test_fewer_candidates_than_k_take_what_there_is(system: System) -> None:
    module, x = stirred(system.seeded()).train(), things().requires_grad_()
    allowed = torch.arange(EXPERTS) == 2
    with record(module) as routes:
        y = system.run(module, x, candidates=allowed)
    (routing,) = routes.joined().values()
    assert set(routing.experts.unique().tolist()) <= {-1, 2}
    assert int(routing.load()[2]) > 0 and y.isfinite().all()
    (y.square().sum() + sum(losses(module).values())).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
    assert x.grad.isfinite().all()


@every_system
def test_padding_is_as_good_as_removed(system: System) -> None:
    module, x = stirred(system.seeded()).eval(), things()
    mask = torch.rand(THINGS) < 0.6
    context = of_things(system.context(THINGS), mask)
    expected = system.run(module, x[mask], **context)
    torch.testing.assert_close(system.run(module, x, mask=mask)[mask], expected)
    x[~mask] = 100.0
    torch.testing.assert_close(system.run(module, x, mask=mask)[mask], expected)


@every_system
def test_things_depend_on_each_other_as_declared(system: System) -> None:
    module, x = stirred(system.seeded()).eval(), things()
    context = of_things(system.context(THINGS), slice(5))
    alone, among = system.run(module, x[:5], **context), system.run(module, x)[:5]
    assert torch.allclose(alone, among, atol=1e-6) == system.per_thing


@every_system
def test_copies_are_equal_and_apart(system: System) -> None:
    module = stirred(system.seeded())
    expected = system.run(module, things())
    copied = deepcopy(module)
    assert torch.equal(system.run(copied, things()), expected)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    assert torch.equal(system.run(module, things()), expected)


@every_system
def test_eval_is_deterministic_and_leaves_no_trace(system: System) -> None:
    module = stirred(system.seeded()).eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    y = system.run(module, things(), seed=1)
    assert torch.equal(system.run(module, things(), seed=2), y)
    with torch.inference_mode():
        assert torch.equal(system.run(module, things(), seed=3), y)
    update_biases(module)
    assert all(torch.equal(t, before[n]) for n, t in module.state_dict().items())


@every_system
def test_half_precision_goes_the_same_way(system: System) -> None:
    """Routers compute in float32: rounded weights and things choose alike in either dtype."""
    half = stirred(system.seeded()).bfloat16()
    single = deepcopy(half).float()
    x = things(dtype=torch.bfloat16)
    with record(half) as ours, record(single) as theirs:
        y, expected = system.run(half, x), system.run(single, x.float())
    torch.testing.assert_close(y.float(), expected, rtol=0.05, atol=0.05)
    for name, (routing,) in theirs.items():
        assert torch.equal(ours[name][0].experts, routing.experts)
        torch.testing.assert_close(ours[name][0].weights, routing.weights)


@pytest.mark.parametrize(
    ("router", "bank"),
    [pytest.param(*pair, id=f"{pair[0].name} {pair[1].name}") for pair in product(ROUTERS, BANKS)],
)
def test_pairs(router: Row, bank: Row) -> None:
    """Every router with every bank is the weighted sum of the bank's experts, each asked alone."""
    system = layer(router, bank)
    dtype = torch.float64 if system.double else torch.float32
    module, x = stirred(system.seeded()).to(dtype), things(dtype=dtype)
    y = system.run(module, x)
    routing, expected = module.last, torch.zeros_like(x)
    for e in range(EXPERTS):
        everything = torch.full((THINGS, 1), e)
        only = Routing(routing.scores, everything, torch.ones(THINGS, 1, dtype=dtype))
        with given(**system.context(THINGS)):
            alone = module.experts(x, only)
        expected += (routing.weights * (routing.experts == e)).sum(-1, keepdim=True) * alone
    tolerance = 1e-9 if system.double else 1e-4
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bank", BANKS, ids=lambda bank: bank.name)
@pytest.mark.parametrize("number", [EXPERTS - 1, EXPERTS + 1])
def test_banks_refuse_routings_over_other_experts(bank: Row, number: int) -> None:
    x = things()
    routing = SoftRouter(DIM, number)(x)
    with pytest.raises(InputError, match=f"{number} experts .* {EXPERTS}"):
        bank.make()(x, routing)


def test_names_are_unique() -> None:
    for rows in (ROUTERS, BANKS, SYSTEMS):
        names = [row.name for row in rows]
        assert len(set(names)) == len(names)


def test_systems_have_routed_layers() -> None:
    assert all(routed_layers(system.seeded()) for system in SYSTEMS)
