from pathlib import Path
from typing import Any

import pytest
import torch

from hosts import detections, tiny_dino, tiny_model
from polypath import RoutedLayers, attach, from_pretrained, save_pretrained
from polypath.errors import InputError
from polypath.language.families import decoder_of
from polypath.surgery.calibration import calibrate
from polypath.surgery.convert import convert, dense_layers, routed_layer
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.freezing import fingerprints
from polypath.surgery.granular import Granular
from polypath.surgery.readme import ReadMe

DENSE = ["Llama", "Qwen3", "Gemma2", "DeepseekV3"]
METHODS: dict[str, Any] = {
    "factorllm": lambda seen: FactorLLM(4, 2, "random"),
    "clustered": lambda seen: FactorLLM(4, 1, "clustered"),
    "granular": lambda seen: Granular(2, 2),
    "apart": lambda seen: Granular(3, 4, apart=True),
    "read-me": lambda seen: ReadMe(seen, width=16, heads=2),
    "read-me, split": lambda seen: ReadMe(seen, width=16, heads=2, layout="split"),
}


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("method", METHODS)
def test_what_was_converted_is_saved_and_read_with_the_same_logits(
    kind: str, method: str, tmp_path: Path, logits: Any, texts: dict
) -> None:
    model = tiny_model(kind)
    seen = {name: calibrate(model, batches) for name, batches in texts.items()}
    dense = dense_layers(decoder_of(model))
    done = convert(model, METHODS[method](seen))
    assert len(done.moves) == len(dense) and all(check.held for check in done.checks)
    assert bool(done.checks) == (not method.startswith("read-me"))
    save_pretrained(model, tmp_path / "model")
    torch.testing.assert_close(logits(from_pretrained(tmp_path / "model")), logits(model))


@pytest.mark.parametrize("kind", DENSE)
def test_exact_starts_are_exact(kind: str, logits: Any, texts: dict) -> None:
    """FactorLLM with all experts, granular tuning at all, Read-ME that keeps all channels."""
    before = logits(tiny := tiny_model(kind))
    seen = {name: calibrate(tiny, batches) for name, batches in texts.items()}
    for method in (
        FactorLLM(4, 4, "random"),
        Granular(4, 2),
        Granular(2, 4, apart=True),
        Granular(1, 3),
        Granular(3, 1),
        ReadMe(seen, kept=1.0, width=16, heads=2),
    ):
        model = type(tiny)(tiny.config).eval()
        model.load_state_dict(tiny.state_dict())
        convert(model, method)
        torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("method", [Granular(4, 2), Granular(2, 4), FactorLLM(4, 4)])
def test_a_detector_starts_with_the_boxes_that_it_had(method: Any, tmp_path: Path) -> None:
    model = tiny_dino()
    words, boxes = detections(model)
    done = convert(model, method)
    again = detections(model)
    torch.testing.assert_close(again[0], words, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(again[1], boxes, rtol=1e-5, atol=1e-5)
    assert [move.part for move in done.moves] == ["layer 0", "layer 1", "layer 2"]
    save_pretrained(model, tmp_path / "model")
    back = detections(from_pretrained(tmp_path / "model"))
    torch.testing.assert_close(back[0], again[0])
    torch.testing.assert_close(back[1], again[1])


def test_only_the_chosen_layers_change(logits: Any) -> None:
    model = tiny_model("Llama")
    before = fingerprints(model)
    convert(model, FactorLLM(4, 2), layers=[1])
    after = fingerprints(model)
    assert list(decoder_of(model).routed()) == [1]
    kept = [name for name in before if "layers.1.mlp" not in name]
    assert all(after[name] == before[name] for name in kept)


def test_what_cannot_be_converted_stays_as_it_was(logits: Any) -> None:
    model = tiny_model("Llama")
    before = logits(model)
    for method, message in (
        (FactorLLM(5, 1), "experts=5 do not divide the 24 units of layer 0"),
        (Granular(2, 7), "k=7 does not divide"),
    ):
        with pytest.raises(InputError, match=message):
            convert(model, method)
        torch.testing.assert_close(logits(model), before, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"layer 7 is not dense; \[0, 1, 2\] are"):
        convert(model, FactorLLM(4, 1), layers=[7])
    with pytest.raises(InputError, match="no dense layers"):
        convert(attach(model, RoutedLayers(num_experts=2, k=1)), FactorLLM(4, 1))


def test_a_layer_that_stands_alone_can_be_converted() -> None:
    dense = dense_layers(decoder_of(tiny_model("Llama")))[0]
    layer = routed_layer(dense, Granular(3, 4))
    rows = torch.randn(6, 16)
    torch.testing.assert_close(layer(rows), dense.output(rows), rtol=1e-4, atol=1e-5)
    assert layer.last is not None and len((layer.last.experts // 4).unique(dim=1).T) == 1
