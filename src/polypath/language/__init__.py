"""Language models as hosts of routed layers."""

from polypath.language.attach import attach, detach
from polypath.language.checkpoint import from_pretrained, save_pretrained
from polypath.language.config import RoutedLayers
from polypath.language.corpus import Corpus, Document, Split, read_corpus
from polypath.language.elastic import Elastic, SubModel, elastic_step, running, whole
from polypath.language.extract import extract, most_used
from polypath.language.kinds import kinds_of, python_kinds, text_kinds, token_kinds
from polypath.language.reroute import reroute
from polypath.language.stacks import build_stack
from polypath.language.tokens import (
    BPETokenizer,
    ByteTokenizer,
    Tokenizer,
    Windows,
    bits_per_byte,
    read_tokenizer,
)

__all__ = [
    "BPETokenizer",
    "ByteTokenizer",
    "Corpus",
    "Document",
    "Elastic",
    "RoutedLayers",
    "Split",
    "SubModel",
    "Tokenizer",
    "Windows",
    "attach",
    "bits_per_byte",
    "build_stack",
    "detach",
    "elastic_step",
    "extract",
    "from_pretrained",
    "kinds_of",
    "most_used",
    "python_kinds",
    "read_corpus",
    "read_tokenizer",
    "reroute",
    "running",
    "save_pretrained",
    "text_kinds",
    "token_kinds",
    "whole",
]
