"""The numbers named here are those of the specification of ReXMoE."""

import math

import pytest
import torch
from hypothesis import given as drawn_from
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.language import RoutedLayers, build_stack
from polypath.language.stacks import bank
from polypath.routing import (
    LoadBalance,
    MoE,
    ProgressiveScaling,
    RoutingContext,
    TopKRouter,
)


def paper(growth: str = "linear", **options: object) -> ProgressiveScaling:
    return ProgressiveScaling(256, 64, 10_000, 30_000, growth, **options)  # type: ignore[arg-type]


def at(step: int) -> RoutingContext:
    return RoutingContext(step=step)


@pytest.mark.parametrize(
    ("step", "count"),
    {
        0: 64,
        10_000: 64,
        10_001: 64,
        10_105: 65,
        10_106: 65,
        15_000: 112,
        20_000: 160,
        25_000: 208,
        30_000: 256,
        47_700: 256,
    }.items(),
)
def test_the_paper_s_linear_schedule(step: int, count: int) -> None:
    assert paper().count(step) == count
    allowed = paper()(at(step))
    assert (256 if allowed is None else int(allowed.sum())) == count


@pytest.mark.parametrize(
    ("step", "count"),
    {0: 64, 9_999: 64, 10_000: 128, 19_999: 128, 20_000: 192, 29_999: 192, 30_000: 256}.items(),
)
def test_the_paper_s_stepwise_schedule(step: int, count: int) -> None:
    assert paper("stepwise").count(step) == count


@drawn_from(st.data())
def test_counts_grow_from_least_to_all(data: st.DataObject) -> None:
    total = data.draw(st.integers(1, 40))
    least = data.draw(st.integers(1, total))
    start = data.draw(st.integers(0, 20))
    end = data.draw(st.integers(start, start + 20))
    growth = data.draw(st.sampled_from(["linear", "stepwise"]))
    scaling = ProgressiveScaling(total, least, start, end, growth)
    counts = [scaling.count(step) for step in range(end + 3)]
    assert counts == sorted(counts) and counts[-1] == total
    assert all(count == least for count in counts[:start])
    if growth == "linear":
        asked = [
            math.floor(least + (total - least) * (step - start) / (end - start) + 1e-9)
            for step in range(start + 1, end)
        ]
        assert counts[start + 1 : end] == asked


def test_every_expert_is_as_often_a_candidate() -> None:
    scaling = paper()
    open_ = torch.stack([scaling(at(step)) for step in range(4000)]).double()
    assert (open_.sum(1) == 64).all()
    deviation = math.sqrt(0.25 * 0.75 / 4000)
    assert ((open_.mean(0) - 0.25).abs() < 5 * deviation).all()
    assert float(open_[:, :64].sum(1).mean()) == pytest.approx(16, abs=0.3)


def test_local_experts_first() -> None:
    scaling = paper(first=range(64, 128))
    assert scaling(at(0)).nonzero().flatten().tolist() == list(range(64, 128))
    later = scaling(at(20_000))
    assert later[64:128].all() and int(later.sum()) == 160


def test_layers_draw_apart_and_ranks_alike() -> None:
    assert torch.equal(paper(seed=1)(at(7)), paper(seed=1)(at(7)))
    assert not torch.equal(paper(seed=1)(at(7)), paper(seed=2)(at(7)))
    assert not torch.equal(paper(seed=1)(at(7)), paper(seed=1)(at(8)))


def test_no_limit_in_evaluation_and_a_step_is_needed_in_training() -> None:
    assert paper().eval()(RoutingContext()) is None
    with pytest.raises(InputError, match="ProgressiveScaling needs `step`"):
        paper()(RoutingContext())
    assert ProgressiveScaling(8, 8, 0, 10)(RoutingContext()) is None


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((8, 0, 0, 1), "least=0 of 8"),
        ((8, 9, 0, 1), "least=9 of 8"),
        ((8, 2, 5, 1), "start=5, end=1"),
        ((8, 2, 0, 1, "fast"), "unknown growth 'fast'"),
        ((8, 2, 0, 1, "linear", (1, 2, 3)), r"first=\(1, 2, 3\)"),
        ((8, 2, 0, 1, "linear", (8,)), r"first=\(8,\)"),
    ],
)
def test_bad_numbers_are_refused(values: tuple, said: str) -> None:
    with pytest.raises(InputError, match=said):
        ProgressiveScaling(*values)


def layers(count: int = 4, **options: object) -> list[MoE]:
    torch.manual_seed(0)
    routed = RoutedLayers("reuse", num_experts=3, gate="softmax", losses={}, options=options)
    return build_stack(routed, 6, 5, count)


def test_groups_do_not_overlap_and_the_last_may_be_short() -> None:
    stack = layers(16, group=4)
    banks = [layer.experts for layer in stack]
    assert all(banks[i] is banks[j] for i in range(16) for j in range(16) if i // 4 == j // 4)
    assert len(set(banks)) == 4
    short = layers(5, group=2)
    assert [len(layer.experts.down_proj) for layer in short] == [6, 6, 6, 6, 3]
    assert short[4].router.candidates.least == 3


@pytest.mark.parametrize(
    ("dim", "experts", "count", "group", "more"),
    [(512, 64, 32, 4, 3_145_728), (512, 64, 32, 2, 1_048_576), (768, 32, 16, 4, 1_179_648)],
)
def test_only_routers_grow(dim: int, experts: int, count: int, group: int, more: int) -> None:
    def sizes(group: int) -> tuple[int, int]:
        routed = RoutedLayers("reuse", num_experts=experts, options={"group": group})
        with torch.device("meta"):
            stack = torch.nn.ModuleList(build_stack(routed, dim, 8, count))
        named = list(stack.named_parameters())
        routers = sum(p.numel() for name, p in named if ".router." in name)
        return routers, sum(p.numel() for _, p in named) - routers

    (plain, plain_experts), (wide, wide_experts) = sizes(1), sizes(group)
    assert wide - plain == more and wide_experts == plain_experts


def test_groups_of_one_and_local_candidates_are_the_plain_layer() -> None:
    x = torch.randn(20, 6, dtype=torch.float64)
    local = {"group": 2, "local_first": True, "renormalise": True, "start": 5, "end": 9}
    stack = [layer.double() for layer in layers(2, **local)]
    for place, layer in enumerate(stack):
        own = slice(3 * place, 3 * place + 3)
        router = TopKRouter(6, 3, 2, gate="softmax").double()
        plain = MoE(router, bank(RoutedLayers(num_experts=3), 6, 5).double())
        router.scorer.weight.data = layer.router.scorer.weight.data[own]
        for name, stacked in layer.experts.named_parameters():
            plain.experts.get_parameter(name).data = stacked.data[own]
        torch.testing.assert_close(layer(x, at(0)), plain(x))
        assert not torch.allclose(layer.eval()(x), plain(x))
        # Without renormalising, what the others have of the softmax is missing.
        layer.train().router.candidates.renormalise = False
        gates = layer.router(x, at(0)).weights / layer.router(x, at(0)).weights.sum(1, True)
        torch.testing.assert_close(
            gates, plain.router(x).weights / plain.router(x).weights.sum(1, True)
        )
        assert (layer.router(x, at(0)).weights < plain.router(x).weights).all()


def test_an_expert_of_two_layers_gets_both_gradients() -> None:
    x = torch.randn(20, 6)
    both, once = layers(2, growth="none"), layers(2, growth="none")
    (both[0](x).sum() + both[1](x).sum()).backward()
    total = torch.zeros_like(once[0].experts.down_proj)
    for layer in once:
        layer(x).sum().backward()
        total += layer.experts.down_proj.grad
        layer.experts.zero_grad()
    torch.testing.assert_close(both[0].experts.down_proj.grad, total)


def test_fewer_candidates_than_k_leave_slots_empty() -> None:
    router = TopKRouter(6, 5, 3, gate="softmax", candidates=ProgressiveScaling(5, 2, 5, 9))
    routing = router(torch.randn(7, 6), at(0))
    assert (routing.count() == 2).all() and (routing.experts[:, 2] == -1).all()
    assert (routing.weights[:, 2] == 0).all()


def test_flat_scores_keep_k_of_all() -> None:
    (layer, *_) = layers(2, group=2, start=5, end=9)
    torch.nn.init.zeros_(layer.router.scorer.weight)
    for step in (0, 7, 12):
        weights = layer.router(torch.randn(9, 6), at(step)).weights
        torch.testing.assert_close(weights.sum(1), torch.full((9,), 2 / 6))


def test_what_is_masked_does_not_count_in_the_balance() -> None:
    """One when choices and probabilities are even among the candidates, whatever their number."""
    scaling = ProgressiveScaling(6, 2, 5, 9)
    router = TopKRouter(6, 6, 1, gate="softmax", losses=[LoadBalance(1.0)], candidates=scaling)
    torch.nn.init.zeros_(router.scorer.weight)
    loss = router(torch.randn(9, 6), at(0)).losses["load_balance"]
    assert float(loss.detach()) == pytest.approx(1.0)
    torch.nn.init.normal_(router.scorer.weight)
    router(torch.randn(9, 6), at(0)).losses["load_balance"].backward()
    masked = ~scaling(at(0))
    assert (router.scorer.weight.grad[masked].abs() < 1e-7).all()
    assert (router.scorer.weight.grad[~masked].abs() > 1e-4).any()


@pytest.mark.parametrize(
    ("options", "said"), [({"group": 0}, "group=0"), ({"start": 5, "end": 2}, "start=5, end=2")]
)
def test_bad_options_are_refused(options: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        RoutedLayers("reuse", options=options)
