"""Affinities by hand and by brute force; who is aimed at, what is trained, what choices stay."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from hosts import NATIVE, VOCABULARY, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.routing import MoE, Routing, TopKRouter, record, routed_layers
from polypath.surgery.attribution import (
    Aim,
    Original,
    affinity,
    agreement,
    choices,
    gates,
    named,
    overlap,
    ranked,
    routings,
    targets,
    trainable,
)

KINDS = ["Olmoe", "Mixtral", "Qwen3Moe", "DeepseekV3"]


def adopted(kind: str = "Olmoe", **changes: Any) -> Any:
    torch.manual_seed(0)
    return attach(tiny_model(kind, **changes))


def batch(count: int = 3, length: int = 7, seed: int = 0) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {"input_ids": torch.randint(VOCABULARY, (count, length), generator=drawn)}


def padded(lengths: list[int], seed: int = 0) -> dict[str, Tensor]:
    read = batch(len(lengths), max(lengths), seed)
    mask = torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]
    return read | {"attention_mask": mask.long()}


def of_scores(scores: Tensor, k: int) -> Routing:
    best = scores.softmax(-1).topk(k)
    return Routing(scores, best.indices, best.values)


class Same(nn.Module):
    """Scores that are the same for everything."""

    def __init__(self, scores: Tensor) -> None:
        super().__init__()
        self.scores = nn.Parameter(scores)

    def forward(self, x: Tensor, context: Any) -> Tensor:
        return self.scores.expand(len(x), -1)


class Nothing(nn.Module):
    def forward(self, x: Tensor, routing: Routing) -> Tensor:
        return torch.zeros_like(x)


def layer_of(scores: Tensor, k: int) -> nn.Module:
    """A model of one routed layer that reads `x`, whose gates are known."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            router = TopKRouter(4, len(scores), k, Same(scores), gate="softmax")
            self.routed = MoE(router, Nothing())

        def forward(self, x: Tensor) -> Tensor:
            return self.routed(x)

    return Model()


@given(experts=st.integers(2, 9), data=st.data())
def test_gates_sum_to_one_at_most_and_to_one_where_all_are_chosen(
    experts: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, experts))
    found = gates(of_scores(3 * torch.randn(20, experts), k))
    assert ((found > 0).sum(1) == k).all() and (found.sum(1) <= 1 + 1e-6).all()
    if k == experts:
        torch.testing.assert_close(found.sum(1), torch.ones(20))


def test_even_gates_of_half_the_experts_sum_to_a_half() -> None:
    found = affinity(layer_of(torch.zeros(4), 2), [{"x": torch.randn(5, 3, 4)}])
    assert float(found["routed"].sum()) == pytest.approx(0.5)
    assert sorted(found["routed"].tolist()) == pytest.approx([0, 0, 0.25, 0.25])


def test_empty_slots_and_experts_that_may_not_be_chosen_have_no_gate() -> None:
    scores = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf] * 3])
    routing = Routing(scores, torch.tensor([[2, -1], [-1, -1]]), torch.zeros(2, 2))
    assert choices(routing).tolist() == [[False, False, True], [False] * 3]
    e = torch.e
    torch.testing.assert_close(gates(routing), torch.tensor([[0, 0, e / (1 + e)], [0, 0, 0]]))


@pytest.mark.parametrize("kind", KINDS)
def test_affinity_is_the_equation_as_it_reads(kind: str) -> None:
    model = adopted(kind).train()
    batches = [padded([7, 1, 4]), padded([2, 5], seed=1)]
    found = affinity(model, batches)
    assert all(module.training for module in model.modules())
    model.eval()
    with torch.no_grad(), record(model) as routes:
        for one in batches:
            model(**one)
    for name, parts in routes.items():
        means = []
        for one, routing in zip(batches, parts, strict=True):
            mask = one["attention_mask"].flatten().tolist()
            length, p = one["input_ids"].shape[1], routing.scores.double().softmax(-1)
            for start in range(0, len(mask), length):
                rows = [t for t in range(start, start + length) if mask[t]]
                own = torch.zeros(p.shape[1], dtype=torch.float64)
                for t in rows:
                    for expert in routing.experts[t].tolist():
                        own[expert] += p[t, expert]
                means.append(own / len(rows))
        torch.testing.assert_close(found[name], torch.stack(means).mean(0), rtol=1e-6, atol=1e-8)
        assert found[name].dtype == torch.float64 and float(found[name].sum()) < 1


def test_short_and_long_sequences_weigh_alike() -> None:
    model, both = adopted(), padded([1, 99])
    alone = [
        affinity(model, [{"input_ids": both["input_ids"][:1, :1]}]),
        affinity(model, [{"input_ids": both["input_ids"][1:]}]),
    ]
    for name, found in affinity(model, [both]).items():
        torch.testing.assert_close(
            found, (alone[0][name] + alone[1][name]) / 2, rtol=1e-5, atol=1e-7
        )


def test_sequences_of_padding_alone_do_not_count() -> None:
    model, read = adopted(), padded([4, 4, 4])
    known = affinity(model, [{n: t[:2] for n, t in read.items()}])
    read["attention_mask"][2] = 0
    for name, found in affinity(model, [read]).items():
        torch.testing.assert_close(found, known[name])


def test_it_ends_with_the_batch_that_has_enough_tokens() -> None:
    model, taken = adopted(), []

    def batches() -> Any:
        for seed in range(9):
            taken.append(seed)
            yield padded([5, 2], seed)

    found = affinity(model, batches(), tokens=14)
    assert taken == [0, 1]
    known = affinity(model, [padded([5, 2], seed) for seed in (0, 1)])
    assert all(torch.equal(found[name], known[name]) for name in known)


def test_it_is_deterministic_and_leaves_no_trace() -> None:
    model = adopted("Mixtral", router_jitter_noise=0.5).train()
    batches = [batch(seed=seed) for seed in range(3)]
    last, state = object(), torch.get_rng_state()
    for layer in routed_layers(model).values():
        layer.last = last
    first, second = affinity(model, batches), affinity(model, batches)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(layer.last is last for layer in routed_layers(model).values())


def test_halves_of_a_text_agree_on_the_chosen_few() -> None:
    """Property 10: at least 0.85 of the top K, here over 4,000 tokens a half."""
    model = adopted()
    halves = [affinity(model, [batch(40, 100, seed)]) for seed in (0, 1)]
    assert agreement(*halves, k=3) >= 0.85
    assert agreement(halves[0], halves[0], k=3) == 1
    shifted = {name: values.roll(4) for name, values in halves[0].items()}
    assert agreement(halves[0], shifted, k=3) < 0.85


def test_agreement_by_hand() -> None:
    one = {"a": torch.tensor([3.0, 2, 1, 0]), "b": torch.tensor([0.0, 1, 2, 3])}
    two = {"a": torch.tensor([3.0, 0, 2, 1]), "b": torch.tensor([0.0, 1, 3, 2])}
    assert agreement(one, two, 2) == (0.5 + 1) / 2
    with pytest.raises(InputError, match="different layers"):
        agreement(one, {"a": two["a"]}, 2)


def test_nothing_to_read_and_nowhere_to_go_are_refused() -> None:
    with pytest.raises(InputError, match="no routed layers"):
        affinity(tiny_model("Llama"), [batch()])
    with pytest.raises(InputError, match="read nothing"):
        affinity(adopted(), [])


SCORES = {"a": torch.tensor([0.1, 0.4, 0.2]), "b": torch.tensor([0.3, 0.4, 0.35])}


def test_targets_are_the_highest_within_a_layer_or_over_all() -> None:
    def pairs(found: list[Aim]) -> list[tuple[str, int]]:
        return [(aim.layer, aim.expert) for aim in found]

    assert pairs(targets(SCORES)) == [("a", 1)]  # of equals the lower layer
    assert pairs(targets(SCORES, 2)) == [("a", 1), ("a", 2)]
    assert pairs(targets(SCORES, 3, within_layer=False)) == [("a", 1), ("b", 1), ("b", 2)]
    assert [aim.rank for aim in targets(SCORES, 2)] == [1, 5]
    assert targets(SCORES)[0].affinity == pytest.approx(0.4)
    assert len(ranked(SCORES)) == 6
    assert pairs(named(SCORES, [("b", 0), ("b", 0)])) == [("b", 0)]


def test_experts_that_are_not_there_are_refused() -> None:
    for count, within in ((0, True), (4, True), (7, False)):
        with pytest.raises(InputError, match=f"count={count}"):
            targets(SCORES, count, within)
    with pytest.raises(InputError, match="did you mean 'a'"):
        named(SCORES, [("aa", 0)])
    with pytest.raises(InputError, match="experts 0 to 2, not 3"):
        named(SCORES, [("a", 3)])


def test_shared_experts_are_never_aimed_at() -> None:
    model = adopted("DeepseekV3")
    every = targets(affinity(model, [batch()]), 16, within_layer=False)
    assert {aim.expert for aim in every} == set(range(8))
    parts = trainable(model, "expert", every)
    shared = {
        id(parameter)
        for layer in routed_layers(model).values()
        for parameter in layer.shared.parameters()
    }
    own = {id(parameter) for parameter in parts.whole} | {id(cut.parameter) for cut in parts.cuts}
    assert shared and not shared & own


@pytest.mark.parametrize("kind", NATIVE)
def test_what_scopes_train_in_numbers(kind: str) -> None:
    model = adopted(kind)
    layers = routed_layers(model)
    aim = targets(affinity(model, [batch()]))
    sizes = {
        name: {
            "experts": sum(p.numel() for p in layer.experts.parameters()),
            "router": sum(p.numel() for p in layer.router.parameters()),
        }
        for name, layer in layers.items()
    }
    counted = {s: trainable(model, s, aim).count() for s in ("expert", "experts", "routers", "all")}
    own = sizes[aim[0].layer]
    assert counted == {
        "expert": own["experts"] // 8 + own["router"],
        "experts": sum(size["experts"] for size in sizes.values()),
        "routers": sum(size["router"] for size in sizes.values()),
        "all": sum(p.numel() for p in model.parameters()),
    }
    every = targets(affinity(model, [batch()]), 8 * len(layers), within_layer=False)
    assert trainable(model, "expert", every).count() == counted["experts"] + counted["routers"]


def test_a_published_share_is_reached_by_its_sizes() -> None:
    """DeepSeek-V2-Lite: one expert and its router, of 15.7 billion, are 0.056 %."""
    with torch.device("meta"):
        sizes = {"num_experts": 64, "k": 6, "hidden": 1408}
        host = tiny_model("Llama", hidden_size=2048, num_hidden_layers=1, initializer_range=0.02)
        model = attach(host, RoutedLayers(**sizes))
        (name,) = routed_layers(model)
        trained = trainable(model, "expert", [Aim(name, 20, 0.0, 1)]).count()
    assert trained == 3 * 2048 * 1408 + 64 * 2048
    assert trained / 15.7e9 == pytest.approx(0.00056, abs=1e-5)


def test_what_routers_of_other_layers_have_too_is_not_trained() -> None:
    torch.manual_seed(0)
    routed = RoutedLayers("recurrent", num_experts=4, k=2, hidden=8, options={"state": 5})
    model = attach(tiny_model("Llama"), routed)
    first, *others = routed_layers(model)
    parts = trainable(model, "expert", [Aim(first, 0, 0.0, 1)])
    elsewhere = {id(p) for name in others for p in model.get_submodule(name).router.parameters()}
    own = list(model.get_submodule(first).router.parameters())
    assert any(id(p) in elsewhere for p in own)
    assert {id(p) for p in parts.whole} == {id(p) for p in own} - elsewhere


def test_routers_without_parameters_cannot_be_trained() -> None:
    model = attach(tiny_model("Llama"), RoutedLayers("hash", num_experts=4, hidden=8))
    with pytest.raises(InputError, match="scope 'routers'"):
        trainable(model, "routers", [])


def test_the_original_stays_what_it_was() -> None:
    model = adopted("Qwen3Moe")
    read = batch()
    with torch.no_grad():
        logits = model(**read).logits
        parameters = next(iter(routed_layers(model).values())).parameters()
        original = Original(model, changing := list(parameters))
        first = {id(p): p.clone() for p in changing}
        for parameter in changing:
            parameter.add_(1.0)
        assert not torch.equal(model(**read).logits, logits)
    last = [layer.last for layer in routed_layers(model).values()]
    found = original(lambda model, read: model(**read).logits, read)
    torch.testing.assert_close(found, logits, rtol=0, atol=0)
    assert not found.requires_grad
    assert last == [layer.last for layer in routed_layers(model).values()]
    assert all(torch.equal(p, first[id(p)] + 1.0) for p in changing)
    assert all(torch.equal(original.of(p), first[id(p)]) for p in changing)


def test_overlap_by_brute_force() -> None:
    model, reads = adopted("DeepseekV3"), [padded([7, 3]), padded([2, 5], seed=1)]
    routers = [p for layer in routed_layers(model).values() for p in layer.router.parameters()]
    original = Original(model, routers)
    assert set(overlap(model, original, reads).values()) == {1.0}
    before = [routings(model, read) for read in reads]
    with torch.no_grad():
        for parameter in routers:
            parameter.add_(0.3 * torch.randn_like(parameter))
    after = [routings(model, read) for read in reads]
    for name, found in overlap(model, original, reads).items():
        shares = [
            len(set(old.tolist()) & set(new.tolist())) / 3
            for was, now, read in zip(before, after, reads, strict=True)
            for old, new, real in zip(
                was[name].experts,
                now[name].experts,
                read["attention_mask"].flatten(),
                strict=True,
            )
            if real
        ]
        assert found == pytest.approx(sum(shares) / len(shares)) and found < 1
