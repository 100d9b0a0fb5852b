"""convert and merge from the command line, on tiny checkpoints."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hosts import tiny_model
from polypath import from_pretrained
from polypath.cli import main
from polypath.surgery.report import Surgery

READ = ["--windows", "8", "--context", "16"]


@pytest.fixture
def dense(tmp_path: Path) -> Path:
    tiny_model("Llama", vocab_size=256).save_pretrained(tmp_path / "dense")
    return tmp_path / "dense"


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    tiny_model("Olmoe", vocab_size=256).save_pretrained(tmp_path / "routed")
    return tmp_path / "routed"


def texts(folder: Path) -> list[str]:
    for name in ("prose", "numbers"):
        (folder / f"{name}.txt").write_text("".join(f"{name} {n}\n" for n in range(300)))
    return ["--domains", str(folder / "prose.txt"), str(folder / "numbers.txt")]


def refused(capsys: pytest.CaptureFixture, *arguments: str) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("method", ["factorllm", "granular", "read-me"])
def test_convert_writes_a_checkpoint_a_report_and_a_page(
    method: str, dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    more = [*texts(tmp_path), "--router-width", "16", *READ] if method == "read-me" else []
    before = {path.name: path.read_bytes() for path in dense.iterdir()}
    main(["convert", str(dense), "--method", method, *more])
    out = tmp_path / f"dense-{method}"
    model = from_pretrained(out)
    assert Surgery.read(out).operation == method
    assert "What became of what" in (out / "surgery.html").read_text()
    said = capsys.readouterr().out
    assert "parameters" in said and str(out) in said
    assert {path.name: path.read_bytes() for path in dense.iterdir()} == before
    if method == "granular":
        ids = torch.randint(256, (2, 9))
        with torch.no_grad():
            wanted = transformers.LlamaForCausalLM.from_pretrained(dense)(input_ids=ids).logits
            torch.testing.assert_close(model(input_ids=ids).logits, wanted, rtol=1e-4, atol=1e-4)


def test_convert_tunes_where_it_is_asked_to(dense: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    main(["convert", str(dense), "--method", "factorllm", "--tune", "3", "--out", out, *READ])
    assert "tuned for 3 steps" in Surgery.read(tmp_path / "out").notes[-1]


def test_merge_keeps_or_prunes_the_router(routed: Path, tmp_path: Path) -> None:
    main(["merge", str(routed), "--experts", "4", *READ])
    from_pretrained(tmp_path / "routed-merged")
    pruned = str(tmp_path / "pruned")
    main(["merge", str(routed), "--experts", "3", "--router", "prune", "--out", pruned, *READ])
    assert transformers.OlmoeForCausalLM.from_pretrained(pruned).config.num_experts == 3
    small = str(tmp_path / "small")
    asked = ["merge", str(routed), "--experts", "4", "--rank", "2", "--recover", "2"]
    main([*asked, "--exclude", "0", "--out", small, *READ])
    from_pretrained(small)
    sizes = [Surgery.read(tmp_path / name).after.parameters for name in ("routed-merged", "small")]
    assert sizes[1] < sizes[0]


def test_dry_runs_write_nothing(
    dense: Path, routed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    main(["convert", str(dense), "--method", "factorllm", "--dry-run"])
    main(["convert", str(dense), "--method", "read-me", *texts(tmp_path), "--dry-run"])
    main(["merge", str(routed), "--experts", "4", "--dry-run"])
    said = capsys.readouterr().out
    assert said.count("nothing was written") == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dense",
        "numbers.txt",
        "prose.txt",
        "routed",
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["convert", "{dense}", "--method", "granular", "--split", "random"],
            "--split is an",
        ),
        (["convert", "{dense}", "--method", "read-me"], "read-me needs --domains"),
        (["convert", "{dense}", "--method", "factorllm", "--experts", "5"], "do not divide the 24"),
        (["convert", "{dense}", "--method", "factor"], "invalid choice"),
        (["convert", "{routed}", "--method", "factorllm"], "no dense layers to convert"),
        (
            ["convert", "{dense}", "--method", "granular", "--out", "{dense}"],
            "checkpoint itself",
        ),
        (["convert", "nowhere", "--method", "granular"], "no folder nowhere"),
        (["merge", "{dense}", "--experts", "2"], "has no experts to merge"),
        (["merge", "{routed}", "--experts", "20"], "20 experts of 8"),
        (["merge", "{routed}", "--experts", "4", "--exclude", "7"], "excluded layer 7"),
        (["merge", "{routed}", "--experts", "4", "--recover", "5"], "--rank says how small"),
        (["merge", "{routed}", "--experts", "4", "--text", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_wrong_input_gets_one_line(
    arguments: list[str], message: str, dense: Path, routed: Path, capsys: pytest.CaptureFixture
) -> None:
    places = {"dense": str(dense), "routed": str(routed)}
    said = refused(capsys, *(word.format(**places) for word in arguments))
    assert message in said and said.count("\n") == 1
    assert not list(dense.parent.glob("dense-*")) and not list(dense.parent.glob("routed-*"))


def test_a_broken_checkpoint_is_told(dense: Path, capsys: pytest.CaptureFixture) -> None:
    index: dict[str, Any] = {"weight_map": {"model.norm.weight": "model-9.safetensors"}}
    (dense / "model.safetensors.index.json").write_text(json.dumps(index))
    said = refused(capsys, "convert", str(dense), "--method", "factorllm")
    assert "model-9.safetensors is missing" in said
