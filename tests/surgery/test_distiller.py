"""From books to records: trees by hand, agents that are plain functions, splits, bad files."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypath.errors import InputError
from polypath.surgery.distiller import (
    Book,
    KnowledgeDistiller,
    LearningNode,
    Record,
    Solved,
    clean,
    domain_tree,
    learning_nodes,
    read_records,
    shared_nodes,
    split_by_node,
    template_check,
    template_questions,
    template_solution,
    write_records,
)

MARKDOWN = """---
title: Amplifiers
---
# Preface

Thanks to all.

## Whom it is for

For you.

# 1. Stages

Of one transistor.

## Common source

It inverts.

```
# no heading, but a comment
```

### Exercises

1. What does it do?

## Common drain #

It follows.

# References

[1] A book.
"""

PLAIN = """Before all.

Chapter 2. Feedback

It is taken back.

2.1 Loop gain

The product of all.

Stability
*********

Margins
=======

Phase and gain.

3 volts are enough.
"""


def paths(text: str) -> dict[tuple[str, ...], str]:
    return {s.path[2:]: s.text for s in domain_tree([Book("analog", "A book", text)])}


def test_markdown_makes_a_tree_without_front_matter_and_exercises() -> None:
    found = paths(MARKDOWN)
    assert found == {
        ("1. Stages",): "Of one transistor.",
        ("1. Stages", "Common source"): "It inverts.\n\n```\n# no heading, but a comment\n```",
        ("1. Stages", "Common drain"): "It follows.",
    }


def test_plain_text_makes_a_tree_too() -> None:
    found = paths(PLAIN)
    assert found == {
        (): "Before all.",
        ("Chapter 2. Feedback",): "It is taken back.",
        ("Chapter 2. Feedback", "2.1 Loop gain"): "The product of all.",
        ("Stability", "Margins"): "Phase and gain.\n\n3 volts are enough.",
    }


def test_books_stand_under_their_subfields() -> None:
    books = [Book("analog", "A", "# x\n\na"), Book("digital", "B", "b"), Book("analog", "C", "c")]
    found = [section.path for section in domain_tree(books)]
    assert found == [("analog", "A", "x"), ("digital", "B"), ("analog", "C")]


def test_underlines_are_not_text() -> None:
    assert paths("Gain\n====\n\nOutput over input.\n\nLoss\n----\nIts inverse.\n") == {
        ("Gain",): "Output over input.",
        ("Gain", "Loss"): "Its inverse.",
    }


def test_cleaning_keeps_one_spelling_and_no_figures() -> None:
    text = (
        "A “ﬁlter” of 5\u00a0µF and 2\u2126.\r\n\n![a](b.png) ![c](d.png)\n\nFig. 3.1: A stage.\n\n"
    )
    assert clean(text + "Figure 3 shows gain².") == (
        'A "filter" of 5 μF and 2Ω.\n\nFigure 3 shows gain².'
    )


def test_nodes_are_whole_paragraphs_that_belong_together() -> None:
    four = "one two three four"
    text = f"{four}.\n\n{four}\n\n{four}, so:\n\nx = 1 and y\n\n   indented here as code\n\n{four}!"
    sections = domain_tree([Book("analog", "A Book", f"# First & last\n\n{text}\n\n# Next\n\nend")])
    nodes = learning_nodes(sections, words=4)
    assert [node.id for node in nodes] == [
        *(f"analog/a-book/first-last#{i}" for i in (1, 2, 3, 4)),
        "analog/a-book/next#1",
    ]
    assert nodes[0].path == ("analog", "A Book", "First & last")
    assert nodes[2].text == f"{four}, so:\n\nx = 1 and y\n\n   indented here as code"
    wide = learning_nodes(sections, words=8)
    assert [len(node.text.split()) for node in wide] == [8, 18, 1]  # what is left over is joined


@given(st.lists(st.sampled_from(["a b c", "d e", "f:", "   g h", "i j k l m"]), max_size=12))
def test_nodes_hold_all_words_once_and_in_order(paragraphs: list[str]) -> None:
    told = [f"{i} {p}" if p[0] != " " else f"   {i} {p}" for i, p in enumerate(paragraphs)]
    nodes = learning_nodes(domain_tree([Book("s", "b", "\n\n".join(told))]), words=4)
    assert " ".join(node.text for node in nodes).split() == " ".join(told).split()
    assert len({node.id for node in nodes}) == len(nodes)


def test_a_text_that_comes_again_is_one_node() -> None:
    books = [Book("s", "a", "# x\n\nThe same  text."), Book("s", "b", "# y\n\nthe same text.")]
    assert [node.id for node in learning_nodes(domain_tree(books))] == ["s/a/x#1"]


# Agents.

NODES = [LearningNode(f"s/b{i % 3}/c{i}#1", ("s", f"b{i % 3}", f"c{i}"), f"{i}") for i in range(40)]


def ask(node: LearningNode) -> list[str]:
    return [f"What is {node.text}{sign}" for sign in "?!.;"] + ["Why?", " "]


def solve(node: LearningNode, question: str) -> Solved:
    return Solved("It says so.", f"It is {node.text}.", "" if question.endswith(";") else node.text)


def check(node: LearningNode, record: Record) -> Record | str:
    if record.question.endswith("!"):
        return "no need to shout"
    if record.question.endswith("."):
        return Record(
            record.question[:-1] + ", and why?", "Refined.", "x", record.answer, "another"
        )
    return record


def test_every_record_has_its_node_and_every_rejection_its_reason() -> None:
    found = KnowledgeDistiller(ask, solve, check)(NODES)
    assert found.rejected == {
        "no need to shout": 40,
        "no question or no answer": 80,
        "repeated question": 39,
    }
    assert len(found.records) + sum(found.rejected.values()) == 40 * 6
    texts = {node.id: node.text for node in NODES}
    for record in found.records:
        assert record.answer == texts[record.node]  # and not what a refiner called its node
    assert sum(record.thinking == "Refined." for record in found.records) == 40
    few = KnowledgeDistiller(ask, solve, check, per_node=1)(NODES)
    assert [record.question for record in few.records] == [f"What is {i}?" for i in range(40)]


def test_a_question_that_is_refined_into_another_is_rejected() -> None:
    def same(node: LearningNode, record: Record) -> Record | str:
        return Record("The  SAME?" if record.answer > "3" else "the same?", "", "", "a", node.id)

    found = KnowledgeDistiller(lambda node: [node.text], solve, same)(NODES[:5])
    assert len(found.records) == 1 and found.rejected == {"repeated question": 4}


def test_no_questions_are_no_error() -> None:
    assert KnowledgeDistiller(lambda node: [], solve, check)(NODES) == ([], {})
    with pytest.raises(InputError, match="per_node=0; at least 1"):
        KnowledgeDistiller(ask, solve, check, per_node=0)


# Agents of templates.

STAGE = """A common source stage is an inverting amplifier; its load is a resistor. It has 2 ports
and 15 parameters. Its transconductance follows from the current that it is biased with. A stage
that is biased with a current is biased with a stable current of its own."""


def test_templates_ask_for_definitions_sums_and_gaps() -> None:
    node = LearningNode("s/b/c#1", ("s", "b", "c"), STAGE)
    assert template_questions(node) == [
        "What is a common source stage?",
        "What is 2 + 15?",
        "Which word is missing? A common source stage is an ____ amplifier; its load is a "
        "resistor.",
        "Which word is missing? Its ____ follows from the current that it is biased with.",
        "Which word is missing? A stage that is biased with a ____ is biased with a stable current "
        "of its own.",
    ]
    found = KnowledgeDistiller(template_questions, template_solution, template_check)([node])
    assert [record.answer for record in found.records] == [
        "an inverting amplifier",
        "17",
        "inverting",
        "transconductance",
    ]
    assert found.rejected == {"answer given away": 1}
    assert found.records[0].solution.endswith("its load is a resistor.")
    assert all(record.thinking and record.solution for record in found.records)


def test_templates_do_not_know_what_the_text_does_not_say() -> None:
    node = LearningNode("s/b/c#1", ("s", "b", "c"), STAGE)
    assert template_solution(node, "What is a mirror?") == ("", "", "")
    invented = Record("What is a common source stage?", "", "", "a buffer", node.id)
    assert template_check(node, invented) == "answer not in the text"
    long = Record("What is it?", "", "", " ".join(STAGE.split()[:30]).replace(";", ","), node.id)
    node = LearningNode("s/b/c#1", node.path, node.text.replace(";", ","))
    assert template_check(node, long) == "answer too long"


# Splits.


def records(per_node: list[int]) -> list[Record]:
    pairs = zip(NODES, per_node, strict=False)
    return [Record(f"{n.id} {i}", "", "", "a", n.id) for n, count in pairs for i in range(count)]


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 3))
def test_no_node_is_in_two_splits(per_node: list[int], seed: int) -> None:
    own = records(per_node)
    splits = split_by_node(own, seed=seed)
    assert not shared_nodes(splits)
    assert sorted(r.question for part in splits.values() for r in part) == sorted(
        r.question for r in own
    )
    assert splits == split_by_node(own, seed=seed)


def test_shares_are_of_nodes() -> None:
    splits = split_by_node(records([3] * 40))
    assert {name: len(own) for name, own in splits.items()} == {
        "train": 96,
        "valid": 12,
        "test": 12,
    }
    assert splits != split_by_node(records([3] * 40), seed=1)
    halves = split_by_node(records([3] * 40), {"a": 0.5, "b": 0.5})
    assert len(halves["a"]) == len(halves["b"]) == 60


def test_books_may_be_kept_whole() -> None:
    splits = split_by_node(records([2] * 40), {"train": 2 / 3, "test": 1 / 3}, by="book")
    books = {name: {r.node.split("/")[1] for r in own} for name, own in splits.items()}
    assert len(books["train"]) == 2 and len(books["test"]) == 1
    assert not books["train"] & books["test"]


def test_a_split_by_record_leaks_and_is_seen_to() -> None:
    own = records([4] * 40)
    leaking = {"train": own[::2], "test": own[1::2]}
    assert len(shared_nodes(leaking)) == 40


@pytest.mark.parametrize("shares", [{"a": 0.5, "b": 0.4}, {"a": 1.2, "b": -0.2}])
def test_shares_that_are_none_are_refused(shares: dict[str, float]) -> None:
    with pytest.raises(InputError, match="have to add up to 1"):
        split_by_node(records([1]), shares)


# Files.


def test_records_come_back_from_their_file(tmp_path: Path) -> None:
    own = [Record("Ω or\nμ?", "\u2028 a line", "s", "both", "s/b#1"), *records([2, 1])]
    write_records(tmp_path / "r.jsonl", own)
    assert read_records(tmp_path / "r.jsonl") == own
    assert (tmp_path / "r.jsonl").read_text().count("\n") == len(own)
    (tmp_path / "r.jsonl").write_text("\n\n")
    assert read_records(tmp_path / "r.jsonl") == []


def test_bad_lines_are_named_by_their_numbers(tmp_path: Path) -> None:
    good = {"question": "q", "thinking": "t", "solution": "s", "answer": "a", "node": "n"}
    lines = [good, {**good, "answer": 3}, {**good, "nod": "n"}, {"question": "q"}, [1]]
    text = "\n".join(["{", "", *map(json.dumps, lines)])
    (tmp_path / "r.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        read_records(tmp_path / "r.jsonl")
    message = str(caught.value)
    assert "\n" not in message
    for part in (
        "line 1: not JSON",
        "line 4.answer: expected text, not 3",
        "line 5: unknown field 'nod'; did you mean 'node'?",
        "line 6: thinking, solution, answer, node missing",
        "line 7: expected an object, not [1]",
    ):
        assert part in message
    assert "line 3" not in message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.jsonl: cannot be read"):
        read_records(tmp_path / "no.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"b\.jsonl: cannot be read"):
        read_records(tmp_path / "b.jsonl")
