"""A pydantic error as one line that a user can act on: the key as written in the file, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import reduce
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from trainables.config import WrongKey


class WrongValue(ValueError):
    """A mistake in the value at `path` of a tree."""

    def __init__(self, path: tuple[str, ...], message: str):
        super().__init__(message)
        self.path = path


def explain(error: ValidationError, tree: Any, model: type[BaseModel]) -> WrongValue:
    """The first mistake in `error`, which pydantic raised when it read `tree` as `model`."""
    first = error.errors()[0]
    location, kind, given = first["loc"], first["type"], first.get("input")
    path = _keys(location, tree)
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, WrongKey):
        return WrongValue((*path, *cause.key.split(".")), str(cause))
    if kind == "extra_forbidden":
        return WrongValue(path, f"unknown key{_suggestion(str(location[-1]), _allowed(model, location[:-1]))}")
    if kind == "missing":
        return WrongValue(path, "this key is missing")
    if kind == "union_tag_invalid":
        known = first["ctx"]["expected_tags"].replace("'", "")
        written = reduce(lambda node, key: node.get(key) if isinstance(node, dict) else None, path, tree)
        path = (*path, "kind") if isinstance(written, dict) else path
        return WrongValue(path, f"'{first['ctx']['tag']}' is unknown; known: {known}")
    if kind == "union_tag_not_found":
        return WrongValue(path, "give its name, or a mapping with the key `kind`")
    message = first["msg"][0].lower() + first["msg"][1:]
    shown = repr(given)
    return WrongValue(path, f"{message}, not {shown if len(shown) < 60 else shown[:57] + '...'}")


def _keys(location: tuple[int | str, ...], tree: Any) -> tuple[str, ...]:
    """The keys of the file in a location that pydantic reports, without the names of union members that it contains."""
    keys: list[str] = []
    for position, part in enumerate(location):
        last = position == len(location) - 1
        if isinstance(tree, dict) and part not in tree and not last:
            continue
        if isinstance(tree, str | int | float) or str(part).startswith("("):
            continue
        keys.append(str(part))
        if isinstance(tree, dict):
            tree = tree.get(part)
        elif isinstance(tree, list) and isinstance(part, int) and part < len(tree):
            tree = tree[part]
    return tuple(keys)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _allowed(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed at `location`, where union members are named by their kind."""
    candidates = [model]
    for part in location:
        fields = [c.model_fields[part] for c in candidates if isinstance(part, str) and part in c.model_fields]
        if fields:
            candidates = [m for field in fields for m in _models(field.annotation)]
        elif isinstance(part, str):
            candidates = [c for c in candidates if getattr(c.model_fields.get("kind"), "default", None) == part]
    return sorted({field.alias or name for c in candidates for name, field in c.model_fields.items()})


def _suggestion(key: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(key, allowed, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known here: {', '.join(allowed)}" if allowed else ""
