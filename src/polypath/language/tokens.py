"""Text as token ids, and token ids as batches that depend on seed and step alone."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from torch import Tensor

from polypath.errors import InputError


class Tokenizer(Protocol):
    """Cuts text into tokens whose bytes, one after another, are the text's bytes in UTF-8."""

    @property
    def vocab_size(self) -> int: ...

    def encode(self, text: str) -> Tensor:
        """(T,) int64."""

    def decode(self, ids: Tensor) -> str:
        """The text of (T,) ids; bytes that are no characters become U+FFFD."""

    def lengths(self, ids: Tensor) -> Tensor:
        """How many bytes each token stands for, int64, in the shape of `ids`."""

    def texts(self, ids: Tensor) -> list[str]:
        r"""What to show for each of (T,) tokens; bytes that are no whole character as \xc3."""

    def save(self, path: str | Path) -> None:
        """Write a tokenizer.json as the tokenizers library has it; `read_tokenizer` reads it."""


class ByteTokenizer:
    """A token is a byte of the text's UTF-8, its id the byte's value."""

    @property
    def vocab_size(self) -> int:
        return 256

    def encode(self, text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int64))

    def decode(self, ids: Tensor) -> str:
        return bytes(ids.tolist()).decode(errors="replace")

    def lengths(self, ids: Tensor) -> Tensor:
        return torch.ones_like(ids)

    def texts(self, ids: Tensor) -> list[str]:
        return [_shown(bytes([byte])) for byte in ids.tolist()]

    def save(self, path: str | Path) -> None:
        _byte_level(models.BPE(vocab=_letters(), merges=[])).save(str(path))


class BPETokenizer:
    """Byte-pair encoding over bytes (Sennrich et al. 2016; bytes as in GPT-2), from `train`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        letters = _letters()
        vocabulary = tokenizer.get_vocab()
        self._bytes = [b""] * len(vocabulary)
        for token, index in vocabulary.items():
            self._bytes[index] = bytes(letters[letter] for letter in token)
        self._lengths = torch.tensor([len(token) for token in self._bytes])

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int) -> BPETokenizer:
        """Learn a vocabulary; the same texts in the same order give the same one.

        Raises InputError when `vocab_size` leaves no room for a merge or the texts do not have
        that many pairs to merge.
        """
        if vocab_size <= 256:
            raise InputError(
                f"a byte-level BPE of {vocab_size} tokens was asked for; it has to be more than "
                "the 256 bytes"
            )
        tokenizer = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
        tokenizer.train_from_iterator(texts, trainer)
        if tokenizer.get_vocab_size() < vocab_size:
            raise InputError(
                f"a BPE of {vocab_size} tokens was asked for; this text gives only "
                f"{tokenizer.get_vocab_size()}"
            )
        return cls(tokenizer)

    @property
    def vocab_size(self) -> int:
        return len(self._bytes)

    def encode(self, text: str) -> Tensor:
        # The fast form leaves out offsets, which cost more than all else.
        (encoding,) = self._tokenizer.encode_batch_fast([text])
        return torch.tensor(encoding.ids, dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        return b"".join(self._bytes[i] for i in ids.tolist()).decode(errors="replace")

    def lengths(self, ids: Tensor) -> Tensor:
        return self._lengths[ids]

    def texts(self, ids: Tensor) -> list[str]:
        return [_shown(self._bytes[i]) for i in ids.tolist()]

    def save(self, path: str | Path) -> None:
        self._tokenizer.save(str(path))


def read_tokenizer(path: str | Path) -> Tokenizer:
    """Read what `save` wrote; raises InputError when the file is missing or something else."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    try:
        vocabulary = json.loads(text)["model"]["vocab"]
        if not _letters().keys() <= vocabulary.keys():
            raise ValueError("some bytes have no token")
        if vocabulary == _letters():
            return ByteTokenizer()
        return BPETokenizer(tokenizers.Tokenizer.from_str(text))
    except Exception as error:  # the tokenizers library raises no narrower one
        raise InputError(f"{path}: not the file of a byte-level BPE tokenizer") from error


def bits_per_byte(nats_per_token: float, tokens: int, num_bytes: int) -> float:
    """The mean loss of `tokens` tokens that stand for `num_bytes` bytes, in bits a byte.

    Unlike nats per token it may be compared between tokenizers.
    """
    return nats_per_token * tokens / (num_bytes * math.log(2))


class Windows:
    """Windows of `length` + 1 tokens over a text: `length` inputs and the `length` next tokens.

    tokens: (T,) int64.
    name: what the text is called in errors.
    Raises InputError when the text is shorter than one window.
    """

    def __init__(self, tokens: Tensor, length: int, name: str = "text") -> None:
        if len(tokens) <= length:
            raise InputError(
                f"{name}: {len(tokens)} tokens, fewer than the {length + 1} of one window; "
                "give more text or a shorter context"
            )
        self._windows = tokens.unfold(0, length + 1, 1)
        self._length = length

    def batch(self, step: int, seed: int, size: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """(size / ranks, length + 1) int64: this rank's rows of the global batch of a step.

        Windows at random places that depend on seed and step alone, so that a run that resumes
        at a step sees what an unbroken one does.
        Raises InputError when the batch cannot be shared out evenly.
        """
        if size % ranks:
            raise InputError(f"a batch of {size} windows cannot be shared by {ranks} ranks evenly")
        starts = np.random.default_rng([seed, step]).integers(len(self._windows), size=size)
        return self._windows[torch.from_numpy(starts).chunk(ranks)[rank]]

    def tiling(self, limit: int | None = None, rank: int = 0, ranks: int = 1) -> Tensor:
        """(N / ranks, length + 1) int64: windows side by side, always the same ones.

        Each window starts at the last token of the one before it, so no token is predicted twice.
        limit: at most this many, spread evenly over the text. N is rounded down to a multiple of
        `ranks`, so that all ranks have the same number of rows.
        """
        starts = torch.arange(0, len(self._windows), self._length)
        count = len(starts) if limit is None else min(limit, len(starts))
        count -= count % ranks
        if count == 0:
            raise InputError(f"{len(starts)} windows of text cannot be shared by {ranks} ranks")
        spread = torch.arange(count) * len(starts) // count
        return self._windows[starts[spread].chunk(ranks)[rank]]


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


@cache
def _letters() -> dict[str, int]:
    """The byte of each of the 256 letters that stand for bytes in the tokenizers library.

    A printable byte stands for itself; the others have letters from 256 on, in their own order.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    printable = {letter: ord(letter) for letter in alphabet if ord(letter) < 256}
    others = sorted(set(range(256)) - set(printable.values()))
    return printable | dict(zip(alphabet[len(printable) :], others, strict=True))


def _shown(token: bytes) -> str:
    return token.decode(errors="backslashreplace")
