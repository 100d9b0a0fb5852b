from pathlib import Path

import pytest

from hosts import tiny_model
from polypath import cli
from polypath.errors import InputError
from polypath.language import BPETokenizer, RoutedLayers, attach, save_pretrained
from polypath.report.inspection import inspect, read_tokens
from polypath.report.page import page_of

TEXT = "The cat, 3 dogs\nand Émile sat; they sat on 12 mats.\n" * 200


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def olmoe(tmp_path: Path) -> Path:
    """A folder that transformers alone wrote."""
    model = tiny_model("Olmoe")
    model.resize_token_embeddings(300)
    model.save_pretrained(tmp_path / "olmoe")
    return tmp_path / "olmoe"


def test_a_plain_checkpoint_is_read_as_bytes(olmoe: Path, text: Path) -> None:
    outcome = inspect(olmoe, text, tokens=256, context=32)
    table = outcome.tables[0]
    assert len(table.rows) == 3
    for row in table.rows:
        values = dict(zip(table.columns, row, strict=True))
        assert values["experts"] == 8 and values["per token"] == 3
        assert 0 < values["entropy"] <= 1
    assert table.rows[-1][-1] is None
    steady, ways = outcome.tables[1:3]
    for row in steady.rows:
        _, first, some, strength, bound = row
        assert 0 < first <= some <= 1 and strength > 0 and bound > 0
    usual, unusual = ways.rows
    assert usual[2] <= unusual[2] and usual[3].count("-") == 2
    assert "Where every token went" in page_of(outcome)


def test_a_tokenizer_beside_the_weights_is_used(tmp_path: Path, text: Path) -> None:
    tokenizer = BPETokenizer.train([TEXT], 280)
    model = attach(tiny_model("Llama"), RoutedLayers("hash", num_experts=4))
    model.resize_token_embeddings(300)
    save_pretrained(model, tmp_path / "model")
    tokenizer.save(tmp_path / "model" / "tokenizer.json")
    read = read_tokens(tmp_path / "model", 300, text, 64)
    assert "".join(read.texts) == tokenizer.decode(read.ids)
    assert {"lowercase", "number", "punctuation"} <= set(read.kinds)
    tables = inspect(tmp_path / "model", text, 64, 16).tables
    (entropy,) = {row[5] for row in tables[0].rows}
    assert entropy is None  # a hash has no probabilities
    assert {tuple(row[1:]) for row in tables[1].rows} == {(0.0, 0.0, None, None)}
    assert [table.title for table in tables[1:]] == [
        "How steady they are",
        "Experts and kinds of tokens",
    ]


def test_bytes_and_kinds_follow_the_text(tmp_path: Path, text: Path) -> None:
    read = read_tokens(tmp_path, 256, text, 64)
    assert bytes(read.ids.tolist()).decode(errors="ignore") in TEXT
    for shown, kind in zip(read.texts, read.kinds, strict=True):
        assert (kind == "number") == shown.isdigit()


def test_wrong_input_is_one_line(
    tmp_path: Path, olmoe: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_pretrained(tiny_model("Llama"), tmp_path / "dense")
    with pytest.raises(InputError, match="no routed layers"):
        inspect(tmp_path / "dense", text)
    with pytest.raises(InputError, match="context=100000"):
        inspect(olmoe, text, tokens=200_000, context=100_000)
    with pytest.raises(InputError, match="tokens=5, context=9"):
        inspect(olmoe, text, tokens=5, context=9)
    (olmoe / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer's file"):
        inspect(olmoe, text)
    with pytest.raises(InputError, match="61 ids are not bytes"):
        read_tokens(tmp_path / "dense", 61, text, 9)
    BPETokenizer.train([TEXT], 280).save(olmoe / "tokenizer.json")
    with pytest.raises(InputError, match="the model has 100"):
        read_tokens(olmoe, 100, text, 99)
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path / "nothing")])
    assert capsys.readouterr().err.startswith("polypath: no folder")


def test_the_command_writes_a_page(
    olmoe: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.main(["inspect", str(olmoe), "--text", str(text), "--tokens", "128", "--context", "16"])
    page = olmoe.parent / "olmoe-routes.html"
    assert str(page) in capsys.readouterr().out
    assert "How the layers route" in page.read_text(encoding="utf-8")
