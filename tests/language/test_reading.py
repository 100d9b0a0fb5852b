from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.language.reading import encode, windows_of
from polypath.language.tokens import BPETokenizer


def test_bytes_where_there_is_no_tokenizer(tmp_path: Path) -> None:
    found = encode(tmp_path, 256, "a é!", 4)
    assert found.ids.tolist() == list("a é!".encode())[:4]
    assert found.spans == [(0, 1), (1, 2), (2, 3), (2, 3)]
    assert encode(tmp_path, 256, "abc").ids.tolist() == [97, 98, 99]
    with pytest.raises(InputError, match="100 ids are not bytes"):
        encode(tmp_path, 100, "abc")


def test_the_folders_own_tokenizer(tmp_path: Path) -> None:
    text = "to be or not to be, that is the question; " * 20
    tokenizer = BPETokenizer.train([text], 270)
    tokenizer.save(tmp_path / "tokenizer.json")
    found = encode(tmp_path, 270, text, 30)
    assert torch.equal(found.ids, tokenizer.encode(text)[:30])
    spelled = "".join(text[a:b] for a, b in found.spans)
    assert text.startswith(spelled)
    with pytest.raises(InputError, match="the tokenizer of this model is needed"):
        encode(tmp_path, 257, text)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="not a tokenizer's file"):
        encode(tmp_path, 270, text)


def test_windows_of_a_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {number}\n" for number in range(400)))
    found = windows_of(tmp_path, 256, path, 3, 50)
    assert found.shape == (3, 50)
    assert bytes(found.flatten().tolist()).startswith(b"line 0\nline 1\n")
    assert len(windows_of(tmp_path, 256, path, 1000, 50)) < 100
    with pytest.raises(InputError, match="fewer than the 9999 of one window"):
        windows_of(tmp_path, 256, path, 1, 9999)
    assert windows_of(tmp_path, 256, None, 2, 64).shape == (2, 64)
