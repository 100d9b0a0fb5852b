"""Frozen dataclasses to plain JSON values and back, checked against their type hints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from polypath.errors import InputError, unknown

_NAMES = {
    str: "text",
    Path: "a path",
    float: "a number",
    int: "a whole number",
    bool: "true or false",
}


def encode(value: Any) -> Any:
    """Dicts, lists, strings and numbers; paths as strings, numbers that are not finite as None."""
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [encode(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def decode(hint: Any, value: Any, where: str) -> Any:
    """The object of type `hint` that `encode` wrote; sequences come back as lists.

    hint: a dataclass, Sequence, Mapping, Literal, union or plain type, or Any for JSON as it is. Of
        several dataclasses, the one is taken whose field `kind` says so.
    where: the place, for the message of the InputError that wrong input raises.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin is Literal:
        if value in parts:
            return value
        raise InputError(f"{where}: expected one of {', '.join(map(repr, parts))}, not {value!r}")
    if origin is Sequence:
        items = _checked(list, "a list", value, where)
        return [decode(parts[0], item, f"{where}[{i}]") for i, item in enumerate(items)]
    if origin is Mapping:
        items = _checked(dict, "an object", value, where)
        return {key: decode(parts[1], item, f"{where}.{key}") for key, item in items.items()}
    if parts:
        return decode(_member(parts, value, where), value, where)
    if is_dataclass(hint):
        return _object(hint, _checked(dict, "an object", value, where), where)
    return _plain(hint, value, where)


def _checked(kind: type, name: str, value: Any, where: str) -> Any:
    if isinstance(value, kind):
        return value
    raise InputError(f"{where}: expected {name}, not {value!r:.60}")


def _member(parts: tuple[Any, ...], value: Any, where: str) -> Any:
    """The part of a union that `value` is meant to be."""
    kinds = {kind: part for part in parts if (kind := getattr(part, "kind", None))}
    if kinds:
        kind = _checked(dict, "an object", value, where).get("kind")
        if kind not in kinds:
            raise InputError(f"{where}: {unknown('kind', str(kind), kinds)}")
        return kinds[kind]
    if value is None and NoneType in parts:
        return NoneType
    exact = [part for part in parts if type(value) is part]
    literal = [part for part in parts if get_origin(part) is Literal]
    return (exact or literal or [part for part in parts if part is not NoneType])[0]


def _object(kind: Any, value: Mapping[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    known: dict[str, Field] = {f.name: f for f in fields(kind)}
    for name in value:
        if name not in known:
            raise InputError(f"{where}: {unknown('field', name, known)}")
    missing = [n for n, f in known.items() if n not in value and f.default is MISSING]
    if missing:
        raise InputError(f"{where}: {', '.join(missing)} missing")
    given = {n: decode(hints[n], item, f"{where}.{n}") for n, item in value.items()}
    return kind(**{n: item for n, item in given.items() if known[n].init})


def _plain(kind: type, value: Any, where: str) -> Any:
    if type(value) is kind or (kind is float and type(value) is int):
        return value
    if kind is Path and type(value) is str:
        return Path(value)
    expected = "null" if kind is NoneType else _NAMES[kind]
    raise InputError(f"{where}: expected {expected}, not {value!r:.60}")
