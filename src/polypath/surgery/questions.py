"""Questions and answers in files: one JSON object a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

from polypath.errors import InputError

NAMES = (("question", "answer"), ("prompt", "answer"), ("prompt", "completion"))
"""What the two are called, in the order in which names are tried."""


class Question(NamedTuple):
    """A text that is asked, and the text that is right."""

    prompt: str
    answer: str


def read_questions(path: Path, limit: int | None = None) -> list[Question]:
    """The questions of a file, `limit` at most; empty lines are skipped.

    Raises InputError for a line that is no question, with its number, and a file without any.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    found: list[Question] = []
    for number, line in enumerate(lines, 1):
        if limit is not None and len(found) == limit:
            break
        if line.strip():
            found.append(_question(line, f"{path}, line {number}"))
    if not found:
        raise InputError(f"{path} has no questions; one JSON object a line is right")
    return found


def _question(line: str, where: str) -> Question:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    for names in NAMES:
        if isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names):
            question = Question(*(value[name] for name in names))
            if not all(text.strip() for text in question):
                raise InputError(f"{where}: an empty {names[0]} or {names[1]}")
            return question
    raise InputError(f"{where}: no texts `question` and `answer` (or `prompt` and `completion`)")
