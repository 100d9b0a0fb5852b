import os
import subprocess
import sys

import pytest

from polypath.cli import main


def fails(capsys, *arguments):
    """The one line that a wrong command line is answered with."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("polypath: ")
    assert said.count("\n") == 1
    return said


def test_recipes_are_listed_with_their_domain(capsys):
    main(["run"])
    said = capsys.readouterr().out
    assert "language" in said
    assert "moe-lm" in said
    assert "Train a routed language model" in said


def test_help_of_a_recipe_comes_from_its_config(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["run", "moe-lm", "--help"])
    assert not exit_.value.code
    said = capsys.readouterr().out
    for text in ("--num-experts", "--experts", "--quick", "--resume"):
        assert (text in said) == (text != "--num-experts")
    assert "How many times everything is trained" in said


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["rum"], "unknown command 'rum'; did you mean 'run'?"),
        (["run", "moe-lmm"], "unknown recipe 'moe-lmm'; did you mean 'moe-lm'?"),
        (
            ["run", "moe-lm", "--stepz", "3"],
            "Unrecognized options: --stepz, 3; did you mean --steps?",
        ),
        (["run", "moe-lm", "--steps", "many"], "invalid literal for int() with base 10: 'many'"),
        (["run", "moe-lm", "--router", "top-kk"], "invalid choice 'top-kk'"),
        (["run", "moe-lm", "--preset", "quikc"], "did you mean 'quick'?"),
        (["run", "moe-lm", "--k", "9"], "k=9 of num_experts=8; k must be"),
        (["run", "moe-lm", "--steps", "0"], "steps=0; at least 1 is needed"),
        (["run", "moe-lm", "--accumulate", "3"], "must be a multiple of accumulate=3"),
        (["run", "moe-lm", "--resume", "nowhere"], "not a run folder"),
        (["run", "--resume", "nowhere"], "not a run folder"),
        (["run", "--quick"], "name a recipe first"),
        (["report", "nowhere"], "nowhere/outcome.json"),
        (["report"], "polypath report --help"),
        (["inspect"], "polypath inspect --help"),
        (["inspect", "nowhere"], "no folder nowhere"),
        (["compare"], "name two systems or more"),
        (["compare", "moe-lm", "moe-lx"], "unknown recipe 'moe-lx'; did you mean 'moe-lm'?"),
        (["compare", "moe-lm", "moe-lm/dense"], "unknown arm 'dense'; did you mean 'dense-"),
        (["compare", "moe-lm", "moe-lm"], "each may be named once"),
        (["compare", "compare", "moe-lm"], "compare has no arms on text"),
        (["compare", "ncn", "ncx"], "unknown link predictor 'ncx'; did you mean 'ncn'?"),
        (["compare", "ncn", "ncn"], "each may be named once"),
        (["compare", "ncn", "moe-lm"], "unknown link predictor 'moe-lm'"),
        (["table", "nowhere"], "nowhere"),
    ],
)
def test_wrong_input_is_answered_with_one_line(capsys, tmp_path, monkeypatch, arguments, line):
    monkeypatch.chdir(tmp_path)
    assert line in fails(capsys, *arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_complaints_are_one_line_whatever_the_terminal_can_draw(encoding):
    asked = [sys.executable, "-m", "polypath", "run", "moe-lm", "--router", "top-kk"]
    told = subprocess.run(
        asked,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert told.returncode == 1
    assert told.stderr.startswith("polypath: invalid choice 'top-kk' for argument '--router'.")
    assert told.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("absent.txt", None, "absent.txt"),
        ("empty.txt", b"", "empty.txt"),
        ("binary.txt", b"\x00\x01\x02" * 1000, "binary.txt"),
        ("latin.txt", b"caf\xe9 " * 1000, "latin.txt"),
        ("short.txt", b"too short\n", "short.txt"),
    ],
)
def test_a_corpus_that_will_not_do_is_answered_with_one_line(capsys, tmp_path, name, content, line):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    arguments = ["run", "moe-lm", "--quick", "--data", str(path), "--out", str(tmp_path / "run")]
    assert line in fails(capsys, *arguments)


def test_a_run_is_not_overwritten(capsys, tmp_path):
    (tmp_path / "kept").write_text("precious")
    assert "not empty" in fails(capsys, "run", "moe-lm", "--quick", "--out", str(tmp_path))
    assert (tmp_path / "kept").read_text() == "precious"


def test_debug_shows_the_traceback():
    asked = [sys.executable, "-m", "polypath", "run", "nothing", "--debug"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
