from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hosts import tiny_model, tiny_switch
from polypath import attach, from_pretrained, save_pretrained
from polypath.errors import InputError
from polypath.plain import encode
from polypath.surgery.checkpoints import (
    Reading,
    compress_checkpoint,
    convert_checkpoint,
    in_pieces,
    merge_checkpoint,
    plan_conversion,
    plan_merge,
    steps_of,
    tune_checkpoint,
)
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.granular import Granular
from polypath.surgery.merge import Merge
from polypath.surgery.readme import ReadMe
from polypath.surgery.report import Surgery
from polypath.surgery.tuning import Tuning

BYTES = {"vocab_size": 256}
SMALL = Reading(windows=8, context=16)


def saved(kind: str, folder: Path) -> Any:
    model = tiny_model(kind, **BYTES)
    model.save_pretrained(folder)
    return model


def test_families_that_cannot_be_cut_up_are_worked_in_memory(tmp_path: Path, logits: Any) -> None:
    gemma = tiny_model("Gemma2", **BYTES)
    gemma.save_pretrained(tmp_path / "gemma")
    lines: list[str] = []
    assert not in_pieces(tmp_path / "gemma") and steps_of(tmp_path / "gemma", False) == 1
    done = convert_checkpoint(
        tmp_path / "gemma", tmp_path / "out", lambda seen: Granular(2, 2), {}, lines.append
    )
    assert lines == ["converted"] and encode(Surgery.read(tmp_path / "out")) == encode(done)
    found = from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(gemma), rtol=1e-5, atol=1e-4)


def test_what_polypath_wrote_can_be_merged_again(tmp_path: Path, logits: Any) -> None:
    saved("Llama", tmp_path / "source")
    convert_checkpoint(tmp_path / "source", tmp_path / "fine", lambda seen: Granular(2, 2), {})
    done = merge_checkpoint(tmp_path / "fine", tmp_path / "out", Merge(2), SMALL, native=False)
    assert done.after.parameters < done.before.parameters
    logits(from_pretrained(tmp_path / "out"))


def test_plans_tell_the_sizes_that_come_out(tmp_path: Path) -> None:
    saved("Llama", tmp_path / "dense")
    for choice in (lambda seen: FactorLLM(4, 2), lambda seen: ReadMe(seen, width=16, heads=2)):
        texts = dict.fromkeys(("one", "other"), SMALL)
        plan = plan_conversion(tmp_path / "dense", choice, list(texts))
        done = convert_checkpoint(tmp_path / "dense", tmp_path / "out", choice, texts)
        assert (plan.before, plan.after) == (done.before, done.after)
    saved("Olmoe", tmp_path / "routed")
    plan = plan_merge(tmp_path / "routed", Merge(4, layers="uniform"))
    config = Merge(4, layers="uniform")
    done = merge_checkpoint(tmp_path / "routed", tmp_path / "out", config, SMALL, native=False)
    assert (plan.before, plan.after) == (done.before, done.after)


def test_a_native_merge_is_a_plain_checkpoint(tmp_path: Path, logits: Any) -> None:
    saved("Olmoe", tmp_path / "source")
    merge_checkpoint(tmp_path / "source", tmp_path / "out", Merge(3), SMALL, native=True)
    plain = transformers.OlmoeForCausalLM.from_pretrained(tmp_path / "out")
    assert plain.config.num_experts == 3
    found = from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(plain), logits(found), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("steps", [0, 3])
def test_merged_experts_are_compressed_in_place(steps: int, tmp_path: Path, logits: Any) -> None:
    saved("Olmoe", tmp_path / "source")
    merged = merge_checkpoint(tmp_path / "source", tmp_path / "out", Merge(4), SMALL, False)
    done = compress_checkpoint(
        tmp_path / "out", tmp_path / "source", 2, 0.25, steps, SMALL, (), lambda line: None
    )
    assert done.after.parameters < merged.after.parameters
    assert Surgery.read(tmp_path / "out") == done and "rank 2" in done.notes[-1]
    logits(from_pretrained(tmp_path / "out"))


@pytest.mark.parametrize("method", ["factorllm", "granular", "read-me"])
def test_what_was_converted_can_be_tuned(method: str, tmp_path: Path) -> None:
    saved("Llama", tmp_path / "source")
    made: list[Any] = []

    def choice(seen: Any) -> Any:
        own: dict[str, Any] = {
            "factorllm": lambda: FactorLLM(4, 2),
            "granular": lambda: Granular(2, 2),
            "read-me": lambda: ReadMe(seen, width=16, heads=2),
        }
        made.append(own[method]())
        return made[-1]

    texts = dict.fromkeys(("one", "other"), SMALL) if method == "read-me" else {}
    convert_checkpoint(tmp_path / "source", tmp_path / "out", choice, texts)
    before = from_pretrained(tmp_path / "out").state_dict()
    lines: list[str] = []
    done = tune_checkpoint(
        tmp_path / "source",
        tmp_path / "out",
        made[-1],
        Tuning(12, 3e-3, warmup=2),
        texts or {"text": SMALL},
        lines.append,
    )
    after = from_pretrained(tmp_path / "out").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert len(lines) == 12 and "tuned for 12 steps" in done.notes[-1]


def test_wrong_input_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    saved("Llama", tmp_path / "dense")
    saved("Olmoe", tmp_path / "routed")
    dense, routed, out = tmp_path / "dense", tmp_path / "routed", tmp_path / "out"
    with pytest.raises(InputError, match="is the checkpoint itself"):
        convert_checkpoint(dense, dense, lambda seen: FactorLLM(4, 2), {})
    with pytest.raises(InputError, match="no experts to merge"):
        merge_checkpoint(dense, out, Merge(2), SMALL, native=False)
    with pytest.raises(InputError, match="9 experts of 8"):
        merge_checkpoint(routed, out, Merge(9), SMALL, native=False)
    with pytest.raises(InputError, match="excluded layer 5"):
        merge_checkpoint(routed, out, Merge(2, excluded=(5,)), SMALL, native=False)
    with pytest.raises(InputError, match="no dense layers"):
        convert_checkpoint(routed, out, lambda seen: FactorLLM(4, 2), {})
    with pytest.raises(InputError, match="windows=1"):
        Reading(windows=1)
    (tmp_path / "short.txt").write_text("a\n" * 20)
    with pytest.raises(InputError, match="fewer than the 512 of one window"):
        reading = Reading(tmp_path / "short.txt")
        merge_checkpoint(routed, out, Merge(2), reading, native=False)
    assert not out.exists()


def test_switch_transformers_are_a_checkpoint_too(tmp_path: Path) -> None:
    model = tiny_switch(vocab_size=256)
    save_pretrained(attach(model), tmp_path / "source")
    plan = plan_merge(tmp_path / "source", Merge(2))
    assert plan.after.parameters < plan.before.parameters
