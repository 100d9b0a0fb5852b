from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hosts import switch_base, tiny_model, tiny_switch
from polypath import RoutedLayers, attach, from_pretrained, record, save_pretrained
from polypath.errors import InputError
from polypath.experts.merged import MergedExperts
from polypath.language.families import decoder_of
from polypath.language.merged import Merged, shrink
from polypath.surgery.banks import stacks
from polypath.surgery.calibration import calibrate
from polypath.surgery.grouping import averaged
from polypath.surgery.merge import Merge, fuse, merge, merge_to_native
from polypath.surgery.report import Size
from polypath.surgery.slices import outputs

NATIVE = ["Olmoe", "Mixtral", "Qwen3Moe", "DeepseekV3", "GptOss"]


def both(model: Any) -> dict[str, torch.Tensor]:
    """Token ids for an encoder and a decoder."""
    generator = torch.Generator().manual_seed(3)
    return {
        "input_ids": torch.randint(61, (3, 12), generator=generator),
        "decoder_input_ids": torch.randint(61, (3, 7), generator=generator),
    }


@pytest.mark.parametrize("kind", NATIVE)
def test_a_merged_checkpoint_comes_back_with_the_same_logits(
    kind: str, tmp_path: Path, logits: Any, texts: dict
) -> None:
    model = attach(tiny_model(kind))
    before = logits(model)
    done = merge(model, calibrate(model, texts["one"]), Merge(4))
    assert done.after.parameters < done.before.parameters
    assert not torch.allclose(logits(model), before)
    save_pretrained(model, tmp_path / "model")
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "model")), logits(model))


@pytest.mark.parametrize("kind", NATIVE)
def test_all_experts_kept_is_the_identity(kind: str, logits: Any, texts: dict) -> None:
    """Property 2."""
    model = attach(tiny_model(kind))
    before = logits(model)
    done = merge(model, calibrate(model, texts["one"]), Merge(8))
    torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    assert done.before == done.after


@pytest.mark.parametrize("kind", ["Olmoe", "Mixtral", "Qwen3Moe"])
def test_fewer_experts_are_a_checkpoint_of_the_same_kind(
    kind: str, tmp_path: Path, logits: Any, texts: dict
) -> None:
    model = attach(tiny_model(kind))
    small, done = merge_to_native(model, calibrate(model, texts["one"]), Merge(4))
    save_pretrained(small, tmp_path / "model")
    plain = getattr(transformers, type(small).__name__).from_pretrained(tmp_path / "model")
    assert len(plain.model.layers[0].mlp.experts.down_proj) == 4
    torch.testing.assert_close(logits(plain), logits(small), rtol=1e-4, atol=1e-4)
    assert done.settings["layers"] == "uniform" and done.notes


def test_routers_choose_and_weigh_as_before(texts: dict) -> None:
    """Property 5, at a hidden input that is fixed."""
    model = attach(tiny_model("Olmoe"))
    layer = decoder_of(model).routed()[0]
    rows = torch.randn(9, 16)
    before = layer.router(rows)
    merge(model, calibrate(model, texts["one"]), Merge(3))
    after = decoder_of(model).routed()[0].router(rows)
    for name in ("scores", "experts", "weights"):
        torch.testing.assert_close(getattr(after, name), getattr(before, name), rtol=0, atol=0)


def test_a_merged_layer_is_the_sum_over_original_choices(texts: dict) -> None:
    model = attach(tiny_model("Mixtral"))
    layer: Any = decoder_of(model).routed()[1]
    found = calibrate(model, texts["one"]).routed[1]
    fusion = fuse(1, layer, found, 3, Merge(3))
    rows = torch.randn(11, 16)
    routing = layer.router(rows)
    every = outputs(fusion.weights, "swiglu", rows)
    wanted = torch.zeros_like(rows)
    for slot in range(routing.experts.shape[1]):
        own = fusion.groups[routing.experts[:, slot]]
        wanted += routing.weights[:, slot, None] * every[torch.arange(11), own]
    merge(model, calibrate(model, texts["one"]), Merge(3))
    # The whole model's budget may differ from three: put this very fusion there.
    layer = decoder_of(model).routed()[1]
    small = MergedExperts(layer.experts.bank, fusion.groups, 3)
    if len(layer.experts.bank.down_proj) == 3:
        torch.testing.assert_close(small(rows, routing), wanted, rtol=1e-4, atol=1e-5)


def test_one_expert_is_the_average_by_usage(texts: dict) -> None:
    model = attach(tiny_model("Olmoe"))
    layer: Any = decoder_of(model).routed()[0]
    sums = calibrate(model, texts["one"]).routed[0]
    fusion = fuse(0, layer, sums, 1, Merge(1, align=False))
    usage = sums.usage().float()
    for part, made in zip(stacks(layer.experts), fusion.weights, strict=True):
        if part is not None:
            wanted = torch.einsum("e,e...->...", usage, part)
            torch.testing.assert_close(made[0], wanted, rtol=1e-4, atol=1e-6)


def test_redirect_only_keeps_dominant_experts_bit_for_bit(texts: dict) -> None:
    model = attach(tiny_model("Olmoe"))
    layer: Any = decoder_of(model).routed()[0]
    sums = calibrate(model, texts["one"]).routed[0]
    config = Merge(3, weighting="dominant", align=False)
    fusion = fuse(0, layer, sums, 3, config)
    own = stacks(layer.experts)[0][fusion.dominant]
    torch.testing.assert_close(fusion.weights[0], own, rtol=0, atol=0)
    even = fuse(0, layer, sums, 3, replace(config, weighting="uniform"))
    flat = averaged(stacks(layer.experts), torch.ones(8), even.groups, even.dominant)
    torch.testing.assert_close(even.weights[0], flat[0])


def test_switch_transformers_merge_and_come_back(tmp_path: Path) -> None:
    model = attach(tiny_switch())
    ids = both(model)
    found = calibrate(model, [ids])
    with torch.no_grad(), record(model) as routes:
        before = model(**ids).logits
    done = merge(model, found, Merge(3, excluded=(1,)))
    with torch.no_grad(), record(model) as again:
        after = model(**ids).logits
    first, second = (next(iter(seen.joined().values())) for seen in (routes, again))
    assert torch.equal(first.experts, second.experts) and not torch.allclose(before, after)
    assert done.moves[0].share == 1.0
    save_pretrained(model, tmp_path / "model")
    with torch.no_grad():
        back = from_pretrained(tmp_path / "model")(**ids).logits
    torch.testing.assert_close(back, after)


def test_published_sizes_of_switch_base_32() -> None:
    """Property 6: 733M merged, from shapes alone."""
    with torch.device("meta"):
        model = attach(switch_base(32))
        decoder = decoder_of(model)
        whole = Size.of(model).parameters
        for number, layer in enumerate(decoder.routed().values()):
            shrink(layer, Merged("adopted", 32 if number == 0 else 8))
    assert len(decoder.routed()) == 12
    assert round(whole / 1e9, 1) == 2.0
    assert round(Size.of(model).parameters / 1e6) == 733


def test_layers_of_our_own_merge_too(tmp_path: Path, logits: Any, texts: dict) -> None:
    torch.manual_seed(0)
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=6, k=2, hidden=7, bias=True))
    merge(model, calibrate(model, texts["one"]), Merge(2))
    save_pretrained(model, tmp_path / "model")
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "model")), logits(model))


def test_wrong_input_is_told(texts: dict) -> None:
    model = attach(tiny_model("Olmoe"))
    found = calibrate(model, texts["one"])
    with pytest.raises(InputError, match="excluded layer 9 is not routed"):
        merge(model, found, Merge(4, excluded=(9,)))
    with pytest.raises(InputError, match="from 1 to all of them"):
        merge(model, found, Merge(9))
    for wrong in ({"layers": "some"}, {"similarity": "names"}, {"weighting": "mean"}):
        with pytest.raises(InputError, match="is right"):
            Merge(4, **wrong)  # type: ignore[arg-type]
    del found.routed[2]
    with pytest.raises(InputError, match="were calibrated"):
        merge(model, found, Merge(4))
    dense = tiny_model("Llama")
    with pytest.raises(InputError, match=r"layers \[\] are routed"):
        merge(dense, calibrate(dense, texts["one"]), Merge(4))
