"""From books to questions: domain tree, learning nodes, agents that ask, solve and check, records.

"Distillation" is data made by a teacher's pipeline here, not matching of logits.
Source: granular domain knowledge distillation of AnalogSeeker, arXiv 2508.10409; what the agents
are told and how much they reject is not published.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from polypath.errors import InputError
from polypath.files import replace_text
from polypath.plain import decode, encode

SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}

_LEFT_OUT = re.compile(
    r"([\d.]+\s+)?(preface|foreword|acknowledge?ments?|dedication|copyright|about the authors?"
    r"|(table of )?contents|list of (figures|tables)|exercises?|problems?|review questions"
    r"|references|bibliography|further reading|index)",
    re.IGNORECASE,
)
_HASHES = re.compile(r"(#{1,6})\s+(.*?)[\s#]*$")
_CHAPTER = re.compile(r"(?:chapter|part)\s+\w+\b[.:]?\s*\S.*$", re.IGNORECASE)
_NUMBERED = re.compile(r"(\d+(?:\.\d+)+)\.?\s+[A-Z]\S*(?: \S+){0,9}(?<![.,:;?!])$")
_RULE = re.compile(r"([=\-*~^+])\1{2,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~)")
_FIGURE = re.compile(r"(!\[[^\]]*\]\([^)]*\)\s*)+$|(figure|fig\.)\s*[\d.]*\d[.:]\s", re.IGNORECASE)
_SYMBOLS = str.maketrans(
    {"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "\u00a0": " ", "\u00ad": "", "\u2126": "Ω", "µ": "μ"}
    | {"“": '"', "”": '"', "‘": "'", "’": "'", "–": "-", "−": "-", "\r": ""}
)


@dataclass(frozen=True)
class Book:
    """A text of a subfield, Markdown or plain; its headings make chapters and sections."""

    subfield: str
    title: str
    text: str


@dataclass(frozen=True)
class Section:
    """The text under one heading. path: its place in the domain tree, titles from the subfield."""

    path: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class LearningNode:
    """The smallest self-contained unit of teaching, and where in the domain tree it is."""

    id: str
    path: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Record:
    """A question, the reasoning and solution, the answer alone, and the id of its node."""

    question: str
    thinking: str
    solution: str
    answer: str
    node: str


class Solved(NamedTuple):
    """What a solver writes."""

    thinking: str
    solution: str
    answer: str


Questioner = Callable[[LearningNode], Iterable[str]]
Solver = Callable[[LearningNode, str], Solved]
Checker = Callable[[LearningNode, Record], Record | str]
"""Verifies a record against its node: gives it back, refined perhaps, or the reason why not."""


class Distilled(NamedTuple):
    """The records that were kept, and how many were rejected, by reason."""

    records: list[Record]
    rejected: dict[str, int]


def clean(text: str) -> str:
    """One spelling for signs, without YAML front matter and paragraphs that are figures alone."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text.translate(_SYMBOLS), flags=re.DOTALL)
    return "\n\n".join(p for p in re.split(r"\n[ \t]*\n", text) if not _FIGURE.match(p.strip()))


def domain_tree(books: Iterable[Book]) -> list[Section]:
    """Subfields, books, chapters, sections and so on down, as the paths of their texts, in order.

    Headings: Markdown's #, underlines (a new sign is a new level), "Chapter 3 …" and "3.2 …" alone
    on a line. What is under a preface, exercises or the like is left out; so are empty sections.
    """
    found = []
    for book in books:
        above: list[tuple[int, str]] = []
        for level, title, text in _parts(clean(book.text).split("\n")):
            above = [(depth, name) for depth, name in above if depth < level]
            above += [(level, title)] if level else []
            path = (book.subfield, book.title, *(name for _, name in above))
            if text.strip() and not any(map(_LEFT_OUT.fullmatch, path[2:])):
                found.append(Section(path, text))
    return found


def _parts(lines: Sequence[str]) -> Iterator[tuple[int, str, str]]:
    """Level, title and text of what each heading begins; first what is before all, of level 0."""
    level, title, own = 0, "", list[str]()
    rules: list[str] = []
    fenced = False
    for i, line in enumerate(lines):
        before, after = lines[i - 1] if i else "", lines[i + 1] if i + 1 < len(lines) else ""
        fenced ^= _FENCE.match(line) is not None
        found = None if fenced else _heading(line, before, after, rules)
        if found is not None:
            yield level, title, "\n".join(own).strip("\n")
            level, title, own = *found, []
        elif own or not (_RULE.match(line) and title == before.strip()):
            own.append(line)
    yield level, title, "\n".join(own).strip("\n")


def _heading(line: str, before: str, after: str, rules: list[str]) -> tuple[int, str] | None:
    """Level and title of a line that is one. rules: signs of underlines so far, by level."""
    title = line.strip()
    if hashes := _HASHES.match(line):
        return len(hashes[1]), hashes[2]
    rule = _RULE.match(after)
    long = rule and (rule[1] in "=-" or len(after.rstrip()) >= len(title))
    if rule and long and title and not line[0].isspace():
        if rule[1] not in rules:
            rules.append(rule[1])
        return rules.index(rule[1]) + 1, title
    if before.strip() or after.strip():
        return None
    if _CHAPTER.match(line):
        return 1, title
    numbered = _NUMBERED.match(line)
    return (1 + numbered[1].count("."), title) if numbered else None


def learning_nodes(sections: Iterable[Section], words: int = 40) -> list[LearningNode]:
    """Sections in nodes of whole paragraphs, of `words` or more where a section has as many.

    What is indented, or follows a colon, stays with what it belongs to. A text that comes again is
    one node, the first.
    """
    counts: Counter[str] = Counter()
    nodes = dict[str, LearningNode]()
    for section in sections:
        place = "/".join(re.sub(r"[\W_]+", "-", t.lower()).strip("-") for t in section.path)
        for unit in _units(section.text, words):
            counts[place] += 1
            node = LearningNode(f"{place}#{counts[place]}", section.path, unit)
            nodes.setdefault(_same(unit), node)
    return list(nodes.values())


def _units(text: str, words: int) -> list[str]:
    units: list[str] = []
    for paragraph in filter(str.strip, re.split(r"\n[ \t]*\n", text)):
        last = units[-1] if units else ""
        tied = last.endswith(":") or paragraph[0] in " \t"
        if units and (tied or len(last.split()) < words):
            units[-1] += "\n\n" + paragraph.rstrip()
        else:
            units.append(paragraph.rstrip())
    if len(units) > 1 and len(units[-1].split()) < words:
        units[-2:] = ["\n\n".join(units[-2:])]
    return units


@dataclass(frozen=True)
class KnowledgeDistiller:
    """Learning nodes to records, by agents: any callables, a language model behind them or not.

    per_node: questions of a node at most; the paper's 15.3 thousand records are 5.7 a node.
    """

    questioner: Questioner
    solver: Solver
    checker: Checker
    per_node: int = 6

    def __post_init__(self) -> None:
        if self.per_node < 1:
            raise InputError(f"KnowledgeDistiller: per_node={self.per_node}; at least 1 is needed")

    def __call__(self, nodes: Iterable[LearningNode]) -> Distilled:
        """The records of nodes; a question that another node has had too is rejected."""
        records, rejected = dict[str, Record](), Counter[str]()
        for node in nodes:
            for question in list(self.questioner(node))[: self.per_node]:
                found = self._record(node, question, records)
                if isinstance(found, Record):
                    records[_same(found.question)] = replace(found, node=node.id)
                else:
                    rejected[found] += 1
        return Distilled(list(records.values()), dict(rejected))

    def _record(
        self, node: LearningNode, question: str, known: Mapping[str, Record]
    ) -> Record | str:
        if _same(question) in known:
            return "repeated question"
        found = self.checker(node, Record(question, *self.solver(node, question), node.id))
        if isinstance(found, str):
            return found
        if not found.question.strip() or not found.answer.strip():
            return "no question or no answer"
        return "repeated question" if _same(found.question) in known else found


def _same(text: str) -> str:
    """What texts have in common that differ in capitals and white space alone."""
    return " ".join(text.lower().split())


def split_by_node(
    records: Sequence[Record],
    shares: Mapping[str, float] = SHARES,
    seed: int = 0,
    by: Literal["node", "book"] = "node",
) -> dict[str, list[Record]]:
    """Records in splits that share no node, or no book; by record they would leak.

    shares: of nodes or books, not of records. Which fall where depends on ids and seed alone.
    Raises InputError where shares are negative or do not add up to 1.
    """
    if min(shares.values()) < 0 or not math.isclose(sum(shares.values()), 1):
        raise InputError(f"split_by_node: shares {dict(shares)}; they have to add up to 1")

    def group(record: Record) -> str:
        return record.node if by == "node" else "/".join(record.node.split("/")[:2])

    def drawn(name: str) -> bytes:
        return hashlib.sha256(f"{seed} {name}".encode()).digest()

    groups = sorted({group(r) for r in records}, key=drawn)
    place = {name: (i + 0.5) / len(groups) for i, name in enumerate(groups)}
    splits, low = dict[str, list[Record]](), 0.0
    for name, share in shares.items():
        high = low + share
        splits[name] = [r for r in records if low <= place[group(r)] < high]
        low = high
    return splits


def shared_nodes(splits: Mapping[str, Iterable[Record]]) -> set[str]:
    """Nodes that are in more than one split; a leak."""
    seen = Counter(node for own in splits.values() for node in {r.node for r in own})
    return {node for node, count in seen.items() if count > 1}


def write_records(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines."""
    lines = (json.dumps(encode(r), ensure_ascii=False) + "\n" for r in records)
    replace_text(Path(path), "".join(lines))


def read_records(path: str | Path) -> list[Record]:
    """Read what `write_records` wrote; InputError names every bad line by its number."""
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    records, bad = [], []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                records.append(decode(Record, json.loads(line), f"line {number}"))
            except InputError as error:
                bad.append(str(error))
            except ValueError as error:
                bad.append(f"line {number}: not JSON: {error}")
    if bad:
        raise InputError(f"{path}: {'; '.join(bad)}")
    return records


# Agents of templates: a stand-in, offline, for the language models that the paper uses. What they
# ask is shallow, and no measure of what models would.

_GAP = "Which word is missing? "
_IS = re.compile(r"((?:An?|The) [a-z][\w -]{2,40}?) is ((?:an?|the) .{10,}?)\.")


def _sentences(node: LearningNode) -> list[str]:
    return re.split(r"(?<=[.!?])\s+(?=[A-Z])", " ".join(node.text.split()))


def template_questions(node: LearningNode) -> list[str]:
    """A questioner without a language model, a stand-in: definitions, a sum, gaps in sentences."""
    sentences = _sentences(node)
    asked = [f"What is {said[1].lower()}?" for said in map(_IS.fullmatch, sentences) if said]
    numbers = list(dict.fromkeys(re.findall(r"(?<![\w.])\d{1,4}(?![\w.])", node.text)))[:2]
    asked += [f"What is {' + '.join(numbers)}?"] if len(numbers) == 2 else []
    for sentence in sentences:
        words = re.findall(r"\b[a-z]{6,}\b", sentence)
        if words and 8 <= len(sentence.split()) <= 40:
            asked.append(_GAP + re.sub(rf"\b{max(words, key=len)}\b", "____", sentence, count=1))
    return asked


def template_solution(node: LearningNode, question: str) -> Solved:
    """A solver without a language model, a stand-in: it looks the sentence up, or adds up."""
    if found := re.fullmatch(r"What is (\d+) \+ (\d+)\?", question):
        total = int(found[1]) + int(found[2])
        return Solved("The text names both numbers; they are added.", f"It is {total}.", f"{total}")
    if question.startswith(_GAP):
        pattern = re.escape(question.removeprefix(_GAP)).replace("____", r"(\w+)")
    else:
        term = question.removeprefix("What is ").removesuffix("?")
        pattern = rf"(?i:\b{re.escape(term)}) is (.+?)\."
    said = re.search(pattern, " ".join(_sentences(node)))
    return Solved(f'The text says: "{said[0]}"', said[0], said[1]) if said else Solved("", "", "")


def template_check(node: LearningNode, record: Record) -> Record | str:
    """A checker without a language model, a stand-in: answers are hidden, short, and in the text.

    It refines one to its first clause.
    """
    if not re.fullmatch(r"What is \d+ \+ \d+\?", record.question):
        if record.answer not in " ".join(_sentences(node)):
            return "answer not in the text"
        if record.answer.lower() in record.question.lower():
            return "answer given away"
    short = re.split(r"[;:(]", record.answer)[0].strip()
    return "answer too long" if len(short.split()) > 20 else replace(record, answer=short)
