import ast
import builtins
import tokenize
from collections.abc import Iterator
from tokenize import TokenInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.language.corpus import Corpus, Document, read_corpus
from polypath.language.kinds import (
    PYTHON_KINDS,
    TEXT_KINDS,
    kinds_of,
    python_kinds,
    text_kinds,
    token_kinds,
)
from polypath.language.tokens import BPETokenizer, ByteTokenizer

# One sign for each of PYTHON_KINDS, in their order.
SIGN = dict(zip(PYTHON_KINDS, 'kbn1s"#oi_↵?', strict=True))


def signs(text: str) -> str:
    return "".join(SIGN[kind] for kind in python_kinds(text))


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return read_corpus(limit_bytes=2_000_000)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("x", "n"),
        ("\n\n", "↵↵"),
        ("  \nx\n", "ii↵n↵"),
        ("x = 1\n", "n_o_1↵"),
        ("if not x:  # why\n", "kk_kkk_no__#####↵"),
        ("def f(a):\n\treturn a\n", "kkk_nonoo↵ikkkkkk_n↵"),
        ("print(o.print)\n", "bbbbbononnnnno↵"),
        ("None or len\n", "kkkk_kk_bbb↵"),
        ("x = 'a b'\n", "n_o_sssss↵"),
        ("x = '''a\n  b'''\n", "n_o_sssssssssss↵"),
        ("x = 1.5e-3j + 0xFF\n", "n_o_1111111_o_1111↵"),
        ("a@b ** c -> d\n", "non_oo_n_oo_n↵"),
        ("é = 'ü'; ñandú\n", "n_o_ssso_nnnnn↵"),
        ("x = '☕' + y\n", "n_o_sss_o_n↵"),
        ("a\\\n  +b\n", "no↵iion↵"),
        ("(a,\n b)\n", "ono↵ino↵"),
        # docstrings: strings that are statements
        ("'''doc\n'''\nx\n", '""""""""""↵n↵'),
        ('r"a"  # why\n', '""""__#####↵'),
        ('"a" "b"\n', '"""_"""↵'),
        ('g("a")\n', "nossso↵"),
        # f-strings are one string, before and since 3.12
        ("z = f'{x}' 'b'\n", "n_o_ssssss_sss↵"),
        ("z = f'{x!r:>{w}}'\n", "n_o_sssssssssssss↵"),
        ("z = rf'''{x}\n{{}}'''\n", "n_o_" + "s" * 16 + "↵"),
        # ends of lines, form feeds
        ("a\r\nb\r\n", "n↵↵n↵↵"),
        ("a\rb", "n↵n"),
        ("if a:\r\n  '''d\r\n'''\r\n", 'kk_no↵↵ii"""""""""↵↵'),
        ("\fx\n", "in↵"),
        ("x\f= 1\n", "n_o_1↵"),
        # what does not tokenize, and what follows it
        ("a = $ b\nif c:\n", "n_o_?_n↵kk_no↵"),
        ("a = 'b\nif c:\n", "n_o_ss↵kk_no↵"),
        ("a = '''b\nif c:\n", "n_o_sssssssssss"),
        ("f(a, # b\n", "nono_###↵"),
        ("x = )\nif c:\n", "n_o_o↵kk_no↵"),
        ("        a\n    if b:\n  c\n", "iiiiiiiin↵iiiikk_no↵iin↵"),
        ("a\0b\nif c:\n", "n?n↵kk_no↵"),
        ("x = ? # '''\ny.len 0x1f 'a' f\"b\"\n", "n_o_?_#####↵nonnn_1111_sss_ssss↵"),
    ],
)
def test_known_snippets(text: str, expected: str) -> None:
    assert signs(text) == expected


def test_f_strings_as_python_312_tokenizes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "z = f'a{x:{f\"{w}\"}}' + 1\n"
    started, middle, ended = 61, 62, 63
    tokens = [
        (tokenize.NAME, "z", 0),
        (tokenize.OP, "=", 2),
        (started, "f'", 4),
        (middle, "a", 6),
        (tokenize.OP, "{", 7),
        (tokenize.NAME, "x", 8),
        (tokenize.OP, ":", 9),
        (tokenize.OP, "{", 10),
        (started, 'f"', 11),
        (tokenize.OP, "{", 13),
        (tokenize.NAME, "w", 14),
        (tokenize.OP, "}", 15),
        (ended, '"', 16),
        (tokenize.OP, "}", 17),
        (tokenize.OP, "}", 18),
        (ended, "'", 19),
        (tokenize.OP, "+", 21),
        (tokenize.NUMBER, "1", 23),
        (tokenize.NEWLINE, "\n", 24),
    ]

    def generate(readline: object) -> Iterator[TokenInfo]:
        for kind, string, start in tokens:
            yield TokenInfo(kind, string, (1, start), (1, start + len(string)), line)

    names = {started: "FSTRING_START", middle: "FSTRING_MIDDLE", ended: "FSTRING_END"}
    monkeypatch.setattr(tokenize, "tok_name", tokenize.tok_name | names)
    monkeypatch.setattr(tokenize, "generate_tokens", generate)
    assert signs(line) == "n_o_ssssssssssssssss_o_1↵"


PIECES = ["'", '"', "'''", '"""', "f'", "{", "}", "(", ")", "\\", "\n", "\r\n", "\t", "  ", "\f"]
PIECES += ["if", "x", "é", "☕", "1", "0x", "#", "def f():", "\0", "$", "\u2028", "\x85", ":", "\r"]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
def test_every_character_of_anything_has_one_kind(text: str) -> None:
    kinds = python_kinds(text)
    assert len(kinds) == len(text) and set(kinds) <= set(PYTHON_KINDS)
    for letter, kind in zip(text, kinds, strict=True):
        if letter.isalnum():
            assert kind not in ("space", "indent", "newline", "operator")
        if letter.isspace():
            assert kind in ("space", "indent", "newline", "string", "docstring", "comment")


@given(st.lists(st.sampled_from([p for p in PIECES if "\r" not in p]), max_size=40).map("".join))
def test_ends_of_lines_of_windows_change_nothing(text: str) -> None:
    windows = text.replace("\n", "\r\n")
    kinds = python_kinds(windows)
    assert [k for k, c in zip(kinds, windows, strict=True) if c != "\r"] == python_kinds(text)


def spans(text: str) -> tuple[list[ast.stmt], dict[str, list[tuple[int, int]]]]:
    """From the syntax tree: its statements, and where docstrings, strings and names are."""
    tree = ast.parse(text)
    starts = [0]
    for line in text.split("\n"):
        starts.append(starts[-1] + len(line) + 1)
    lines = text.split("\n")

    def place(row: int, column: int) -> int:
        return starts[row - 1] + len(lines[row - 1].encode()[:column].decode())

    found: dict[str, list[tuple[int, int]]] = {"docstring": [], "string": [], "name": []}
    formatted = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in ast.walk(node)
    }
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in formatted:
            continue
        if isinstance(node, ast.Name):
            kind = "name"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str | bytes):
            kind = "docstring" if id(node) in alone else "string"
        else:
            continue
        span = place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        found[kind].append(span)
    return [node for node in ast.walk(tree) if isinstance(node, ast.stmt)], found


def test_kinds_agree_with_the_syntax_tree(corpus: Corpus) -> None:
    for document in corpus.train.documents[:20]:
        kinds = python_kinds(document.text)
        assert "other" not in kinds
        _, found = spans(document.text)
        inside = {"indent", "space", "newline", "comment", "operator"}  # of joined strings
        for start, end in found["docstring"]:
            assert {"docstring"} <= set(kinds[start:end]) <= {"docstring", *inside}
        for start, end in found["string"]:
            assert {"string"} <= set(kinds[start:end]) <= {"string", *inside}
        for start, end in found["name"]:
            builtin = hasattr(builtins, document.text[start:end])
            assert set(kinds[start:end]) == {"builtin" if builtin else "name"}
        strings = sum(end - start for start, end in found["docstring"])
        assert kinds.count("docstring") <= strings


def test_a_passage_has_the_kinds_that_it_has_in_its_document(corpus: Corpus) -> None:
    for document in corpus.valid.documents[:3]:
        text = document.text
        whole = python_kinds(text)
        statements, _ = spans(text)
        ends = [place + 1 for place, kind in enumerate(whole) if kind == "newline"]
        starts = [0, *(place + 1 for place, letter in enumerate(text) if letter == "\n")]
        for cut in ends[:: len(ends) // 10]:
            assert python_kinds(text[:cut]) == whole[:cut]
        for statement in statements[:: len(statements) // 10]:
            cut = starts[statement.lineno - 1]
            assert python_kinds(text[cut:]) == whole[cut:]


def test_plain_text() -> None:
    text = "Ann's 3,5 oaks\tat Änd—x2 中文 7.\r\n"
    short = {"capitalised": "C", "lowercase": "l", "number": "1", "punctuation": "p"}
    short |= {"space": "_", "newline": "↵"}
    assert "".join(short[kind] for kind in text_kinds(text)) == ("CCCpl_111_llll_ll_CCCpll_ll_1p↵↵")


@given(st.text())
def test_every_character_of_plain_text_has_one_kind(text: str) -> None:
    kinds = text_kinds(text)
    assert len(kinds) == len(text) and set(kinds) <= set(TEXT_KINDS)
    assert all(
        (kind in ("space", "newline")) == letter.isspace()
        for letter, kind in zip(text, kinds, strict=True)
    )


def test_documents_are_joined_by_what_they_are() -> None:
    documents = [Document("a.py", "if x:\n"), Document("b.txt", "if It\n")]
    assert kinds_of(documents) == python_kinds("if x:\n") + text_kinds("if It\n")


@given(st.text(max_size=60))
def test_byte_tokens_have_their_characters_kind(text: str) -> None:
    kinds = text_kinds(text)
    tokenizer = ByteTokenizer()
    found = token_kinds(text, kinds, tokenizer.lengths(tokenizer.encode(text)))
    expected = [k for k, c in zip(kinds, text, strict=True) for _ in c.encode()]
    assert found == expected


def test_long_tokens_have_the_kind_of_their_first_letter(corpus: Corpus) -> None:
    document = corpus.train.documents[0]
    bpe = BPETokenizer.train([document.text], 500)
    kinds = python_kinds(document.text)
    ids = bpe.encode(document.text)
    found = token_kinds(document.text, kinds, bpe.lengths(ids))
    assert document.text.isascii() and len(found) == len(ids)
    start = 0
    for shown, kind in zip(bpe.texts(ids), found, strict=True):
        letter = start + len(shown) - len(shown.lstrip() or shown)
        assert kind == kinds[letter]
        start += len(shown)
