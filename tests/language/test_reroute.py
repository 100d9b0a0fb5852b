"""Trained experts under another router: where the model starts, and that it trains and is kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hosts import tiny_model
from polypath.diagnosis import layer_couplings
from polypath.errors import InputError
from polypath.language import RoutedLayers, attach, from_pretrained, reroute, save_pretrained
from polypath.routing import given, losses, routed_layers

KINDS = {
    "Olmoe": {"norm_topk_prob": False},
    "Qwen3Moe": {"norm_topk_prob": True},
    "Mixtral": {"router_aux_loss_coef": 0.1},
}
every_kind = pytest.mark.parametrize("kind", KINDS)

# Routers whose method leaves a model that has just been given them as it was.
LOCAL = {"group": 2, "local_first": True, "renormalise": True, "start": 10, "end": 20}
SAME: list[tuple[str, dict[str, Any]]] = [
    ("top-k", {}),
    ("reuse", {"options": LOCAL}),
    ("similarity", {"options": {"start": 0.0}}),
    ("attention", {"options": {"start": 0.0}}),
    ("dynamic", {"options": {"rule": "top", "value": 3.0, "temperature": 1.0, "noise": 0.0}}),
]


def asked(kind: str, router: str, values: dict[str, Any]) -> dict[str, Any]:
    """The values for a checkpoint; a dynamic router has gates of its own, which are told."""
    if router != "dynamic":
        return values
    kept = "none" if kind == "Olmoe" else "proportional"
    return {"options": values["options"] | {"renormalise": kept}}


def model_of(kind: str) -> Any:
    torch.manual_seed(0)
    return tiny_model(kind, **KINDS[kind])


@every_kind
@pytest.mark.parametrize(("router", "values"), SAME)
@torch.no_grad()
def test_it_starts_as_it_was(
    batch: dict[str, Tensor], kind: str, router: str, values: dict[str, Any]
) -> None:
    model = model_of(kind).train()
    before = model(**batch).logits
    experts = {n: p for n, p in model.named_parameters() if ".experts." in n}
    count = sum(p.numel() for p in experts.values())
    reroute(model, router, **asked(kind, router, values))
    with given(step=0):
        after = model(**batch).logits
    real = batch["attention_mask"].bool()  # what padding attends to is left to the attention
    torch.testing.assert_close(after[real], before[real], rtol=1e-5, atol=1e-5)
    now = {n: p for n, p in model.named_parameters() if ".experts." in n}
    assert sum(p.numel() for p in now.values()) == count
    if router != "reuse":  # whose pool is made of copies
        assert {p.data_ptr() for p in now.values()} == {p.data_ptr() for p in experts.values()}


@every_kind
@pytest.mark.parametrize(("router", "values"), SAME)
def test_it_trains_on_and_is_kept(
    batch: dict[str, Tensor], tmp_path: Path, kind: str, router: str, values: dict[str, Any]
) -> None:
    own = asked(kind, router, values)
    model = reroute(model_of(kind), router, losses={"load_balance": 0.1}, **own).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2)
    seen = []
    for step in range(8):
        with given(step=step):
            loss = model(**batch, labels=batch["input_ids"]).loss
        assert set(losses(model)) == {"load_balance"}
        (loss + sum(losses(model).values())).backward()
        optimiser.step()
        optimiser.zero_grad()
        seen.append(float(loss.detach()))
    assert seen[-1] < seen[0] - 0.1
    save_pretrained(model.eval(), tmp_path / "model")
    again = from_pretrained(tmp_path / "model")
    assert again(**batch).logits.equal(model(**batch).logits)


@every_kind
def test_a_loss_on_its_parameters_joins_a_checkpoint(batch: dict[str, Tensor], kind: str) -> None:
    model = model_of(kind)
    before = model.eval()(**batch).logits
    wanted = {"coupling": {"weight": 1.0, "alpha": 0.9}}
    reroute(model, "top-k", losses=wanted)
    torch.testing.assert_close(model(**batch).logits, before, rtol=1e-5, atol=1e-5)
    optimiser = torch.optim.AdamW(model.train().parameters(), lr=1e-2)
    strength = []
    for step in range(8):
        strength.append(max(own.strength for own in layer_couplings(model).values()))
        with given(step=step):
            loss = model(**batch, labels=batch["input_ids"]).loss
        (loss + sum(losses(model).values())).backward()
        optimiser.step()
        optimiser.zero_grad()
    assert set(losses(model)) == {"coupling"}
    assert strength[-1] < strength[0] - 0.1


def test_the_checkpoints_losses_and_gate_stay_unless_told() -> None:
    (layer, *_) = routed_layers(reroute(model_of("Mixtral"), "top-k")).values()
    assert layer.router.losses["load_balance"].weight == pytest.approx(0.1 * 3)
    (layer, *_) = routed_layers(reroute(model_of("Olmoe"), "top-k", losses={})).values()
    assert layer.router.gate.over == "all" and not layer.router.losses
    (layer, *_) = routed_layers(reroute(model_of("Olmoe"), "soft")).values()
    assert layer.router(torch.randn(5, 16)).experts.shape == (5, 8)


def test_what_has_no_rows_has_to_be_asked_for() -> None:
    with pytest.raises(InputError, match="'hash' router has no row for each expert"):
        reroute(model_of("Olmoe"), "hash")
    model = reroute(model_of("Olmoe"), "hash", fresh=True)
    assert model(torch.arange(6)[None]).logits.isfinite().all()


@pytest.mark.parametrize("kind", ["DeepseekV3", "GptOss"])
def test_other_routers_than_top_k_by_softmax_are_refused(kind: str) -> None:
    with pytest.raises(InputError, match="is not top-k by softmax"):
        reroute(tiny_model(kind), "top-k")


def test_a_model_without_experts_is_refused() -> None:
    with pytest.raises(InputError, match="no experts to adopt"):
        reroute(tiny_model("Llama"), "top-k")
    with pytest.raises(InputError, match="unknown router 'topk'"):
        reroute(model_of("Olmoe"), "topk")
    with pytest.raises(InputError, match="no experts to adopt"):
        reroute(attach(tiny_model("Llama"), RoutedLayers(num_experts=4)), "soft")
