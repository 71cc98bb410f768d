"""What all drawings share: a white sheet, text, lines, rectangles, and the finished SVG."""

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


def rectangle(picture: ET.Element, corner: tuple[float, float], width: float, height: float, colour: str) -> ET.Element:
    """Add a filled rectangle; `corner` is its upper left one."""
    facts = {"x": f"{corner[0]:.1f}", "y": f"{corner[1]:.1f}", "width": f"{width:.1f}", "height": f"{height:.1f}"}
    return ET.SubElement(picture, "rect", facts | {"fill": colour})


def fitting(text: str, width: float, size: int = 12) -> str:
    """The text, shortened with an ellipsis where it is wider than `width` pixels."""
    most = int(width / (_WIDE * size))
    return text if len(text) <= most else text[: max(0, most - 1)].rstrip(" ,") + "…"


def finish(picture: ET.Element) -> str:
    """The drawing as the text of an SVG file."""
    ET.indent(picture)
    return ET.tostring(picture, encoding="unicode") + "\n"
