"""A sub-model cut out is the one that ran in place; sizes by hand; saved and loaded."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hosts import tiny_model
from polypath.errors import InputError
from polypath.language import (
    RoutedLayers,
    SubModel,
    attach,
    extract,
    from_pretrained,
    most_used,
    running,
    save_pretrained,
    whole,
)
from polypath.routing import routed_layers

KEPT = {0: (0, 3, 5, 6), 2: (1, 2, 3, 7)}
PARTS = {
    "depth": SubModel((0, 2)),
    "width": SubModel((0, 1, 2), {0: (0, 3, 5, 6), 1: (0, 1, 2, 3), 2: (1, 2, 3, 7)}),
    "count": SubModel((0, 1, 2), k=2),
    "all": SubModel((0, 2), KEPT, 1),
}


def attached(router: str = "top-k", **values: Any) -> Any:
    torch.manual_seed(0)
    chosen = {"num_experts": 8, "losses": {}} | values
    return attach(tiny_model("Llama"), RoutedLayers(router, **chosen)).eval()


def native(kind: str) -> Any:
    torch.manual_seed(0)
    return attach(tiny_model(kind)).eval()


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize(
    "values",
    [
        {"gate": "softmax", "k": 3},
        {"gate": "sigmoid", "k": 3, "bias_rate": 0.1, "shared_hidden": 8},
        {"scorer": "noisy", "k": 3},
        {"router": "recurrent", "k": 3, "options": {"state": 5}},
        {"router": "similarity", "k": 3},
    ],
    ids=str,
)
@torch.no_grad()
def test_what_is_cut_out_is_what_ran_in_place(
    batch: dict[str, Tensor], tmp_path: Path, part: SubModel, values: dict[str, Any]
) -> None:
    model = attached(**values)
    for layer in routed_layers(model).values():
        for parameter in layer.router.parameters():  # some start at zero, where all is a tie
            parameter.normal_()
        if getattr(layer.router.selection, "bias", None) is not None:
            layer.router.selection.bias.value.normal_()
    with running(model, part):
        wanted = model(**batch).logits
    whole_logits = model(**batch).logits
    small = extract(model, part)
    torch.testing.assert_close(small(**batch).logits, wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(model(**batch).logits, whole_logits)
    save_pretrained(small, tmp_path / "small")
    assert torch.equal(from_pretrained(tmp_path / "small")(**batch).logits, small(**batch).logits)


@pytest.mark.parametrize("part", PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("kind", ["Olmoe", "Mixtral", "Qwen3Moe"])
@torch.no_grad()
def test_checkpoints_become_smaller_checkpoints(
    batch: dict[str, Tensor], tmp_path: Path, kind: str, part: SubModel
) -> None:
    model = native(kind)
    if kind == "Qwen3Moe" and 1 in part.experts:  # whose layer 1 is dense
        part = SubModel(part.layers, {i: e for i, e in part.experts.items() if i != 1}, part.k)
    with running(model, part):
        wanted = model(**batch).logits
    small = extract(model, part)
    torch.testing.assert_close(small(**batch).logits, wanted, rtol=1e-5, atol=1e-5)
    save_pretrained(small, tmp_path / "small")
    plain = type(model).from_pretrained(tmp_path / "small").eval()  # plain transformers
    torch.testing.assert_close(plain(**batch).logits, wanted, rtol=1e-4, atol=1e-4)


def test_generation_from_a_part_is_that_of_the_part_cut_out() -> None:
    model, ids = attached(k=3), torch.randint(50, (1, 5))
    with running(model, PARTS["all"]):
        inside = model.generate(ids, max_new_tokens=6, do_sample=False)
    small = extract(model, PARTS["all"])
    assert torch.equal(small.generate(ids, max_new_tokens=6, do_sample=False), inside)


def test_sizes_are_those_by_hand() -> None:
    """The specification's worked model, e the size of an expert and 8 e that of the rest."""

    def layer_sizes(layers: int, experts: int, k: int) -> tuple[int, int]:
        return layers * (experts + 8), layers * (k + 8)

    assert layer_sizes(24, 64, 8) == (1728, 384)
    assert layer_sizes(18, 32, 8) == (720, 288) and layer_sizes(18, 32, 4) == (720, 216)
    model = attached(k=3)
    small = extract(model, PARTS["all"])
    sizes = [sum(p.numel() for p in m.parameters()) for m in (model, small)]
    layer = sum(p.numel() for p in model.model.layers[1].parameters())
    expert = 3 * 16 * 24
    assert sizes[0] - sizes[1] == layer + 2 * 4 * (expert + 16)


def test_what_cannot_be_cut_is_told() -> None:
    model = attached(k=3)
    with pytest.raises(InputError, match=r"layers of \[4, 8\] experts"):
        extract(model, SubModel((0, 1, 2), KEPT))
    with pytest.raises(InputError, match="no layers"):
        extract(model, SubModel(()))
    shared = attached("reuse", k=3, gate="softmax", options={"group": 3})
    with pytest.raises(InputError, match="layers share their experts"):
        extract(shared, SubModel((0, 2)))
    cosine = attached(k=3, scorer="cosine")
    assert extract(cosine, SubModel((0, 2), k=1)) is not None
    with pytest.raises(InputError, match="whose shape depends on their number"):
        extract(cosine, PARTS["width"])
    groups = native("DeepseekV3")
    with pytest.raises(InputError, match="lie in groups"):
        extract(groups, SubModel((0, 1, 2), {1: (0, 1, 2, 3), 2: (0, 1, 2, 3)}))


@torch.no_grad()
def test_what_is_used_most_is_kept() -> None:
    model = attached(k=1)
    for layer in routed_layers(model).values():
        layer.router.scorer.weight.zero_()
        layer.router.scorer.weight[5] = 1.0
        layer.router.scorer.weight[2] = -1.0
    model.model.layers[1].mlp.experts.down_proj.zero_()
    model.model.layers[1].self_attn.o_proj.weight.zero_()  # changes nothing
    part = most_used(model, [torch.randint(50, (4, 9))], layers=2, experts=2)
    assert part.layers == (0, 2)
    assert all({2, 5} == set(kept) for kept in part.experts.values())
    assert most_used(model, [torch.randint(50, (4, 9))]) == whole(model)
