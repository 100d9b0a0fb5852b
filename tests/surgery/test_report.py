from pathlib import Path

import pytest
import torch

from hosts import tiny_model
from polypath import RoutedLayers, attach
from polypath.errors import InputError
from polypath.surgery.report import Check, Move, Size, Surgery, served, stored

SIZE = Size(100, 40, 400)


def test_a_report_comes_back_as_it_was_written(tmp_path: Path) -> None:
    done = Surgery(
        "merge",
        {"experts": 4.0, "excluded": [0], "align": True, "most": None},
        SIZE,
        Size(50, 40, 200),
        [Move("layer 0", "8 experts", "4", 0.5), Move("layer 1", "8 experts", "8")],
        [Check("sum", 1e-7, 1e-5)],
        ["a note"],
        1.5,
    )
    done.save(tmp_path)
    assert Surgery.read(tmp_path) == done
    assert done.checks[0].held and not Check("sum", 1e-4, 1e-5).held


def test_what_is_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        Surgery.read(tmp_path)
    (tmp_path / "surgery.json").write_text("{")
    with pytest.raises(InputError, match="not JSON"):
        Surgery.read(tmp_path)
    (tmp_path / "surgery.json").write_text('{"operation": "merge"}')
    with pytest.raises(InputError, match="settings, before, after, moves missing"):
        Surgery.read(tmp_path)


def test_a_size_counts_shared_parameters_once_and_experts_by_how_many_serve() -> None:
    model = attach(tiny_model("Llama"), RoutedLayers(num_experts=8, k=2, hidden=5))
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for layer in model.model.layers for p in layer.mlp.experts.parameters())
    assert Size.of(model) == Size(total, total - experts * 6 // 8, 4 * total)
    tied = tiny_model("Llama", tie_word_embeddings=True)
    apart = tiny_model("Llama", tie_word_embeddings=False)
    assert Size.of(apart).parameters - Size.of(tied).parameters == 61 * 16
    assert Size.of(tied.to(torch.bfloat16)).bytes == 2 * Size.of(tied).parameters


def test_how_many_experts_serve_and_are_stored() -> None:
    model = attach(tiny_model("Llama"), RoutedLayers("soft", num_experts=3, hidden=5))
    layer = model.model.layers[0].mlp
    assert stored(layer.experts) == 3 and served(layer) == 1.0
