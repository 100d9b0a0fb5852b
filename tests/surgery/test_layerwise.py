import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from hosts import tiny_model
from polypath import attach, from_pretrained
from polypath.errors import InputError
from polypath.language.piecewise import Pieces
from polypath.surgery.calibration import calibrate
from polypath.surgery.convert import convert
from polypath.surgery.factorllm import FactorLLM
from polypath.surgery.granular import Granular
from polypath.surgery.layerwise import calibrate_pieces, convert_folder, merge_folder
from polypath.surgery.merge import Merge, merge
from polypath.surgery.readme import ReadMe
from polypath.surgery.report import Surgery

DENSE, NATIVE = ["Llama", "Qwen3", "DeepseekV3"], ["Olmoe", "Mixtral", "Qwen3Moe", "DeepseekV3"]
METHODS: dict[str, Any] = {
    "factorllm": lambda seen: FactorLLM(4, 2, "random"),
    "granular": lambda seen: Granular(2, 2),
    "read-me": lambda seen: ReadMe(seen(), width=16, heads=2),
    "read-me, split": lambda seen: ReadMe(seen(), width=16, heads=2, layout="split"),
}


def saved(kind: str, folder: Path) -> Any:
    model = tiny_model(kind)
    model.save_pretrained(folder, max_shard_size="20KB")
    (folder / "notes.txt").write_text("a user's own file")
    return model


@pytest.mark.parametrize("kind", DENSE)
@pytest.mark.parametrize("method", METHODS)
def test_a_folder_becomes_what_a_model_in_memory_becomes(
    kind: str, method: str, tmp_path: Path, logits: Any, texts: dict
) -> None:
    model = saved(kind, tmp_path / "source")
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    lines: list[str] = []
    torch.manual_seed(7)
    made = METHODS[method](lambda: calibrate_pieces(Pieces(tmp_path / "source"), texts))
    done = convert_folder(Pieces(tmp_path / "source"), tmp_path / "out", made, lines.append)
    torch.manual_seed(7)
    again = METHODS[method](lambda: {name: calibrate(model, own) for name, own in texts.items()})
    wanted = convert(model, again)
    loaded = from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    for part in ("before", "after", "moves", "checks", "settings"):
        assert getattr(done, part) == getattr(wanted, part)
    assert Surgery.read(tmp_path / "out").after == done.after
    assert lines[-1] == "wrote layer 2"
    assert {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()} == files
    assert (tmp_path / "out" / "notes.txt").read_text() == "a user's own file"


@pytest.mark.parametrize("kind", NATIVE)
def test_a_merged_folder_is_the_merged_model(
    kind: str, tmp_path: Path, logits: Any, texts: dict
) -> None:
    model = attach(saved(kind, tmp_path / "source"))
    config = Merge(4)
    done = merge_folder(Pieces(tmp_path / "source"), tmp_path / "out", texts["one"], config)
    wanted = merge(model, calibrate(model, texts["one"]), config)
    loaded = from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)
    assert (done.moves, done.after) == (wanted.moves, wanted.after)


def test_half_precision_goes_through_as_it_is(tmp_path: Path, logits: Any) -> None:
    tiny = tiny_model("Llama").to(torch.bfloat16)
    tiny.save_pretrained(tmp_path / "source")
    model = type(tiny).from_pretrained(tmp_path / "source", dtype="auto")
    torch.manual_seed(7)
    convert_folder(Pieces(tmp_path / "source"), tmp_path / "out", FactorLLM(4, 2))
    torch.manual_seed(7)
    convert(model, FactorLLM(4, 2))
    loaded = from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    torch.testing.assert_close(logits(loaded), logits(model), rtol=0, atol=0)


def test_a_calibration_by_layers_is_that_of_the_whole(tmp_path: Path, texts: dict) -> None:
    model = attach(saved("Qwen3Moe", tmp_path / "source"))
    found = calibrate_pieces(Pieces(tmp_path / "source"), texts)["one"]
    wanted = calibrate(model, texts["one"])
    assert list(found.routed) == list(wanted.routed) and list(found.dense) == list(wanted.dense)
    for index, sums in wanted.routed.items():
        torch.testing.assert_close(found.routed[index].squares, sums.squares)
        torch.testing.assert_close(found.routed[index].chosen, sums.chosen)
    for index, channels in wanted.dense.items():
        torch.testing.assert_close(found.dense[index].sizes, channels.sizes)


def test_what_stops_leaves_nothing_behind(tmp_path: Path, texts: dict) -> None:
    saved("Olmoe", tmp_path / "source")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("what was there")

    class Stopped(Exception):
        pass

    def stop(line: str) -> None:
        if line == "wrote layer 1":
            raise Stopped

    with pytest.raises(Stopped):
        merge_folder(Pieces(tmp_path / "source"), tmp_path / "out", texts["one"], Merge(4), stop)
    assert (tmp_path / "out" / "config.json").read_text() == "what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def merge_until(folder: Path, texts: dict, last: str) -> None:
    """Merge a folder, and be killed when so far is told."""

    def told(line: str) -> None:
        if line == last:
            os.kill(os.getpid(), signal.SIGKILL)

    merge_folder(Pieces(folder / "source"), folder / "out", texts["one"], Merge(4), told)


@pytest.mark.parametrize("last", ["calibrated layer 1", "wrote layer 0", "wrote layer 2"])
def test_a_kill_leaves_the_source_and_no_half_of_a_target(
    last: str, tmp_path: Path, texts: dict, logits: Any
) -> None:
    saved("Olmoe", tmp_path / "source")
    files = {path.name: path.read_bytes() for path in (tmp_path / "source").iterdir()}
    process = multiprocessing.get_context("spawn").Process(
        target=merge_until, args=(tmp_path, texts, last)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()} == files
    merge_until(tmp_path, texts, "never")
    assert logits(from_pretrained(tmp_path / "out")).isfinite().all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "source"]


def test_wrong_settings_are_told_before_anything_is_written(tmp_path: Path) -> None:
    saved("Llama", tmp_path / "source")
    with pytest.raises(InputError, match="do not divide"):
        convert_folder(Pieces(tmp_path / "source"), tmp_path / "out", FactorLLM(5, 1))
    assert not (tmp_path / "out").exists()
