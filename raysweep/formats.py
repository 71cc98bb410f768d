"""Step counts in short form, and nested data as dotted keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def short(steps: float) -> str:
    """A number of steps with a unit: 7.9M, 400K, 16."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if steps >= size:
            return f"{round(steps / size, 2):g}{unit}"
    return f"{steps:.3g}"


def leaves(tree: Any, *, lists: bool = False) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The values of nested mappings, each with the keys that lead to it. An empty mapping counts as a value.

    Args:
        lists: descend into lists too, with positions as keys; otherwise a list is a value.
    """
    children = tree if isinstance(tree, Mapping) else dict(enumerate(tree)) if lists and isinstance(tree, list) else {}
    if not children:
        yield (), tree
    for key, child in children.items():
        for path, value in leaves(child, lists=lists):
            yield (str(key), *path), value


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys, without empty mappings."""
    return {".".join(path): value for path, value in leaves(tree) if value != {}}
