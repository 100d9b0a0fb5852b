from pathlib import Path

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs.triple_files import (
    read_facts,
    read_grail,
    read_openke,
    read_triples,
    write_triples,
)


@pytest.mark.parametrize("mark", ["\t", ",", " ", "   "])
def test_triples_come_in_names(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "triples.tsv"
    rows = [("head", "relation", "tail"), ("ada", "knows", "bob"), ("bob", "likes", "ada")]
    rows += [("ada", "knows", "bob"), ("eve", "knows", "eve")]
    path.write_text("# people\n" + "\n".join(mark.join(row) for row in rows) + "\n\n")
    graph = read_triples(path)
    assert list(graph.entities) == ["ada", "bob", "eve"]
    assert list(graph.relations) == ["knows", "likes"]
    assert graph.facts.tolist() == [[0, 0, 1], [1, 1, 0], [2, 0, 2]]
    write_triples(tmp_path / "again", graph)
    again = read_triples(tmp_path / "again")
    assert torch.equal(again.facts, graph.facts) and again.entities == graph.entities
    (tmp_path / "more").write_text(mark.join(("eve", "likes", "ada")))
    assert read_facts(tmp_path / "more", graph).tolist() == [[2, 1, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\tr\tb\na\tr\n", "line 2: 'a,r' is not head, relation and tail"),
        ("a\tr\tb\n\na\t\tb\n", "line 3: 'a,,b' is not"),
        ("a r b c", "line 1: 'a,r,b,c' is not"),
        ("# nothing\nhead,relation,tail\n", "no facts"),
        ("a,r,b\na,q,b", "line 2: no relation 'q' in the graph; the nearest is 'r'"),
    ],
)
def test_lines_that_are_not_facts_are_told(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "triples.tsv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_triples(path, ["r"])


def test_unknown_names_are_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("ada,knows,grace")
    graph = read_triples(tmp_path / "a")
    (tmp_path / "b").write_text("ada,knows,grace\nada,knows,grac")
    with pytest.raises(InputError, match=r"line 2: no entity 'grac' in .* the nearest is 'grace'"):
        read_facts(tmp_path / "b", graph)
    with pytest.raises(InputError, match="cannot be read"):
        read_triples(tmp_path / "c")


def grail(folder: Path) -> Path:
    files = {
        "kg/train.txt": "a\tr\tb\nb\ts\tc",
        "kg/valid.txt": "a\ts\tc",
        "kg_ind/train.txt": "x\ts\ty\ny\tr\tz",
        "kg_ind/valid.txt": "x\tr\tz",
        "kg_ind/test.txt": "z\tr\tx",
    }
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder / "kg"


def test_grails_folders(tmp_path: Path) -> None:
    split = read_grail(grail(tmp_path))
    assert list(split.inference.relations) == ["r", "s"]
    assert split.inference.facts.tolist() == [[0, 1, 1], [1, 0, 2]]
    assert split.test.tolist() == [[2, 0, 0]] and split.aside.tolist() == [[0, 0, 2]]
    assert split.valid.tolist() == [[0, 1, 2]] and not split.transductive
    (tmp_path / "kg_ind" / "train.txt").write_text("x\ts\ta\na\tr\tz\nx\ts\tz")
    with pytest.raises(InputError, match="1 entities are in both graphs, one of them 'a'"):
        read_grail(tmp_path / "kg")


OPENKE = {
    "entity2id.txt": "3\n/m/b\t1\n/m/a\t0\n/m/c\t2\n",
    "relation2id.txt": "2\n/r/s\t1\n/r/r\t0\n",
    "train2id.txt": "3\n0 1 0\n1 2 1\n0 2 1\n",
    "valid2id.txt": "1\n2 0 0\n",
    "test2id.txt": "1\n2 1 1\n",
}


def openke(folder: Path, **changed: str) -> Path:
    for name, text in OPENKE.items():
        (folder / name).write_text(changed.get(name.split("2")[0], text))
    return folder


def test_openkes_folders(tmp_path: Path) -> None:
    split = read_openke(openke(tmp_path))
    assert list(split.train.entities) == ["/m/a", "/m/b", "/m/c"]
    assert split.train.facts.tolist() == [[0, 0, 1], [1, 1, 2], [0, 1, 2]]
    assert split.valid.tolist() == [[2, 0, 0]] and split.test.tolist() == [[2, 1, 1]]
    assert split.transductive and not len(split.aside)


@pytest.mark.parametrize(
    ("part", "text", "message"),
    [
        ("train", "2\n0 1 0\n", "line 1: '2'; the number of lines that follow is right, 1"),
        ("train", "", "line 1: ''; the number of lines"),
        ("train", "1\n0 1\n", r"line 2: \['0', '1'\]; the ids head, tail, relation"),
        ("train", "1\n0 1 7\n", "facts name relation 7"),
        ("test", "1\na 1 0\n", r"line 2: .* the ids head"),
        ("entity", "2\na 0\nb 0\n", "line 3: .* a name and an id of its own"),
        ("entity", "2\na 0\nb 2\n", "the ids of 2 names are not 0 … 1"),
        ("valid", "1\n0 1 0\n", "1 facts to validate on are among those to train on"),
    ],
)
def test_other_folders_are_told(tmp_path: Path, part: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_openke(openke(tmp_path, **{part: text}))


SIZES = {  # of the README of the data: nodes, relations, facts to train, to validate and to test on
    "fb237_v1": (1594, 180, 4245, 489, 1093, 1993, 205),
    "WN18RR_v1": (2746, 9, 5410, 630, 922, 1618, 188),
}


@pytest.mark.parametrize("name", SIZES)
def test_public_inductive_splits(data_dir: Path, name: str) -> None:
    split = read_grail(data_dir / "inductive-kg" / name)
    train, inference = split.train, split.inference
    found = (train.num_nodes, len(train.relations), len(train.facts), len(split.valid))
    assert (*found, inference.num_nodes, len(inference.facts), len(split.test)) == SIZES[name]


@pytest.mark.slow
def test_fb15k237(data_dir: Path) -> None:
    split = read_openke(data_dir / "fb15k237")
    parts = (split.train.facts, split.valid, split.test)
    assert [len(part) for part in parts] == [272_115, 17_535, 20_466]
    assert (split.train.num_nodes, len(split.train.relations)) == (14_541, 237)
    lines = (data_dir / "fb15k237" / "train2id.txt").read_text().splitlines()
    numbers = torch.tensor([[int(n) for n in line.split()] for line in lines[1:2000]])
    assert torch.equal(split.train.facts[:1999], numbers[:, [0, 2, 1]])
