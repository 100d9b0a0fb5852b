import ast
import inspect
import json
import json.decoder
import logging
import xml.sax.handler

import pytest
import torch

from polypath.errors import InputError
from polypath.graphs.python_knowledge import RELATIONS, python_knowledge, split_packages
from polypath.graphs.triples import KnowledgeGraph

PACKAGES = ("json", "logging", "xml")


@pytest.fixture(scope="module")
def graph() -> KnowledgeGraph:
    return python_knowledge(PACKAGES)


@pytest.fixture(scope="module")
def facts(graph: KnowledgeGraph) -> set[str]:
    return {graph.named(fact) for fact in graph.facts}


def test_what_the_source_says_is_there(facts: set[str]) -> None:
    for fact in (
        "json imports json.decoder",
        "json defines json.loads",
        "json.decoder defines json.decoder.JSONDecodeError",
        "json.decoder.JSONDecoder defines json.decoder.JSONDecoder.decode",
        "json.decoder.JSONDecodeError inherits builtins.ValueError",
        "json.decoder.JSONDecoder.decode calls json.decoder.JSONDecoder.raw_decode",
        "json.decoder.JSONDecoder.raw_decode raises json.decoder.JSONDecodeError",
        "json.loads raises builtins.TypeError",
        "json.loads raises json.decoder.JSONDecodeError",  # that json has imported
        "logging.FileHandler inherits logging.StreamHandler",
        "logging.handlers.RotatingFileHandler inherits logging.handlers.BaseRotatingHandler",
        # Of an inherited method, where it is defined.
        "logging.FileHandler.emit calls logging.StreamHandler.emit",
    ):
        assert fact in facts, fact


def test_classes_inherit_and_define_as_python_says(graph: KnowledgeGraph, facts: set[str]) -> None:
    for module in (json.decoder, logging, xml.sax.handler):
        for name, found in inspect.getmembers(module, inspect.isclass):
            own = f"{module.__name__}.{name}"
            if found.__module__ != module.__name__ or own not in graph.entities:
                continue
            for base in found.__bases__:
                whole = f"{base.__module__}.{base.__qualname__}"
                if whole in graph.entities:
                    assert f"{own} inherits {whole}" in facts
            for method, value in vars(found).items():
                here = inspect.isfunction(value) and value.__module__ == module.__name__
                if here and value.__name__ == method:  # others may have added theirs
                    assert f"{own} defines {own}.{method}" in facts


def test_functions_are_counted(graph: KnowledgeGraph) -> None:
    tree = ast.parse(inspect.getsource(json.decoder))
    wanted = sum(isinstance(n, ast.FunctionDef | ast.ClassDef) for n in tree.body)
    heads = [graph.entities[h] for h, r, _ in graph.facts.tolist() if RELATIONS[r] == "defines"]
    assert heads.count("json.decoder") == wanted


def test_it_is_the_same_each_time(graph: KnowledgeGraph) -> None:
    again = python_knowledge(PACKAGES)
    assert torch.equal(again.facts, graph.facts) and again.entities == graph.entities
    assert list(graph.entities) == sorted(graph.entities)


def test_packages_are_trained_or_tested(graph: KnowledgeGraph) -> None:
    split = split_packages(graph, torch.Generator().manual_seed(0), ("xml",))
    assert all(name.startswith("xml") for name in split.inference.entities)
    assert not any(name.startswith("xml") for name in split.train.entities)
    assert len(split.test) > 20 and len(split.valid) > 20
    with pytest.raises(InputError, match="unknown package 'jsn'; did you mean 'json'"):
        python_knowledge(["jsn"])
