"""Text as the model of a checkpoint folder reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, NamedTuple

import tokenizers
import torch
from torch import Tensor

from polypath.errors import InputError
from polypath.language.corpus import read_corpus

Part = Literal["train", "valid", "test"]

# Characters that a token may stand for, as far as one has to read for so many tokens.
WIDEST = 40


class Encoded(NamedTuple):
    """ids: (T,) int64. spans: the characters that each stands for, from and to."""

    ids: Tensor
    spans: list[tuple[int, int]]


def encode(folder: Path, vocabulary: int, text: str, limit: int | None = None) -> Encoded:
    """The tokens of a text by the folder's own tokenizer, `limit` at most.

    Without a tokenizer.json the ids are bytes, where the vocabulary has room for them.
    Raises InputError for a broken tokenizer, or one of another model.
    """
    if limit is not None:
        text = text[: WIDEST * limit]
    path = folder / "tokenizer.json"
    if not path.exists():
        if vocabulary < 256:
            raise InputError(f"{folder}: no tokenizer.json, and {vocabulary} ids are not bytes")
        text = text if limit is None else text[:limit]
        places = [place for place, letter in enumerate(text) for _ in letter.encode()][:limit]
        ids = torch.frombuffer(bytearray(text.encode()[:limit]), dtype=torch.uint8).long()
        return Encoded(ids, [(place, place + 1) for place in places])
    try:
        found = tokenizers.Tokenizer.from_file(str(path)).encode(text, add_special_tokens=False)
    except Exception as error:  # the tokenizers library raises no narrower one
        raise InputError(f"{path}: not a tokenizer's file: {error}") from error
    ids = torch.tensor(found.ids[:limit], dtype=torch.int64)
    if len(ids) and int(ids.max()) >= vocabulary:
        raise InputError(
            f"{path}: it gives token {int(ids.max())}, the model has {vocabulary}; "
            "the tokenizer of this model is needed"
        )
    return Encoded(ids, found.offsets[:limit])


def windows_of(
    folder: Path,
    vocabulary: int,
    text: Path | None,
    count: int,
    context: int,
    part: Part = "train",
) -> Tensor:
    """(N, context) int64: the first `count` windows of a part of a text, fewer where it is short.

    text: a file or folder; the standard library's source by default.
    Raises InputError where there is not one window.
    """
    limit = None if text is not None else WIDEST * count * context
    words = getattr(read_corpus(text, limit), part).text
    ids = encode(folder, vocabulary, words, count * context).ids
    if len(ids) < context:
        where = "the standard library's source" if text is None else text
        raise InputError(f"{where}: {len(ids)} tokens, fewer than the {context} of one window")
    return ids[: len(ids) // context * context].view(-1, context)
