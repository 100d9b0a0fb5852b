"""Requests as a server sees them: when they come, and which expert each of their tokens needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from polypath.errors import InputError

Route = Callable[[Tensor], Tensor]
"""Token ids (T,) int64 of one text to the expert of each token, (T,) int64.

Causal: a token's expert depends on the token and on those before it.
"""


@dataclass(frozen=True)
class Request:
    """A text to serve: a prompt that is there at once, and tokens that come one after another.

    arrival: seconds. prompt, generated: the expert of each token, the same in all layers.
    source: where it is from. Raises InputError without a prompt.
    """

    arrival: float
    prompt: tuple[int, ...]
    generated: tuple[int, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not self.prompt:
            raise InputError("Request: a prompt without tokens; it needs one at least")

    def __len__(self) -> int:
        return len(self.prompt) + len(self.generated)


def poisson_trace(
    documents: Mapping[str, Sequence[Tensor]],
    route: Route,
    requests: int,
    tokens_per_second: float,
    prompt: int,
    generated: int,
    seed: int = 0,
) -> list[Request]:
    """Requests made of passages of documents, arriving as a Poisson process, in order.

    documents: token ids (T,) int64 of each, by source; sources are equally likely, the documents
        of one by their length. What a passage generates is how its document goes on.
    tokens_per_second: the load that is offered, prompts and generated tokens together; infinity
        has all requests there at the start. The same seed gives the same requests at any load.
    prompt, generated: mean numbers of tokens; they vary geometrically, and passages end with their
        documents at the latest.
    Raises InputError for numbers that are not positive, for documents of fewer than two tokens, and
    for a route that does not give the expert of each token.
    """
    if requests < 1 or prompt < 1 or generated < 1 or not tokens_per_second > 0:
        raise InputError(
            f"poisson_trace: requests={requests}, prompt={prompt}, generated={generated}, "
            f"tokens_per_second={tokens_per_second}; all have to be positive"
        )
    random = np.random.default_rng(seed)
    shares = _shares(documents)
    sources = list(shares)
    passages = []
    for _ in range(requests):
        source = sources[random.integers(len(sources))]
        text = documents[source][random.choice(len(shares[source]), p=shares[source])]
        sizes = random.geometric(1 / prompt), random.geometric(1 / generated)
        passages.append((source, *_passage(text, *sizes, random)))
    total = sum(len(ids) for _, ids, _ in passages)
    arrivals = random.exponential(total / requests, requests).cumsum() / tokens_per_second
    made = []
    for arrival, (source, ids, cut) in zip(arrivals.tolist(), passages, strict=True):
        experts = _experts(route, ids)
        made.append(Request(arrival, experts[:cut], experts[cut:], source))
    return made


def _shares(documents: Mapping[str, Sequence[Tensor]]) -> dict[str, np.ndarray]:
    """What part of each source's tokens every document of it has."""
    if not documents:
        raise InputError("poisson_trace: no documents; one source of them at least is needed")
    shares = {}
    for source, texts in documents.items():
        lengths = np.array([len(text) for text in texts])
        if not len(lengths) or lengths.min() < 2:
            found = "a document of fewer than two tokens" if len(lengths) else "no documents"
            raise InputError(
                f"poisson_trace: {source!r} has {found}; a prompt and a token after it are needed"
            )
        shares[source] = lengths / lengths.sum()
    return shares


def _passage(
    text: Tensor, prompt: int, generated: int, random: np.random.Generator
) -> tuple[Tensor, int]:
    """A passage somewhere in a text, and how many of its tokens are the prompt."""
    length = min(prompt + generated, len(text))
    start = int(random.integers(len(text) - length + 1))
    return text[start : start + length], min(prompt, length - 1)


def _experts(route: Route, ids: Tensor) -> tuple[int, ...]:
    with torch.no_grad():
        experts = route(ids)
    if experts.shape != ids.shape or experts.is_floating_point() or bool((experts < 0).any()):
        raise InputError(
            f"a route gave {tuple(experts.shape)} {experts.dtype} for {len(ids)} tokens; "
            "the expert of each is needed, (T,) int64 from 0"
        )
    return tuple(experts.tolist())
