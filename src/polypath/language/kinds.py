"""What kind of thing each character of a text is, so that one can see what an expert is for.

Kinds of Python source come from the `tokenize` module; other text has simple ones.
"""

from __future__ import annotations

import builtins
import keyword
import re
import tokenize
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice

from torch import Tensor

from polypath.language.corpus import Document

PYTHON_KINDS = (
    "keyword",
    "builtin",
    "name",
    "number",
    "string",
    "docstring",
    "comment",
    "operator",
    "indent",
    "space",
    "newline",
    "other",
)
TEXT_KINDS = ("capitalised", "lowercase", "number", "punctuation", "space", "newline")

_BUILTINS = frozenset(dir(builtins))
_KINDS = {
    tokenize.STRING: "string",
    tokenize.NUMBER: "number",
    tokenize.COMMENT: "comment",
    tokenize.OP: "operator",
}

# The last is how 3.12 and 3.13 fail on some text that is no source, with a NUL for example.
_REFUSALS = (tokenize.TokenError, SyntaxError, SystemError)

# For what `tokenize` refuses: a string may run to the end of the text, all else is one line.
_LEXEMES = re.compile(
    r"""(?P<string>(?i:[rbuft]{0,2})(?:
            '{3}(?:\\.|[^\\])*?(?:'{3}|\Z) | "{3}(?:\\.|[^\\])*?(?:"{3}|\Z)
            | '(?:\\.|[^\\'\n])*'? | "(?:\\.|[^\\"\n])*"? ))
      | (?P<comment>\#[^\n]*)
      | (?P<number>\.?\d[\w.]*)
      | (?P<name>\w+)
      | (?P<operator>[-+*/%@&|^~<>=!()\[\]{},:.;\\])""",
    re.VERBOSE | re.DOTALL,
)

_WORDS = re.compile(r"(?P<number>\d+(?:[.,]\d+)*)|(?P<word>[^\W\d_]\w*)")


def kinds_of(documents: Iterable[Document]) -> list[str]:
    """The kind of each character of the documents' joined text: Python's for .py, else text's."""
    kinds: list[str] = []
    for document in documents:
        kinds += (python_kinds if document.is_python else text_kinds)(document.text)
    return kinds


def python_kinds(text: str) -> list[str]:
    """The kind of each character of Python source, from PYTHON_KINDS.

    A docstring is any string that is a statement of its own; an f-string is one string, whatever
    is in it, as it was before Python 3.12. What does not tokenize is read line by line by rule of
    thumb. Give whole documents: a text that starts inside a string is read as code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # the text is read, not run
        kinds = _Source(re.sub("\r\n?", "\n", text)).kinds
    spread, place = [], 0
    for letter, following in zip(text, text[1:] + " ", strict=False):
        spread.append(kinds[place])
        place += (letter, following) != ("\r", "\n")  # one end of line
    return spread


def text_kinds(text: str) -> list[str]:
    """The kind of each character of a text that is no source, from TEXT_KINDS."""
    kinds = [
        "newline" if letter in "\r\n" else "space" if letter.isspace() else "punctuation"
        for letter in text
    ]
    for match in _WORDS.finditer(text):
        kind = "number"
        if match.lastgroup == "word":
            kind = "capitalised" if match.group()[0].isupper() else "lowercase"
        start, end = match.span()
        kinds[start:end] = [kind] * (end - start)
    return kinds


def token_kinds(text: str, kinds: Sequence[str], lengths: Tensor) -> list[str]:
    """The kind of each model token: that of its first character that is no white space, if any.

    kinds: one for each character of `text`.
    lengths: (T,) int64, how many bytes of the text's UTF-8 each token stands for, in order from
        the start of the text. A token that starts inside a character is of that character's kind.
    """
    characters = [place for place, letter in enumerate(text) for _ in range(len(letter.encode()))]
    result, start = [], 0
    for end in accumulate(lengths.tolist()):
        places = characters[start:end]
        first = next((place for place in places if not text[place].isspace()), places[0])
        result.append(kinds[first])
        start = end
    return result


class _Source:
    """Python source whose characters get their kinds, line by line where it does not tokenize."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.lines = [line + "\n" for line in text.split("\n")]
        self.starts = list(accumulate(map(len, self.lines), initial=0))
        self.kinds = _white_space(text)
        row = 0
        while row < len(self.lines):
            stopped = self.tokenize(row)
            row = len(self.lines) if stopped is None else self.guess(stopped)

    def tokenize(self, row: int) -> int | None:
        """Paint from a row on; the place where `tokenize` refused, or None where it did not."""

        def place(position: tuple[int, int]) -> int:
            line = min(row + position[0] - 1, len(self.lines))
            return min(self.starts[line] + position[1], len(self.text))

        statement: list[tuple[int, int, str]] = []
        end = self.starts[row]
        try:
            for kind, low, high in _lexemes(islice(self.lines, row, None)):
                if kind == "end":
                    self.paint(_with_docstring(statement))
                    statement = []
                else:
                    statement.append((place(low), place(high), kind))
                end = place(high)
        except _REFUSALS:
            self.paint(statement)
            return end
        self.paint(statement)
        return None

    def guess(self, place: int) -> int:
        """Paint the rest of the line at a place, or more where a string runs on; the next row."""
        stop = self.line_end(place)
        while place < stop:
            match = _LEXEMES.match(self.text, place)
            if match is None:
                place += 1
                continue
            kind = match.lastgroup or ""
            if kind == "name":
                kind = _name_kind(match.group(), self.text[place - 1 : place] == ".")
            self.paint([(*match.span(), kind)])
            place = match.end()
            stop = max(stop, self.line_end(place))
        return bisect_right(self.starts, stop)

    def line_end(self, place: int) -> int:
        return self.starts[bisect_right(self.starts, place)] - 1

    def paint(self, ranges: Iterable[tuple[int, int, str]]) -> None:
        for start, end, kind in ranges:
            self.kinds[start:end] = [kind] * (end - start)


def _white_space(text: str) -> list[str]:
    """The kinds of white space; everything else is "other" until it is known better."""
    kinds, leading = [], True
    for letter in text:
        leading = letter == "\n" or (leading and letter.isspace())
        if letter == "\n":
            kinds.append("newline")
        elif letter.isspace():
            kinds.append("indent" if leading else "space")
        else:
            kinds.append("operator" if letter == "\\" else "other")
    return kinds


def _lexemes(lines: Iterator[str]) -> Iterator[tuple[str, tuple[int, int], tuple[int, int]]]:
    """Kind, first and last position of what `tokenize` finds; "end" closes a statement."""
    depth, opened, dotted = 0, (1, 0), False
    for token in tokenize.generate_tokens(lines.__next__):
        name = tokenize.tok_name[token.type]
        if name.endswith("STRING_START"):  # of f-strings since 3.12 and t-strings; they nest
            opened = opened if depth else token.start
            depth += 1
        elif name.endswith("STRING_END"):
            depth -= 1
            if not depth:
                yield "string", opened, token.end
        elif depth:
            continue
        elif _is_error(token, name):
            raise tokenize.TokenError
        elif token.type == tokenize.NEWLINE:
            yield "end", token.start, token.start
        elif token.type == tokenize.NAME:
            yield _name_kind(token.string, dotted), token.start, token.end
        elif token.type in _KINDS:
            yield _KINDS[token.type], token.start, token.end
        dotted = token.string == "."


def _is_error(token: tokenize.TokenInfo, name: str) -> bool:
    """Whether the token is none of Python's; versions differ in what they call such a thing."""
    if name == "OP":
        return token.string not in tokenize.EXACT_TOKEN_TYPES
    if name == "NAME":
        return not token.string.isidentifier()
    return name == "ERRORTOKEN" and not token.string.isspace()


def _name_kind(name: str, dotted: bool) -> str:
    if keyword.iskeyword(name):
        return "keyword"
    return "builtin" if name in _BUILTINS and not dotted else "name"


def _with_docstring(statement: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """The same statement; its strings are docstrings where it has nothing else but comments."""
    if {kind for _, _, kind in statement} - {"comment"} != {"string"}:
        return statement
    return [(a, b, "docstring" if kind == "string" else kind) for a, b, kind in statement]
