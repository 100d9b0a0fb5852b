import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from hosts import DENSE, NATIVE, tiny_model
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach
from polypath.language.stacks import build_stack
from polypath.routing import (
    MoE,
    Routing,
    RoutingContext,
    current,
    given,
    losses,
    record,
    routed_layers,
)

every_family = pytest.mark.parametrize("kind", DENSE | NATIVE)


class Noting(nn.Module):
    """A router that notes the contexts it is given."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router
        self.contexts: list[RoutingContext] = []

    def forward(self, x: Tensor, context: RoutingContext) -> Routing:
        self.contexts.append(context)
        return self.router(x, context)


def noting(model: PreTrainedModel, layers: list[int] | None = None) -> list[Noting]:
    """Routed layers in `model`; their routers, which note what they are told."""

    def make(index: int) -> MoE:
        layer = build_stack(RoutedLayers(num_experts=4, hidden=4), 16, 4, 1)[0]
        layer.router = Noting(layer.router)
        return layer

    attach(model, make, layers)
    return [layer.router for layer in routed_layers(model).values()]


@every_family
def test_layers_are_told_tokens_padding_and_places(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    routers = noting(model)
    model(**batch)
    for router in routers:
        (context,) = router.contexts
        assert context.shape == (3, 7)
        assert context.tokens.equal(batch["input_ids"].flatten())
        assert context.mask.equal(batch["attention_mask"].flatten().bool())
        assert context.positions.equal(torch.arange(7).repeat(3))
    assert vars(current()) == vars(RoutingContext())


@every_family
@torch.no_grad()
def test_with_a_cache_they_are_told_about_the_new_tokens(
    batch: dict[str, Tensor], kind: str
) -> None:
    model = tiny_model(kind)
    (router, *_) = noting(model)
    ids, mask = batch["input_ids"], batch["attention_mask"]
    cache = model(ids[:, :4], attention_mask=mask[:, :4]).past_key_values
    places = (mask.cumsum(1) - 1).clamp_min(0)[:, 4:]
    model(ids[:, 4:], attention_mask=mask, past_key_values=cache, position_ids=places)
    first, second = router.contexts
    assert (first.shape, second.shape) == ((3, 4), (3, 3))
    assert second.tokens.equal(ids[:, 4:].flatten())
    assert second.mask.equal(mask[:, 4:].flatten().bool())
    assert second.positions.equal(places.flatten())


@torch.no_grad()
def test_generating_tells_every_step(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Llama")
    (router, *_) = noting(model)
    written = model.generate(**batch, max_new_tokens=4, do_sample=False)
    prefill, *steps = router.contexts
    assert prefill.mask.equal(batch["attention_mask"].flatten().bool())
    for place, context in enumerate(steps, start=7):
        assert context.shape == (3, 1)
        assert context.tokens.equal(written[:, place])
        assert context.mask.all()


@every_family
def test_the_routing_below_is_told(batch: dict[str, Tensor], kind: str) -> None:
    model = tiny_model(kind)
    first, second = noting(model, [0, 2])
    model(**batch)
    below = next(iter(routed_layers(model).values())).last
    assert first.contexts[0].previous is None
    assert second.contexts[0].previous is below


def test_what_is_given_around_comes_first(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Llama")
    (router, *_) = noting(model)
    chosen = torch.rand(21) > 0.5
    with given(mask=chosen, step=3):
        model(**batch)
        with given(step=4):
            model(**batch)
    model(**batch)
    inside, nested, after = router.contexts
    assert inside.mask is chosen and nested.mask is chosen
    assert (inside.step, nested.step, after.step) == (3, 4, None)
    assert inside.tokens.equal(batch["input_ids"].flatten())
    assert after.mask.equal(batch["attention_mask"].flatten().bool())


def test_embeddings_have_no_tokens(batch: dict[str, Tensor]) -> None:
    model = attach(tiny_model("Llama"), RoutedLayers("hash", num_experts=4))
    embeddings = model.get_input_embeddings()(batch["input_ids"])
    own = {"inputs_embeds": embeddings, "attention_mask": batch["attention_mask"]}
    with pytest.raises(InputError, match="HashRouter needs `tokens`"):
        model(**own)
    with given(tokens=batch["input_ids"].flatten()):
        given_tokens = model(**own).logits
    torch.testing.assert_close(given_tokens, model(**batch).logits)


def test_a_forward_that_fails_leaves_nothing_behind(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Llama")
    (router, *_) = noting(model)
    with pytest.raises(ValueError, match="exactly one of input_ids"):
        model(attention_mask=batch["attention_mask"])
    assert not router.contexts
    layer = routed_layers(model)["model.layers.0.mlp"]
    layer(torch.randn(2, 16))
    assert router.contexts[0].tokens is None


def test_a_mask_of_pairs_does_not_tell_padding(batch: dict[str, Tensor]) -> None:
    model = tiny_model("Llama")
    (router, *_) = noting(model)
    pairs = torch.ones(7, 7, dtype=torch.bool).tril().expand(3, 1, 7, 7)
    model(batch["input_ids"], attention_mask=pairs)
    assert router.contexts[0].mask is None


def test_a_bare_decoder_takes_its_arguments_by_place(batch: dict[str, Tensor]) -> None:
    model = AutoModel.from_config(tiny_model("Llama").config).eval()
    (router, *_) = noting(model)
    model(batch["input_ids"], batch["attention_mask"])
    assert router.contexts[0].tokens.equal(batch["input_ids"].flatten())
    assert router.contexts[0].mask.equal(batch["attention_mask"].flatten().bool())


@every_family
def test_padding_moves_no_loss(batch: dict[str, Tensor], kind: str) -> None:
    """Losses of a padded batch are those of its sequences without padding, seen as one batch."""
    weights = {"load_balance": 1.0, "router_z": 1.0}
    model = attach(tiny_model(kind), RoutedLayers(num_experts=4, k=1, losses=weights), layers=[0])
    ids, mask = batch["input_ids"][1:], batch["attention_mask"][1:]
    model(ids, attention_mask=mask)
    padded = losses(model)
    with record(model) as routes:
        model(ids[:1])
        model(ids[1:, :5])
    joined = next(iter(routes.joined().values()))
    torch.testing.assert_close(padded["router_z"], joined.scores.logsumexp(1).square().mean())
    share = torch.bincount(joined.experts.flatten(), minlength=4) / 12
    balance = 4 * (share * joined.scores.softmax(1).mean(0)).sum()
    torch.testing.assert_close(padded["load_balance"], balance)


@every_family
def test_layers_that_run_again_are_told_the_same(batch: dict[str, Tensor], kind: str) -> None:
    """Two forwards before one backward, with activation checkpointing and without."""
    model = attach(tiny_model(kind), RoutedLayers("hash", num_experts=4))
    balanced = RoutedLayers(num_experts=4, losses={"sequence_balance": 1.0})
    attach(model, balanced, layers=[1]).train()

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        whole = model(**batch, labels=batch["input_ids"]).loss + sum(losses(model).values())
        part = model(batch["input_ids"].flip(1)).logits.square().mean()
        (whole + part).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected = gradients()
    model.activation_checkpointing_enable()
    found = gradients()
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, rtol=1e-4, atol=1e-6)
