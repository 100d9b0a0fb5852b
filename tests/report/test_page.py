"""What the page is made of, read with Python's own HTML parser."""

import base64
import hashlib
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.report import Claim, Explorer, Layer, Outcome, Passage, Table, render, write_report
from polypath.report.page import page_of
from polypath.report.wording import visible

from .conftest import make_outcome

VOID = {"meta", "link", "input", "path", "circle", "br"}
HOSTILE = [
    "</script><script>window.broken = 1</script>",
    "<img src=x onerror='window.broken = 1'>",
    "<!--",
    "]]>",
    '"',
    "'",
    "&amp;",
    "\u2028\u2029",
    "\x00\x07\r\x1b",
    "\u202eright to left",
    "👩🏽‍🔬",
    "\ud83e",
    "    ",
    "\n",
    "\t",
    "{{ 7 * 7 }}",
]


class Page(HTMLParser):
    """The elements of a page: tag, attributes, text; and whether all that opened was closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.open: list[tuple[str, list[str]]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self.open.append((tag, self.elements[-1][2]))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, texts in self.open:
            texts.append(data)

    def all(self, tag: str, **attributes: str) -> list[tuple[dict[str, str | None], str]]:
        return [
            (attrs, "".join(texts))
            for name, attrs, texts in self.elements
            if name == tag and attributes.items() <= attrs.items()
        ]


def hostile(texts: list[str]) -> Outcome:
    """An outcome that says these texts wherever an outcome says anything."""
    word = texts[0]
    layers = {word: Layer([[0]] * len(texts), [[1.0]] * len(texts), 2)}
    passage = Passage(word, texts, [word] * len(texts), layers)
    return Outcome(
        recipe=word,
        commit=word,
        machine={word: word},
        seeds=[0],
        seconds=1.0,
        tables=[Table(word, [word, word], [[text, text] for text in texts], word)],
        claims=[Claim(word, word, word, 1.0, None, 1, True)],
        figures=[Explorer(word, [passage], word)],
    )


def check(outcome: Outcome, page: Page) -> None:
    assert page.open == []
    passage = outcome.figures[-1].passages[0]
    shown = [text for _, text in page.all("span", role="option")]
    assert shown[: len(passage.tokens)] == [visible(token) for token in passage.tokens]
    assert len(page.all("script")) == 1 + len(page.all("script", type="application/json"))
    assert page.all("h1")[0][1] == visible(outcome.recipe)
    data = [json.loads(text) for _, text in page.all("script", type="application/json")]
    assert data[-1][0]["kinds"] == passage.kinds


def test_hostile_texts_stay_texts() -> None:
    for word in HOSTILE:
        outcome = hostile([word, *HOSTILE])
        check(outcome, Page(page_of(outcome)))


@given(st.lists(st.text(st.characters(exclude_categories=())), min_size=1, max_size=4))
def test_any_text_stays_text(texts: list[str]) -> None:
    outcome = hostile(texts)
    check(outcome, Page(page_of(outcome)))


def test_the_page_holds_everything_that_the_outcome_says(outcome: Outcome) -> None:
    text = page_of(outcome)
    page = Page(text)
    check(outcome, page)
    words = page.all("body")[0][1]
    for claim in outcome.claims:
        assert claim.claim in words
        assert claim.source in words
    for part in (*outcome.tables, *outcome.figures):
        assert part.title in words
        assert part.note in words
    assert all(value in words for value in (outcome.commit, *outcome.machine.values()))


def test_nothing_is_fetched(outcome: Outcome) -> None:
    page = Page(page_of(outcome))
    for name, attributes, texts in page.elements:
        for attribute in ("src", "href", "action", "data", "poster", "srcset"):
            assert (attributes.get(attribute) or "#").startswith(("#", "data:,")), name
        if name == "style":
            assert "url(" not in "".join(texts)
            assert "@import" not in "".join(texts)
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert policy.startswith("default-src 'none';")


def test_the_policy_lets_the_own_script_run_and_no_other(outcome: Outcome) -> None:
    page = Page(page_of(outcome))
    scripts = [text for attributes, text in page.all("script") if "type" not in attributes]
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert f"script-src 'sha256-{digest}'" in policy


def test_headings_labels_and_names_are_in_order(outcome: Outcome) -> None:
    page = Page(page_of(outcome))
    names = [name for name, _, _ in page.elements]
    assert next(name for name in names if name in ("h1", "h2", "h3")) == "h1"
    assert names.count("h1") == names.count("main") == names.count("header") == 1
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for attribute in ("aria-labelledby", "aria-describedby"):
            assert attributes.get(attribute, ids[0]) in ids
    for attributes, text in page.all("section"):
        assert attributes["aria-labelledby"]
        assert text.strip()


@pytest.mark.parametrize("sizes", [(64, 8, 6), (1, 1, 1)])
def test_other_sizes_are_pages_too(sizes: tuple[int, int, int]) -> None:
    outcome = make_outcome(*sizes)
    text = page_of(outcome)
    check(outcome, Page(text))
    assert len(text.encode()) < 6e6


def test_an_empty_outcome_is_a_page(outcome: Outcome) -> None:
    empty = replace(outcome, tables=[], claims=[], figures=[])
    assert "No claims were tested." in page_of(empty)
    bare = replace(outcome, figures=[Explorer("No passages", [])], tables=[Table("t", ["a"], [])])
    assert Page(page_of(bare)).open == []


def test_render_reads_and_writes_a_run_folder(tmp_path: Path, outcome: Outcome) -> None:
    outcome.save(tmp_path / "outcome.json")
    path = render(tmp_path)
    assert path == tmp_path / "report.html"
    write_report(outcome, tmp_path / "direct.html")
    assert path.read_bytes() == (tmp_path / "direct.html").read_bytes()


def test_render_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"outcome\.json: cannot be read"):
        render(tmp_path)
