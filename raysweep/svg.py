"""The little that drawings share: a white sheet, text, and the finished file."""

from __future__ import annotations

from xml.etree import ElementTree as ET

INK, QUIET, LINE = "#1c2733", "#66717d", "#8d99a6"
_WIDE = 0.63  # of a character, on average, in units of the font's size: DejaVu Sans, which is wide


def sheet(width: float, height: float) -> ET.Element:
    """An empty drawing on white, in pixels."""
    picture = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", width=f"{width:g}", height=f"{height:g}")
    picture.set("font-family", "system-ui, sans-serif")
    ET.SubElement(picture, "rect", width="100%", height="100%", fill="white")
    return picture


def write(
    picture: ET.Element,
    x: float,
    y: float,
    text: str,
    size: int = 12,
    weight: str = "normal",
    colour: str = INK,
    anchor: str = "start",
) -> ET.Element:
    """A line of text; `y` is its base line."""
    facts = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "font-weight": weight, "fill": colour}
    element = ET.SubElement(picture, "text", facts | {"text-anchor": anchor})
    element.text = text
    return element


def line(
    picture: ET.Element, begin: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1
) -> None:
    """A straight line."""
    (x1, y1), (x2, y2) = begin, end
    facts = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(picture, "line", facts | {"stroke": colour, "stroke-width": f"{width:g}"})


def fitting(text: str, width: float, size: int = 12) -> str:
    """As much of a text as there is room for."""
    most = int(width / (_WIDE * size))
    return text if len(text) <= most else text[: max(0, most - 1)].rstrip(" ,") + "…"


def finish(picture: ET.Element) -> str:
    """The drawing as text."""
    ET.indent(picture)
    return ET.tostring(picture, encoding="unicode") + "\n"
