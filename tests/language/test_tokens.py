import math
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.language.tokens import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    Windows,
    bits_per_byte,
    read_tokenizer,
)

TEXT = (
    "def greet(name):\n    # say hello to the name\n    return f'hello {name}, hello'\n\n\n"
    "class Greeter:\n    name = 'naïve café ☕'\n\n    def greet(self):\n        greet(self.name)\n"
) * 3


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([TEXT], 300)


@pytest.fixture(scope="module", params=["byte", "bpe"])
def tokenizer(request: pytest.FixtureRequest, bpe: BPETokenizer) -> Tokenizer:
    return bpe if request.param == "bpe" else ByteTokenizer()


@given(text=st.text())
def test_text_comes_back_and_lengths_are_its_bytes(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.dtype == torch.int64 and ids.ndim == 1
    assert tokenizer.decode(ids) == text
    assert tokenizer.lengths(ids).sum() == len(text.encode())
    assert len(ids) == 0 or (ids.min() >= 0 and ids.max() < tokenizer.vocab_size)
    # Each token stands for that many of the text's bytes, in order.
    pieces = [tokenizer.decode(ids[i : i + 1]) for i in range(len(ids))]
    if text.isascii():
        assert [len(piece) for piece in pieces] == tokenizer.lengths(ids).tolist()
        assert tokenizer.texts(ids) == pieces


def test_byte_ids_are_the_bytes() -> None:
    assert ByteTokenizer().encode("é\n").tolist() == [0xC3, 0xA9, 0x0A]
    assert ByteTokenizer().vocab_size == 256


def test_parts_of_a_character_are_shown_as_bytes(bpe: BPETokenizer) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.texts(tokenizer.encode("aé")) == ["a", r"\xc3", r"\xa9"]
    assert "".join(bpe.texts(bpe.encode("naïve"))) in ("naïve", r"na\xc3\xafve")
    assert bpe.texts(bpe.encode("ß")) == [r"\xc3", r"\x9f"]


@given(
    text=st.lists(st.sampled_from(["a", " ", "\n", "\n\n", "\r\n", "é", "def", "\t"])).map("".join)
)
def test_bpe_ids_are_those_of_the_library_on_the_whole_text(bpe: BPETokenizer, text: str) -> None:
    library = tokenizers.Tokenizer.from_str(bpe._tokenizer.to_str())
    assert bpe.encode(text).tolist() == library.encode(text).ids


def test_bpe_merges_the_most_frequent_pair_first() -> None:
    bpe = BPETokenizer.train(["ababab abab cd"], 257)
    (new,) = [i for i in range(257) if len(bpe.texts(torch.tensor([i]))[0]) == 2]
    assert bpe.decode(torch.tensor([new])) == "ab"
    assert bpe.lengths(bpe.encode("abcd")).tolist() == [2, 1, 1]


def test_training_is_the_same_every_time() -> None:
    # Every pair is as frequent as every other; the library's hash tables have a new order each.
    text = " ".join(f"{a}{b}" for a in "abcdefgh" for b in "pqrstuvw")
    files = {BPETokenizer.train([text], 290)._tokenizer.to_str() for _ in range(5)}
    assert len(files) == 1


def test_bpe_that_the_text_cannot_give_is_refused() -> None:
    with pytest.raises(InputError, match="more than the 256"):
        BPETokenizer.train([TEXT], 256)
    with pytest.raises(InputError, match="of 400 tokens was asked for; this text gives only"):
        BPETokenizer.train(["ab"], 400)


def test_saved_tokenizer_reads_back_and_is_a_file_of_the_library(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(path)
    ids = tokenizer.encode(TEXT)
    again = read_tokenizer(path)
    assert type(again) is type(tokenizer)
    assert again.encode(TEXT).equal(ids) and again.decode(ids) == TEXT
    library = tokenizers.Tokenizer.from_file(str(path))
    assert library.encode(TEXT).ids == ids.tolist()
    assert library.decode(ids.tolist()) == TEXT


def test_a_broken_tokenizer_file_is_named(bpe: BPETokenizer, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(InputError, match="cannot be read"):
        read_tokenizer(path)
    bpe.save(path)
    whole = path.read_text()
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a")).to_str()
    for broken in ("", "[]", whole[:500], words, "\x80"):
        path.write_text(broken, encoding="latin-1")
        with pytest.raises(InputError, match=r"tokenizer\.json"):
            read_tokenizer(path)


def test_bits_per_byte_is_the_codelength_of_the_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    counts = torch.bincount(ids, minlength=tokenizer.vocab_size).double()
    p = counts / counts.sum()
    nats = -p[ids].log()  # ideal code of the unigram model
    bits = sum(-math.log2(p[i]) for i in ids.tolist())
    found = bits_per_byte(nats.mean().item(), len(ids), int(tokenizer.lengths(ids).sum()))
    assert found == pytest.approx(bits / len(TEXT.encode()))


def test_uniform_bytes_cost_eight_bits() -> None:
    assert bits_per_byte(math.log(256), 1000, 1000) == pytest.approx(8)


def brute_windows(tokens: torch.Tensor, length: int) -> list[list[int]]:
    return [tokens[i : i + length + 1].tolist() for i in range(len(tokens) - length)]


@given(st.integers(0, 50), st.integers(0, 2**31), st.integers(1, 7), st.integers(1, 4))
def test_batch_is_a_function_of_seed_and_step(step: int, seed: int, rows: int, ranks: int) -> None:
    tokens = torch.arange(100) * 3
    windows = Windows(tokens, 10)
    whole = windows.batch(step, seed, rows * ranks)
    windows.batch(step + 1, seed, 3)  # leaves no trace
    assert windows.batch(step, seed, rows * ranks).equal(whole)
    assert whole.shape == (rows * ranks, 11) and whole.dtype == torch.int64
    assert all(row in brute_windows(tokens, 10) for row in whole.tolist())
    parts = [windows.batch(step, seed, rows * ranks, rank, ranks) for rank in range(ranks)]
    assert torch.cat(parts).equal(whole)


def test_batches_differ_between_steps_and_seeds_and_cover_the_text_evenly() -> None:
    windows = Windows(torch.arange(41), 1)  # 40 places
    batches = [windows.batch(step, seed, 64) for step in range(50) for seed in range(2)]
    assert len({tuple(b.flatten().tolist()) for b in batches}) == 100
    counts = np.bincount(torch.cat(batches)[:, 0].numpy(), minlength=40)
    assert len(counts) == 40  # never past the last whole window
    expected = 64 * 100 / 40
    assert ((counts - expected) ** 2 / expected).sum() < 73  # chi-squared, 39 degrees, p = 0.001


@given(st.integers(2, 200), st.integers(1, 30))
def test_tiling_predicts_every_token_at_most_once(count: int, length: int) -> None:
    tokens = torch.arange(count)
    if count <= length:
        with pytest.raises(InputError, match="of one window"):
            Windows(tokens, length, "valid")
        return
    tiles = Windows(tokens, length).tiling()
    targets = tiles[:, 1:].flatten().tolist()
    assert targets == list(range(1, len(targets) + 1))  # from the second token on, without a gap
    assert count - 1 - len(targets) < length  # what is left would not fill a window


@given(st.integers(1, 30), st.integers(1, 4))
def test_limited_tiling_is_spread_and_shared(limit: int, ranks: int) -> None:
    windows = Windows(torch.arange(200), 9)  # 22 tiles
    expected = min(limit, 22) // ranks * ranks
    if expected == 0:
        with pytest.raises(InputError, match="cannot be shared"):
            windows.tiling(limit, ranks=ranks)
        return
    tiles = (
        windows.tiling(limit, ranks=1)
        if ranks == 1
        else torch.cat([windows.tiling(limit, rank, ranks) for rank in range(ranks)])
    )
    assert tiles[:, 0].tolist() == [9 * (i * 22 // expected) for i in range(expected)]
    assert len(set(tiles[:, 0].tolist())) == expected


def test_batch_that_ranks_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="5 windows cannot be shared by 2 ranks"):
        Windows(torch.arange(20), 4).batch(0, 0, 5, ranks=2)


def test_text_shorter_than_a_window_is_named() -> None:
    Windows(torch.arange(5), 4)
    with pytest.raises(InputError, match="valid split: 4 tokens, fewer than the 5"):
        Windows(torch.arange(4), 4, "valid split")
