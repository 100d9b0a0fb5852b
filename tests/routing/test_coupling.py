"""The coupling loss and its neighbours against the equations, one pair at a time."""

import pytest
import torch
from hypothesis import given as drawn
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

from polypath.errors import InputError
from polypath.experts import ClampedSwiGLU, ExpertList, FeedForwardExperts
from polypath.routing import (
    Coupling,
    HashRouter,
    MoE,
    Orthogonality,
    RoutingContext,
    SimilarityRouter,
    TopKRouter,
    given,
    losses,
)
from polypath.routing.coupling import centres, coupling, excitement, noise_bound, strength

EMPTY = RoutingContext()


def layer(
    num_experts: int = 3,
    dim: int = 2,
    hidden: int = 2,
    *own: nn.Module,
    seed: int = 0,
    kind="swiglu",
) -> MoE:
    torch.manual_seed(seed)
    experts = FeedForwardExperts(num_experts, dim, hidden)
    return MoE(TopKRouter(dim, num_experts, 1), experts, losses=own).double()


@pytest.fixture
def worked() -> MoE:
    """The 3 × 3 example: rows (2, 0), (0, 1), (1, 1); gates diag(1, ½), diag(½, 2), I."""
    moe = layer(3, 2, 2)
    gates = [[1.0, 0.5], [0.5, 2.0], [1.0, 1.0]]
    with torch.no_grad():
        moe.router.scorer.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        moe.experts.gate_up_proj[:, :2] = torch.stack([torch.diag(torch.tensor(g)) for g in gates])
    return moe


def matrix_of(moe: MoE) -> Tensor:
    return excitement(centres(moe.router, "test"), moe.experts).detach()


def test_the_worked_example(worked: MoE) -> None:
    matrix = matrix_of(worked)
    expected = [[2, 1, 2], [0.5, 2, 1], [1.118034, 2.061553, 1.414214]]
    torch.testing.assert_close(matrix, torch.tensor(expected).double(), rtol=0, atol=1e-6)
    known = {1.0: 0.143853, 0.5: 0.614527, 0.0: 1.706575, 2.0: 0.0}
    for alpha, value in known.items():
        assert float(coupling(matrix, alpha)) == pytest.approx(value, abs=1e-6)
        own = Coupling(1.0, alpha, noise=False)
        found = own.penalty(worked.router, worked.experts, EMPTY).detach()
        assert float(found) == pytest.approx(value, abs=1e-6)
    bound = noise_bound(worked.router.scorer.weight)
    torch.testing.assert_close(
        bound, torch.tensor([0.353553, 0.5, 0.353553]).double(), rtol=1e-5, atol=0
    )
    assert strength(matrix) == pytest.approx(2.061553 / 1.414214, abs=1e-6)


def slow(matrix: Tensor, alpha: float) -> float:
    total, count = 0.0, len(matrix)
    for i in range(count):
        for j in range(count):
            if j != i:
                own = alpha * matrix[i, i]
                total += max(matrix[i, j] - own, 0.0) + max(matrix[j, i] - own, 0.0)
    return float(total / count**2)


matrices = st.integers(1, 5).flatmap(
    lambda n: st.lists(
        st.lists(st.floats(0, 10, width=32), min_size=n, max_size=n), min_size=n, max_size=n
    )
)


@drawn(matrices, st.floats(0, 3))
@settings(deadline=None, max_examples=60)
def test_the_loss_is_the_sum_over_pairs(values: list[list[float]], alpha: float) -> None:
    matrix = torch.tensor(values, dtype=torch.float64)
    assert float(coupling(matrix, alpha)) == pytest.approx(slow(matrix, alpha), abs=1e-9)


@drawn(st.integers(1, 5), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_the_strength_is_the_least_alpha_without_loss(count: int, seed: int) -> None:
    matrix = torch.rand(count, count, generator=torch.Generator().manual_seed(seed)).double() + 0.1
    least = strength(matrix)
    assert slow(matrix, least + 1e-9) == pytest.approx(0, abs=1e-9)
    if count > 1:
        assert slow(matrix, least - 1e-3) > 0


def test_one_expert_loses_nothing_and_a_diagonal_needs_no_strictness() -> None:
    assert float(coupling(torch.ones(1, 1))) == 0 == strength(torch.ones(1, 1))
    assert strength(torch.eye(3)) == 0 == float(coupling(torch.eye(3), 0.0))
    assert strength(torch.ones(2, 2) - torch.eye(2)) == float("inf")


def test_it_grows_with_the_scale_and_knows_rows_from_experts(worked: MoE) -> None:
    before = matrix_of(worked)
    order = torch.tensor([2, 0, 1])
    assert float(coupling(3 * before)) == pytest.approx(3 * float(coupling(before)))
    assert float(coupling(before[order][:, order])) == pytest.approx(float(coupling(before)))
    assert float(coupling(before[order])) != pytest.approx(float(coupling(before)), rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [0.0, 0.0, 0.5**0.5]),
        ([[1.0, 0.0], [0.0, 1.0]], [0.5**0.5] * 2),
        ([[1.0, 0.0], [-1.0, 0.0]], [1.0, 1.0]),
        ([[1.0, 2.0]], [0.0]),
        ([[0.0, 0.0], [1.0, 0.0]], [0.0, 0.5]),
    ],
)
def test_how_much_noise_a_row_bears(rows: list[list[float]], expected: list[float]) -> None:
    torch.testing.assert_close(noise_bound(torch.tensor(rows)), torch.tensor(expected))


@drawn(st.integers(2, 5), st.integers(1, 5), st.integers(0, 10_000))
@settings(deadline=None, max_examples=60)
def test_a_proxy_stays_nearest_to_its_own_row(count: int, dim: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * dim).view(-1, dim).double()
    for row, bound in zip(rows, noise_bound(rows), strict=True):
        for corner in corners:
            apart = (rows - row * (1 + bound * corner)).norm(dim=1)
            assert apart.min() >= (row * bound * corner).norm() - 1e-9


def test_gradients_reach_rows_and_gates_alone() -> None:
    moe = layer(4, 3, 5)
    Coupling(1.0).penalty(moe.router, moe.experts, RoutingContext(step=3)).backward()
    gates, ups = moe.experts.gate_up_proj.grad.chunk(2, dim=1)
    assert moe.router.scorer.weight.grad.abs().sum() > 0 and gates.abs().sum() > 0
    assert not ups.any() and moe.experts.down_proj.grad is None


def test_the_noise_is_a_constant_to_the_gradient() -> None:
    moe = layer(4, 3, 5)
    context = RoutingContext(step=3)
    loss = Coupling(1.0)
    rows = moe.router.scorer.weight
    factors = loss._factors(rows, context)

    def value(rows: Tensor) -> Tensor:
        return coupling(excitement(rows * factors, moe.experts))

    (ours,) = torch.autograd.grad(loss.penalty(moe.router, moe.experts, context), rows)
    steps = torch.eye(rows.numel(), dtype=torch.float64).view(-1, *rows.shape) * 1e-6
    slopes = [(value(rows + step) - value(rows - step)) / 2e-6 for step in steps]
    torch.testing.assert_close(ours, torch.stack(slopes).view(rows.shape), rtol=1e-4, atol=1e-6)


def test_a_dead_expert_and_a_row_of_noughts_have_a_gradient() -> None:
    moe = layer(3, 2, 2)
    with torch.no_grad():
        moe.router.scorer.weight[0] = 0
        moe.experts.gate_up_proj[1] = 0
    Coupling(1.0).penalty(moe.router, moe.experts, EMPTY).backward()
    assert all(p.grad.isfinite().all() for p in moe.parameters() if p.grad is not None)


def test_noise_is_drawn_anew_by_step_and_layer_alike_elsewhere() -> None:
    moe, other = layer(4, 3, 5, Coupling()), layer(4, 3, 5, Coupling())
    other.losses["coupling"].seed = 1
    other.load_state_dict(moe.state_dict())

    def at(moe: MoE, step: int) -> float:
        with given(step=step):
            moe(torch.zeros(1, 3).double())
        return float(losses(moe)["coupling"].detach())

    assert at(moe, 1) == at(moe, 1)
    assert len({at(moe, 1), at(moe, 2), at(other, 1), at(other, 2)}) == 4


def test_the_same_whatever_the_things_and_nothing_in_evaluation() -> None:
    moe = layer(4, 3, 5, Coupling())
    seen = set()
    for things in (0, 1, 7):
        with given(step=5):
            moe(torch.randn(things, 3).double())
        seen.add(round(float(losses(moe)["coupling"].detach()), 12))
    assert len(seen) == 1
    moe.eval()(torch.randn(2, 3).double())
    assert losses(moe) == {}


def test_it_is_in_the_gradient_of_bfloat16_models() -> None:
    moe = layer(4, 3, 5, Coupling()).to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), given(step=0):
        moe(torch.randn(2, 3, dtype=torch.bfloat16))
    assert losses(moe)["coupling"].dtype == torch.float32
    losses(moe)["coupling"].backward()
    assert moe.router.scorer.weight.grad.isfinite().all()


def excited(moe: MoE, stage: str) -> Tensor:
    """One expert and one row at a time, through torch's own functions."""
    rows, hidden = moe.router.scorer.weight, moe.experts.down_proj.shape[2]
    found = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for i, row in enumerate(rows):
        for j, w in enumerate(moe.experts.gate_up_proj):
            gate, up = w[:hidden] @ row, w[hidden:] @ row
            active = nn.functional.silu(gate)
            value = {"gate": gate, "up": up, "activated": active, "hidden": active * up}
            value["output"] = moe.experts.down_proj[j] @ (active * up)
            found[i, j] = value[stage].norm()
    return found.detach()


@pytest.mark.parametrize("stage", ["gate", "up", "activated", "hidden", "output"])
def test_every_stage_of_the_experts_can_be_asked(stage: str) -> None:
    moe = layer(4, 3, 5)
    ours = excitement(centres(moe.router, "test"), moe.experts, stage).detach()
    torch.testing.assert_close(ours, excited(moe, stage))


def test_gates_and_ups_that_lie_interleaved_are_told_apart() -> None:
    torch.manual_seed(0)
    bank = FeedForwardExperts(3, 4, 5, ClampedSwiGLU(), transposed=True).double()
    rows = torch.randn(2, 4).double()
    hidden = torch.einsum("rd,edf->ref", rows, bank.gate_up_proj)
    torch.testing.assert_close(bank.excitations(rows, "gate"), hidden[..., ::2])
    torch.testing.assert_close(bank.excitations(rows, "up"), hidden[..., 1::2])
    gate = hidden[..., ::2].clamp(max=7.0)
    torch.testing.assert_close(bank.excitations(rows, "activated"), gate * (1.702 * gate).sigmoid())


def test_only_layers_that_it_can_be_a_loss_of() -> None:
    experts = FeedForwardExperts(4, 3, 5)
    apart = ExpertList(nn.Linear(3, 3) for _ in range(4))
    with pytest.raises(InputError, match="coupling: HashScorer has no row per expert"):
        MoE(HashRouter(4, 2), experts, losses=[Coupling()])
    with pytest.raises(InputError, match="orthogonality: CosineScorer has no row"):
        MoE(TopKRouter(3, 4, 2, "cosine"), experts, losses=[Orthogonality()])
    with pytest.raises(InputError, match="ExpertList does not tell"):
        MoE(TopKRouter(3, 4, 2), apart, losses=[Coupling()])
    with pytest.raises(InputError, match="unknown stage 'gates'"):
        MoE(TopKRouter(3, 4, 2), experts, losses=[Coupling(stage="gates")])
    with pytest.raises(InputError, match="alpha=-1"):
        Coupling(alpha=-1)
    assert "coupling" in MoE(SimilarityRouter(3, 4, 2), experts, losses=[Coupling()]).losses


def test_orthogonality_of_rows() -> None:
    moe = layer(3, 2, 2)
    rows = moe.router.scorer.weight.detach()
    cosines = nn.functional.cosine_similarity(rows[:, None], rows[None], dim=-1)
    found = Orthogonality().penalty(moe.router, moe.experts, EMPTY).detach()
    expected = (cosines - torch.eye(3)).square().sum()
    assert float(found) == pytest.approx(float(expected))


def descend(alpha: float, steps: int) -> tuple[MoE, Tensor]:
    """Plain gradient descent on the loss alone, as the specification has it."""
    moe = layer(8, 32, 64, seed=1)
    with torch.no_grad():
        for parameter in (moe.router.scorer.weight, moe.experts.gate_up_proj):
            parameter.normal_(std=32**-0.5)
    before = moe.router.scorer.weight.detach().clone()
    loss = Coupling(1.0, alpha)
    for step in range(steps):
        moe.zero_grad()
        loss.penalty(moe.router, moe.experts, RoutingContext(step=step)).backward()
        with torch.no_grad():
            for parameter in (moe.router.scorer.weight, moe.experts.gate_up_proj):
                parameter -= 0.5 * parameter.grad
    return moe, before


def test_descent_on_the_loss_alone() -> None:
    moe, before = descend(1.0, 30)
    matrix, after = matrix_of(moe), moe.router.scorer.weight.detach()
    assert float(coupling(matrix)) < 0.005
    own = torch.arange(8)
    assert (matrix.argmax(0) == own).all() and (matrix.argmax(1) == own).all()
    assert (after.norm(dim=1).mean() / before.norm(dim=1).mean() - 1).abs() < 0.02
    strict, before = descend(0.5, 50)
    length = strict.router.scorer.weight.detach().norm(dim=1).mean()
    assert (
        float(coupling(matrix_of(strict), 0.5)) < 0.05 and length < 0.7 * before.norm(dim=1).mean()
    )
