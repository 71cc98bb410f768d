"""The provenance of a checkpoint as text and as a picture.

The teachers and students of a whole study are its lineage (`raysweep.report.lineage`).
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from rich.text import Text
from rich.tree import Tree as Branches

from raysweep.store.provenance import Origin
from raysweep.svg import LINE, QUIET, finish, path, rectangle, sheet, write

BOX, GAP, MARGIN, LINE_HEIGHT = 330, 150, 20, 16  # pixels
CHECKPOINT, OTHER = "#eef3fb", "#f3f1ea"  # colours of boxes: checkpoints; data and encoders


def _lines(origin: Origin) -> list[str]:
    at = "" if origin.step is None else f" at step {origin.step}"
    lines = [f"{origin.title}{at}{f' ({origin.note})' if origin.note else ''}", f"key {origin.key[:16]}"]
    lines += [f"{name}  sha256 {digest[:16]}" for name, digest in origin.files.items()]
    return lines + [f"passed step {step}  key {key[:16]}" for step, key in sorted(origin.passed.items())]


def text(origin: Origin) -> Branches:
    """A tree for the terminal, with the checkpoint as its root."""
    return _branch(origin, "")


def _branch(origin: Origin, relation: str) -> Branches:
    head, *rest = _lines(origin)
    label = Text(f"{relation} " if relation else "", style="dim").append(head, style="bold")
    for line in rest:
        label.append(f"\n  {line}", style="default")
    branch = Branches(label)
    for parent_relation, parent in origin.parents:
        branch.children.append(_branch(parent, parent_relation))
    return branch


def svg(origin: Origin) -> str:
    """A picture as SVG: the checkpoint on the right, its origins to the left of it."""
    depths: dict[str, int] = {}
    boxes: dict[str, Origin] = {}
    for depth, ancestor in _ancestors(origin, 0):
        # An origin is placed to the left of everything that comes from it.
        depths[ancestor.key] = max(depth, depths.get(ancestor.key, 0))
        boxes[ancestor.key] = ancestor
    height = LINE_HEIGHT * max(len(_lines(box)) for box in boxes.values()) + 10
    columns = [[key for key in boxes if depths[key] == depth] for depth in range(max(depths.values()) + 1)]
    width = 2 * MARGIN + len(columns) * (BOX + GAP) - GAP
    picture = sheet(width, 2 * MARGIN + max(map(len, columns)) * (height + GAP) - GAP // 2)
    corners = {
        key: (width - MARGIN - BOX - depth * (BOX + GAP), MARGIN + row * (height + GAP))
        for depth, column in enumerate(columns)
        for row, key in enumerate(column)
    }
    for key, box in boxes.items():
        for relation, parent in box.parents:
            _arrow(picture, corners[parent.key], corners[key], height, relation)
    for key, box in boxes.items():
        _box(picture, corners[key], height, box)
    return finish(picture)


def _ancestors(origin: Origin, depth: int) -> Iterator[tuple[int, Origin]]:
    """An origin and all that it comes from, with their distances from the checkpoint."""
    yield depth, origin
    for _, parent in origin.parents:
        yield from _ancestors(parent, depth + 1)


def _box(picture: ET.Element, corner: tuple[int, int], height: int, origin: Origin) -> None:
    box = rectangle(picture, corner, BOX, height, OTHER if origin.step is None else CHECKPOINT)
    box.set("rx", "6")
    box.set("stroke", LINE)
    x, y = corner
    for number, line in enumerate(_lines(origin)):
        size, weight = (11, "normal") if number else (12, "bold")
        write(picture, x + 10, y + 18 + LINE_HEIGHT * number, line, size, weight)


def _arrow(picture: ET.Element, begin: tuple[int, int], end: tuple[int, int], height: int, relation: str) -> None:
    """An arrow between two boxes, given by their upper left corners, with a word above it."""
    x1, y1, x2, y2 = begin[0] + BOX, begin[1] + height / 2, end[0], end[1] + height / 2
    middle = (x1 + x2) / 2
    curve = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2 - 7} {y2}"
    if x2 - x1 > GAP:  # it passes below the boxes between them
        below = max(y1, y2) + height * 0.8
        curve = f"M{x1} {y1} C{x1 + GAP} {below} {x2 - GAP} {below} {x2 - 7} {y2}"
        y1 = y2 = below - height * 0.2 + 18
    path(picture, curve, QUIET)
    ET.SubElement(picture, "path", d=f"M{x2} {y2} l-8 -4 l0 8 z", fill=QUIET)
    write(picture, middle, min(y1, y2) - 6, relation, 10, colour=QUIET, anchor="middle")
