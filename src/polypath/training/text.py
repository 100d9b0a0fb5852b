"""Text as a run keeps it: tokens of every split, the tokenizer, and what kind each token is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from polypath.files import replace_file
from polypath.language.corpus import Corpus
from polypath.language.kinds import kinds_of, token_kinds
from polypath.language.tokens import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    Windows,
    read_tokenizer,
)
from polypath.training.checkpoint import load_state, save_state

# A tokenizer does not get better by more text than this, only slower to train.
ENOUGH_FOR_MERGES = 1_000_000


@dataclass(frozen=True)
class Text:
    """A corpus in tokens.

    train, valid: (T,) int64. kinds: (T,) int64 for the tokens of `valid`, indices into kind_names.
    """

    name: str
    tokenizer: Tokenizer
    train: Tensor
    valid: Tensor
    kinds: Tensor
    kind_names: list[str]
    context: int

    @classmethod
    def prepare(
        cls, corpus: Corpus, tokenizer: Literal["byte", "bpe"], vocabulary: int, context: int
    ) -> Text:
        """Train the tokenizer and encode; raises InputError where there is too little text."""
        corpus.check_context(context)
        made: Tokenizer = ByteTokenizer()
        if tokenizer == "bpe":
            made = BPETokenizer.train([corpus.train.text[:ENOUGH_FOR_MERGES]], vocabulary)
        train, valid = made.encode(corpus.train.text), made.encode(corpus.valid.text)
        kinds = token_kinds(
            corpus.valid.text, kinds_of(corpus.valid.documents), made.lengths(valid)
        )
        names = sorted(set(kinds))
        places = {name: place for place, name in enumerate(names)}
        indices = torch.tensor([places[kind] for kind in kinds])
        text = cls(str(corpus), made, train, valid, indices, names, context)
        text.windows(), text.validation(1)
        return text

    def save(self, folder: Path) -> None:
        """Keep it in a run's folder."""
        folder.mkdir(exist_ok=True)
        replace_file(folder / "tokenizer.json", self.tokenizer.save)
        tensors = {"train": self.train, "valid": self.valid, "kinds": self.kinds}
        facts = {"name": self.name, "kind_names": self.kind_names, "context": self.context}
        small = {name: tensor.to(torch.int32) for name, tensor in tensors.items()}
        save_state(folder / "tokens.safetensors", small, facts)

    @classmethod
    def read(cls, folder: Path) -> Text:
        """What `save` kept; raises InputError when it is broken."""
        tensors, facts = load_state(folder / "tokens.safetensors")
        return cls(
            name=facts["name"],
            tokenizer=read_tokenizer(folder / "tokenizer.json"),
            train=tensors["train"].long(),
            valid=tensors["valid"].long(),
            kinds=tensors["kinds"].long(),
            kind_names=facts["kind_names"],
            context=facts["context"],
        )

    @staticmethod
    def kept(folder: Path) -> bool:
        """Whether a run's folder has its text already."""
        return (folder / "tokens.safetensors").exists()

    def windows(self) -> Windows:
        """Training windows of `context` tokens and the next."""
        return Windows(self.train, self.context, "the training text")

    def validation(self, limit: int, rank: int = 0, ranks: int = 1) -> Tensor:
        """(N, context + 1) int64: the same windows over the validation text for everyone."""
        return Windows(self.valid, self.context, "the validation text").tiling(limit, rank, ranks)

    def validation_kinds(self, limit: int) -> Tensor:
        """(N, context) int64: the kinds of the input tokens of `validation(limit)`."""
        return Windows(self.kinds, self.context).tiling(limit)[:, :-1]

    def passage(self, start: int, windows: int) -> slice:
        """The places in `valid` of a passage of whole windows that begins near `start`."""
        length = self.context * windows
        begin = max(0, min(start, len(self.valid) - length))
        return slice(begin, begin + min(length, len(self.valid) // self.context * self.context))

    @cached_property
    def lengths(self) -> Tensor:
        """(V,) int64: the bytes of every token of the vocabulary."""
        return self.tokenizer.lengths(torch.arange(self.tokenizer.vocab_size))
