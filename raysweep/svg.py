"""The elements of SVG drawings: a white sheet, text, lines, paths, rectangles, tooltips."""

from __future__ import annotations

from xml.etree import ElementTree as ET

INK, QUIET, LINE = "#1c2733", "#66717d", "#8d99a6"
_WIDE = 0.63  # mean width of a character in units of the font size; DejaVu Sans, a wide font


def sheet(width: float, height: float) -> ET.Element:
    """An empty drawing on a white background; sizes are in pixels."""
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
    """Add a line of text; `y` is its baseline."""
    facts = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "font-weight": weight, "fill": colour}
    element = ET.SubElement(picture, "text", facts | {"text-anchor": anchor})
    element.text = text
    return element


def line(
    picture: ET.Element, begin: tuple[float, float], end: tuple[float, float], colour: str, width: float = 1
) -> None:
    """Add a straight line."""
    (x1, y1), (x2, y2) = begin, end
    facts = {"x1": f"{x1:.1f}", "y1": f"{y1:.1f}", "x2": f"{x2:.1f}", "y2": f"{y2:.1f}"}
    ET.SubElement(picture, "line", facts | {"stroke": colour, "stroke-width": f"{width:g}"})


def path(picture: ET.Element, d: str, colour: str, width: float = 1, fill: str = "none") -> ET.Element:
    """Add a path; `d` is written in SVG's path commands, `colour` and `width` are those of its stroke."""
    return ET.SubElement(picture, "path", {"d": d, "fill": fill, "stroke": colour, "stroke-width": f"{width:.1f}"})


def rectangle(picture: ET.Element, corner: tuple[float, float], width: float, height: float, colour: str) -> ET.Element:
    """Add a filled rectangle; `corner` is its upper left one."""
    facts = {"x": f"{corner[0]:.1f}", "y": f"{corner[1]:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    return ET.SubElement(picture, "rect", facts | {"fill": colour})


def add_tooltip(element: ET.Element, text: str) -> None:
    """Show a text, of one or several lines, while the pointer rests on an element."""
    ET.SubElement(element, "title").text = "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def group(picture: ET.Element, tooltip: str) -> ET.Element:
    """Add a group of elements with one tooltip."""
    element = ET.SubElement(picture, "g")
    add_tooltip(element, tooltip)
    return element


def fitting(text: str, width: float, size: int = 12) -> str:
    """The text, shortened with an ellipsis if it is probably wider than `width` pixels."""
    most = int(width / (_WIDE * size))
    return text if len(text) <= most else text[: max(0, most - 1)].rstrip(" ,") + "…"


def finish(picture: ET.Element) -> str:
    """The drawing as the text of an SVG file."""
    ET.indent(picture)
    return ET.tostring(picture, encoding="unicode") + "\n"
