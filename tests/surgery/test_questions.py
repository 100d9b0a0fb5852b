import json
from pathlib import Path

import pytest

from polypath.errors import InputError
from polypath.surgery.questions import Question, read_questions


def test_questions_under_each_of_their_names(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    lines = [
        {"question": "a?", "answer": "b", "more": 1},
        {"prompt": "c?", "answer": "d"},
        {"prompt": "e?", "completion": "f"},
    ]
    path.write_text("\n\n".join(map(json.dumps, lines)))
    assert read_questions(path) == [Question("a?", "b"), Question("c?", "d"), Question("e?", "f")]
    assert read_questions(path, 1) == [Question("a?", "b")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no questions"),
        ("[1]\n", "line 1: no texts"),
        ('{"question": "a", "answer": "b"}\n{', "line 2: not JSON"),
        ('\n{"question": "a", "answer": 3}', "line 2: no texts"),
        ('{"question": " ", "answer": "b"}', "an empty question or answer"),
    ],
)
def test_lines_that_are_no_questions_are_told(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_questions(tmp_path / "other.jsonl")
