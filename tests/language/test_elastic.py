"""Sub-models in place: bypassed layers, experts that may not be chosen, fewer of them; draws."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from hosts import tiny_model
from polypath.errors import InputError
from polypath.experts import ExpertList
from polypath.language import (
    Elastic,
    RoutedLayers,
    SubModel,
    attach,
    elastic_step,
    running,
    whole,
)
from polypath.routing import (
    MoE,
    RoutingContext,
    TopKRouter,
    given,
    losses,
    record,
    routed_layers,
    update_biases,
)


def routed(kind: str = "Llama", **values: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"num_experts": 8, "k": 4, "losses": {}} | values
    return attach(tiny_model(kind), RoutedLayers(**chosen)).eval()


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor | None]:
    model.zero_grad()
    model(**batch, labels=batch["input_ids"]).loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}


def test_the_whole_is_the_model_bit_for_bit(batch: dict[str, Tensor]) -> None:
    model = routed()
    before, grads = model(**batch).logits, gradients(model, batch)
    every = SubModel((0, 1, 2), {i: tuple(range(8)) for i in range(3)}, 4)
    for part in (whole(model), every):
        with running(model, part):
            assert torch.equal(model(**batch).logits, before)
            for name, grad in gradients(model, batch).items():
                assert torch.equal(grad, grads[name]), name
    assert torch.equal(model(**batch).logits, before)


@pytest.mark.parametrize("kind", ["Llama", "GPT2", "Gemma2", "Olmoe"])
def test_without_layers_the_embedding_goes_to_the_head(kind: str) -> None:
    torch.manual_seed(0)
    model = tiny_model(kind).eval()
    if kind == "Olmoe":
        attach(model)
    ids = torch.randint(50, (2, 7))
    with running(model, SubModel(())):
        logits = model(ids, use_cache=False).logits
    decoder = model.get_decoder()
    if kind == "GPT2":
        hidden = decoder.ln_f(decoder.wte(ids) + decoder.wpe(torch.arange(7)))
    else:
        embedded = decoder.embed_tokens(ids)
        scale = model.config.hidden_size**0.5 if kind == "Gemma2" else 1.0
        hidden = decoder.norm(embedded * scale)
    wanted = model.lm_head(hidden)
    if kind == "Gemma2":
        cap = model.config.final_logit_softcapping
        wanted = torch.tanh(wanted / cap) * cap
    torch.testing.assert_close(logits, wanted)


def test_bypassed_layers_have_no_gradient_and_no_losses(batch: dict[str, Tensor]) -> None:
    model = routed(losses={"load_balance": 0.1}).train()
    model(**batch)
    alone = routed_layers(model)
    with running(model, SubModel((0, 2))):
        found = gradients(model, batch)
        (balance,) = losses(model).values()
    (first, middle, last) = alone.values()
    assert middle.last is None and middle.router.losses
    expected = (first.last.losses["load_balance"] + last.last.losses["load_balance"]) / 2
    torch.testing.assert_close(balance, expected)
    for name, grad in found.items():
        assert (grad is None) == (".layers.1." in name), name


def test_fewer_experts_are_chosen_and_weighted_among_themselves(batch: dict[str, Tensor]) -> None:
    model = routed(gate="softmax")
    kept = {0: (1, 2, 5), 1: (0, 7), 2: tuple(range(8))}
    with torch.no_grad(), running(model, SubModel((0, 1, 2), kept)), record(model) as routes:
        model(**batch)
    for (name, routing), own in zip(routes.joined().items(), kept.values(), strict=True):
        chosen = routing.experts[routing.experts >= 0].unique().tolist()
        assert set(chosen) <= set(own), name
        count = min(4, len(own))
        assert routing.count().unique().tolist() == [count]
        total = routing.probabilities[:, list(own)].sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_one_expert_of_a_token_has_all_its_weight(batch: dict[str, Tensor]) -> None:
    model = routed(gate="softmax-chosen")
    with torch.no_grad(), record(model) as before:
        model(**batch)
    with torch.no_grad(), running(model, SubModel((0, 1, 2), k=1)), record(model) as routes:
        model(**batch)
    for routing in routes.joined().values():
        assert routing.experts.shape[1] == 1 and bool((routing.weights == 1).all())
    first = next(iter(routes))
    assert torch.equal(routes.joined()[first].experts, before.joined()[first].experts[:, :1])
    assert all(layer.router.selection.k == 4 for layer in routed_layers(model).values())


@torch.no_grad()
def test_experts_of_different_kinds_are_left_out_too(batch: dict[str, Tensor]) -> None:
    torch.manual_seed(0)

    def layer(index: int) -> MoE:
        wide = torch.nn.Sequential(
            torch.nn.Linear(16, 40), torch.nn.Tanh(), torch.nn.Linear(40, 16)
        )
        return MoE(TopKRouter(16, 3, k=2), ExpertList([torch.nn.Linear(16, 16), wide, wide]))

    model = attach(tiny_model("Llama"), layer).eval()
    with running(model, SubModel((0, 1, 2), {1: (0, 2)})), record(model) as routes:
        model(**batch)
    assert [int(r.load()[1]) > 0 for r in routes.joined().values()] == [True, False, True]


def test_what_is_no_part_is_refused() -> None:
    model = routed()
    for part, told in (
        (SubModel((0, 3)), r"layers \[0, 3\] of 0 to 2"),
        (SubModel((2, 0)), "in order"),
        (SubModel((0,), {0: (8,)}), r"experts \[8\] of 8 in layer 0"),
        (SubModel((0,), {0: ()}), r"experts \[\] of 8"),
        (SubModel((0,), {7: (1,)}), r"experts \[1\] of 0 in layer 7"),
        (SubModel((0,), k=5), "k=5 of a model with k=4"),
    ):
        with pytest.raises(InputError, match=told), running(model, part):
            pass
    soft = attach(tiny_model("Llama"), RoutedLayers("soft"))
    with pytest.raises(InputError, match="is not top-k"), running(soft, SubModel((0,), k=1)):
        pass
    with pytest.raises(InputError, match=r"Elastic: widths=\(0,\)"):
        Elastic(widths=(0,))
    with pytest.raises(InputError, match=r"Elastic: depth=1\.5"):
        Elastic(depth=1.5)


def test_an_error_inside_leaves_the_whole(batch: dict[str, Tensor]) -> None:
    model = routed()
    before = model(**batch).logits
    with pytest.raises(RuntimeError), running(model, SubModel((0, 2), {0: (1, 2, 3, 4)}, 2)):
        raise RuntimeError
    assert torch.equal(model(**batch).logits, before)


def test_a_router_with_a_state_reads_the_layer_that_ran(batch: dict[str, Tensor]) -> None:
    model = routed("Llama", router="recurrent", options={"state": 5})
    with torch.no_grad(), running(model, SubModel((0, 2))), record(model) as routes:
        model(**batch)
    *_, last = routes.joined().values()
    assert len(routes["model.layers.1.mlp"]) == 0
    layer = routed_layers(model)["model.layers.2.mlp"]
    seen = []
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0], kwargs["context"])), with_kwargs=True
    )
    with torch.no_grad(), running(model, SubModel((0, 2))):
        model(**batch)
    hook.remove()
    x, context = seen[0]
    assert isinstance(context, RoutingContext)
    with torch.no_grad():
        blind = layer.router(x.flatten(0, 1), replace(context, previous=None))
    assert not torch.equal(blind.scores, last.scores)
    torch.testing.assert_close(layer.router(x.flatten(0, 1), context).scores, last.scores)


COUNT = 100_000


def draws() -> list[SubModel]:
    elastic = Elastic()
    return [elastic.draw(4, {0: 8}, 2, seed=0, step=step) for step in range(COUNT)]


@pytest.mark.slow
def test_draws_have_the_stated_frequencies_and_are_independent() -> None:
    table = Counter(
        (len(part.layers) == 4, 0 not in part.experts, part.k is None) for part in draws()
    )
    shares = [sum(n for key, n in table.items() if key[i]) / COUNT for i in range(3)]
    assert shares == pytest.approx([0.75, 0.80, 0.80], abs=0.005)
    assert table[True, True, True] / COUNT == pytest.approx(0.48, abs=0.005)
    for i, j in ((0, 1), (0, 2), (1, 2)):
        pairs = [[0, 0], [0, 0]]
        for key, n in table.items():
            pairs[key[i]][key[j]] += n
        assert chi2_contingency(pairs).pvalue > 1e-3


def test_draws_are_the_same_for_a_seed_and_keep_the_ends() -> None:
    elastic, experts = Elastic(depth=0.0, width=0.0, count=0.0), {0: 8, 2: 16}
    seen = set()
    for step in range(60):
        part = elastic.draw(6, experts, 3, seed=1, step=step)
        assert part == elastic.draw(6, experts, 3, seed=1, step=step)
        assert part.layers[0] == 0 and part.layers[-1] == 5 and len(part.layers) in (3, 4)
        assert {len(part.experts[0]), len(part.experts[2])} <= {3, 4, 8}
        assert len(part.experts[0]) >= 3 and part.k in (1, 2)
        seen.add(part.layers)
    assert len(seen) > 8
    assert any(
        elastic.draw(6, experts, 3, 1, s) != elastic.draw(6, experts, 3, 2, s) for s in range(5)
    )
    late = Elastic(depth=0.0, width=0.0, count=0.0, after=10)
    assert late.draw(6, experts, 3, 1, 9) == SubModel(tuple(range(6)))
    assert late.draw(6, experts, 3, 1, 10) != SubModel(tuple(range(6)))
    assert Elastic(count=0.0).draw(2, {0: 4}, 1, 0, 0).k is None  # nothing below 1


def test_a_steps_loss_is_that_of_its_sub_model(batch: dict[str, Tensor]) -> None:
    model = routed()
    elastic = Elastic(depth=0.0, width=0.0, count=0.0)
    part = elastic.draw(3, dict.fromkeys(range(3), 8), 4, seed=0, step=3)
    with elastic_step(model, 3, elastic):
        inside = model(**batch, labels=batch["input_ids"]).loss
    with running(model, part):
        alone = model(**batch, labels=batch["input_ids"]).loss
    full = model(**batch, labels=batch["input_ids"]).loss
    assert torch.equal(inside, alone) and not torch.equal(inside, full)


def test_balancing_forgets_no_expert_that_could_not_be_chosen(batch: dict[str, Tensor]) -> None:
    """Balanced traffic, an expert masked now and then: its bias stays where it was."""
    model = routed(bias_rate=0.01, gate="sigmoid").train()
    bias = next(iter(routed_layers(model).values())).router.selection.bias
    kept = tuple(range(7))
    with running(model, SubModel((0, 1, 2), dict.fromkeys(range(3), kept))):
        model(**batch)
    update_biases(model)
    assert float(bias.value[7]) == 0 and bias.value[:7].any()
    # Counted as a starved expert, it would have been pushed up by the rate.
    moved = bias.value.clone()
    with given(step=0):
        model(**batch)
    update_biases(model)
    assert float(bias.value[7]) != 0 and not torch.equal(bias.value, moved)
