"""A YAML file as plain data that remembers on which line each key stands, so that errors can say so."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from raysweep.errors import UserError
from raysweep.formats import leaves

Path_ = tuple[str, ...]


class _Loader(yaml.SafeLoader):
    """Safe, and with YAML 1.2's floats: PyYAML alone reads `1e-4` as text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d+)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.\d*|\.\d+)$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


class Document:
    """A parsed file: `tree` is its data, `line(path)` the line of the nearest key above `path`."""

    def __init__(self, tree: Any, lines: dict[Path_, int], name: str):
        self.tree, self._lines, self.name = tree, lines, name

    def line(self, path: Path_) -> int:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, path: Path_, message: str) -> UserError:
        """The mistake at `path` as one line: file, line, key, message."""
        key = ".".join(path)
        return UserError(f"{self.name}:{self.line(path)}: {f'{key}: ' if key else ''}{message}")


def parse(text: str) -> Any:
    """One YAML value, as given to `--set`.

    Raises:
        UserError: it is no YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"'{text}' is no YAML value: {_problem(error)}") from None


def read(path: Path) -> Document:
    """Read a file whose top level is a mapping.

    Raises:
        UserError: it is missing, unreadable, no YAML, or no mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; give the path of a search space") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not a text file; give the path of a search space") from None
    try:
        loader = _Loader(text)
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}:{line}: the character #x{error.character:04x} has no place in a text") from None
    try:
        node = loader.get_single_node()
        lines: dict[Path_, int] = {}
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
            raise document.error(keys, f"a {type(value).__name__} is no value here; put it in quotes for a text")
    return document


def _index(node: yaml.Node, path: Path_, lines: dict[Path_, int], file: Path) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                raise UserError(f"{file}:{line}: {'.'.join((*path, name))}: this key stands twice; keep one")
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
