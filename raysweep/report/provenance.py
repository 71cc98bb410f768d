"""The provenance of a checkpoint as text and as a picture."""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as ET

from rich.text import Text
from rich.tree import Tree as Branches

from raysweep.store.provenance import Origin
from raysweep.svg import QUIET, finish, sheet, write

BOX, GAP, MARGIN, _LINE = 330, 150, 20, 16  # pixels


def _words(origin: Origin) -> list[str]:
    at = "" if origin.step is None else f" at step {origin.step}"
    words = [f"{origin.title}{at}{f' ({origin.note})' if origin.note else ''}", f"key {origin.key[:16]}"]
    words += [f"{name}  sha256 {digest[:16]}" for name, digest in origin.files.items()]
    return words + [f"passed step {step}  key {key[:16]}" for step, key in sorted(origin.passed.items())]


def text(origin: Origin) -> Branches:
    """For the terminal."""
    return _grow(origin, "")


def _grow(origin: Origin, relation: str) -> Branches:
    head, *rest = _words(origin)
    told = Text(f"{relation} " if relation else "", style="dim").append(head, style="bold")
    for line in rest:
        told.append(f"\n  {line}", style="default")
    branch = Branches(told)
    for how, parent in origin.parents:
        branch.children.append(_grow(parent, how))
    return branch


def svg(origin: Origin) -> str:
    """A picture: the checkpoint on the right, what it comes from to its left."""
    depths: dict[str, int] = {}
    boxes: dict[str, Origin] = {}
    for depth, each in _walk(origin, 0):
        depths[each.key] = max(depth, depths.get(each.key, 0))  # as far left as anything that needs it asks for
        boxes[each.key] = each
    height = _LINE * max(len(_words(each)) for each in boxes.values()) + 10
    columns = [[key for key in boxes if depths[key] == depth] for depth in range(max(depths.values()) + 1)]
    width = 2 * MARGIN + len(columns) * (BOX + GAP) - GAP
    tall = 2 * MARGIN + max(map(len, columns)) * (height + GAP) - GAP // 2
    picture = sheet(width, tall)
    corners = {
        key: (width - MARGIN - BOX - depth * (BOX + GAP), MARGIN + row * (height + GAP))
        for depth, column in enumerate(columns)
        for row, key in enumerate(column)
    }
    for key, each in boxes.items():
        for relation, parent in each.parents:
            _arrow(picture, corners[parent.key], corners[key], height, relation)
    for key, each in boxes.items():
        _box(picture, corners[key], height, each)
    return finish(picture)


def _walk(origin: Origin, depth: int) -> Iterator[tuple[int, Origin]]:
    yield depth, origin
    for _, parent in origin.parents:
        yield from _walk(parent, depth + 1)


def _box(picture: ET.Element, corner: tuple[int, int], height: int, origin: Origin) -> None:
    x, y = corner
    colour = "#eef3fb" if origin.step is not None else "#f3f1ea"
    box = ET.SubElement(picture, "rect", x=str(x), y=str(y), width=str(BOX), height=str(height), rx="6", fill=colour)
    box.set("stroke", "#8d99a6")
    for number, line in enumerate(_words(origin)):
        size, weight = (11, "normal") if number else (12, "bold")
        write(picture, x + 10, y + 18 + _LINE * number, line, size, weight)


def _arrow(picture: ET.Element, begin: tuple[int, int], end: tuple[int, int], height: int, relation: str) -> None:
    x1, y1, x2, y2 = begin[0] + BOX, begin[1] + height / 2, end[0], end[1] + height / 2
    middle = (x1 + x2) / 2
    curve = f"M{x1} {y1} C{middle} {y1} {middle} {y2} {x2 - 7} {y2}"
    if x2 - x1 > GAP:  # past the boxes between them
        below = max(y1, y2) + height * 0.8
        curve = f"M{x1} {y1} C{x1 + GAP} {below} {x2 - GAP} {below} {x2 - 7} {y2}"
        y1 = y2 = below - height * 0.2 + 18
    ET.SubElement(picture, "path", d=curve, fill="none", stroke="#66717d")
    ET.SubElement(picture, "path", d=f"M{x2} {y2} l-8 -4 l0 8 z", fill="#66717d")
    write(picture, middle, min(y1, y2) - 6, relation, 10, colour=QUIET, anchor="middle")
