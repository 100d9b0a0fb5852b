"""align and unlearn from the command line, on tiny checkpoints."""

import json
from pathlib import Path

import pytest
import transformers

from hosts import tiny_model
from polypath.cli import main


@pytest.fixture
def routed(tmp_path: Path) -> Path:
    tiny_model("Olmoe", vocab_size=256).save_pretrained(tmp_path / "routed")
    return tmp_path / "routed"


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    path = tmp_path / "questions.jsonl"
    lines = [{"question": f"what is {n} + 1?", "answer": f"{n + 1}"} for n in range(20)]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    return path


def changed(one: Path, other: Path) -> set[str]:
    pair = [
        transformers.OlmoeForCausalLM.from_pretrained(path).state_dict() for path in (one, other)
    ]
    return {name for name, tensor in pair[0].items() if not tensor.equal(pair[1][name])}


def test_align_changes_routers_and_nothing_else(
    routed: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    asked = ["align", str(routed), "--data", str(questions), "--layers", "2", "--steps", "3"]
    main([*asked, "--weight", "0"])
    said = capsys.readouterr().out
    assert "questions held out" in said
    moved = changed(routed, tmp_path / "routed-aligned")
    assert moved == {f"model.layers.{index}.mlp.gate.weight" for index in (1, 2)}
    assert (tmp_path / "routed-aligned" / "surgery.html").exists()


def test_unlearn_changes_one_expert_and_its_router(
    routed: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("forget", "retain"):
        (tmp_path / name).write_text("".join(f"{name} line {n}\n" for n in range(300)))
    asked = ["unlearn", str(routed), "--forget", str(tmp_path / "forget")]
    asked += ["--retain", str(tmp_path / "retain"), "--windows", "8", "--context", "16"]
    main([*asked, "--dry-run"])
    assert "numbers would be trained" in capsys.readouterr().out
    assert not (tmp_path / "routed-unlearned").exists()
    main([*asked, "--steps", "3", "--learning-rate", "1e-3"])
    moved = changed(routed, tmp_path / "routed-unlearned")
    layers = {name.split(".mlp.")[0] for name in moved}
    assert len(layers) == 1
    parts = {name.split(".mlp.")[1] for name in moved}
    assert parts == {"gate.weight", "experts.gate_up_proj", "experts.down_proj"}


def test_wrong_input_gets_one_line(
    routed: Path, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    tiny_model("Llama", vocab_size=256).save_pretrained(tmp_path / "dense")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    text = str(questions)
    for arguments, message in (
        (["align", str(routed), "--data", str(broken)], "broken.jsonl, line 2: no texts"),
        (["align", str(tmp_path / "dense"), "--data", text], "has no routed layers"),
        (["align", str(routed), "--data", text, "--layers", "0"], "the last 0 of 3 routed layers"),
        (["align", str(routed), "--data", text, "--context", "0"], "--context 0"),
        (["unlearn", str(routed), "--forget", text], "--retain"),
        (["unlearn", str(routed), "--forget", "no", "--retain", text], "no: no such file"),
        (
            ["unlearn", str(routed), "--forget", text, "--retain", text, "--text", text],
            "leave out --text",
        ),
    ):
        with pytest.raises(SystemExit):
            capsys.readouterr()
            main(arguments)
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1, said
