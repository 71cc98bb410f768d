"""YAML files as plain data, with the line of each key for error messages."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import UserError
from raysweep.formats import leaves

Keys = tuple[str, ...]  # the keys that lead to a value, from the top of the file


class _Loader(yaml.SafeLoader):
    """A safe loader that reads floats as YAML 1.2 does. PyYAML by itself reads `1e-4` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d+)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.\d*|\.\d+)$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class Document:
    """A parsed file: `tree` is its data, `name` its path."""

    def __init__(self, tree: Any, lines: dict[Keys, int], name: str):
        self.tree, self._lines, self.name = tree, lines, name

    def line(self, path: Keys) -> int:
        """The line of the key at `path`, or of the nearest key above it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, path: Keys, message: str) -> UserError:
        """A UserError about the key at `path`: file, line, key and message in one line."""
        key = ".".join(path)
        return UserError(f"{self.name}:{self.line(path)}: {f'{key}: ' if key else ''}{message}")


def parse(text: str) -> Any:
    """Read one YAML value, as given to `--set`.

    Raises:
        UserError: it is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"'{text}' is not a YAML value: {_problem(error)}") from None


def read(path: Path) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        UserError: it is missing, unreadable, not valid YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a search space") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give the path of a search space") from None
    except ValueError:  # a null byte
        raise UserError(f"{str(path)!r}: no file can have this name; give the path of a search space") from None
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}:{line}: the character #x{error.character:04x} is not allowed in a text file") from None
    try:
        node = loader.get_single_node()
        lines: dict[Keys, int] = {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{path}:1: a search space is a mapping with the keys study, trial, search, enqueue")
        _index(node, (), lines, path)
        tree = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{path}:{mark.line + 1 if mark else 1}: {_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{path}:1: an alias that contains itself; write the value out") from None
    finally:
        loader.dispose()
    document = Document(tree, lines, str(path))
    for keys, value in leaves(tree, lists=True):
        if not isinstance(value, str | int | float | bool | dict | list | None):
            raise document.error(
                keys, f"a {type(value).__name__} cannot be a value here; put it in quotes to make it a text"
            )
    return document


def _index(node: yaml.Node, path: Keys, lines: dict[Keys, int], file: Path) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise UserError(f"{file}:{line}: {'.'.join((*path, name))}: this key is given twice; keep one")
            seen.add(name)
            lines[(*path, name)] = line
            _index(value, (*path, name), lines, file)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            _index(value, (*path, str(position)), lines, file)


def _problem(error: yaml.YAMLError) -> str:
    problem = str(getattr(error, "problem", None) or error).splitlines()[0]
    if "'\\t'" in problem:
        return "a tab; indent with spaces"
    return problem
