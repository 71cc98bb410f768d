"""Draws a plan: the collapsed tree and a table of costs in the terminal, or both as one SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from xml.etree import ElementTree as ET

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text
from rich.tree import Tree as Branches

from raysweep.formats import short
from raysweep.planning import price
from raysweep.planning.collapse import SegmentGroup, collapse
from raysweep.planning.plan import Cost, Plan
from raysweep.svg import QUIET, add_tooltip, finish, line, path, rectangle, sheet, write

MOST = 40  # the most root groups that are drawn
COLOURS = {
    "none": "#8d99a6",
    "self_guided": "#2f6fde",
    "vae_align": "#e8871e",
    "repa": "#2a9d5c",
    "sra": "#8e5bd0",
    "layersync": "#c2417c",
    "dispersive": "#0aa3a3",
}
OTHER = "#444444"  # the colour of a method that is not in COLOURS
WAYS = {
    "together": "shared",
    "teachers_by_hand": "separate, teachers only once",
    "apart": "separate, with own teachers",
}
WIDTH, LEFT, ROW, MARGIN = 1080, 330, 24, 20  # pixels


def terminal(plan: Plan, price_per_gpu_hour: float | None) -> Iterator[RenderableType]:
    """The tree, the table of costs, and the assumptions behind them."""
    roots = collapse(plan.segments)
    tree = Branches(Text(_title(plan), style="bold"))
    for root in roots[:MOST]:
        _grow(tree, root)
    if len(roots) > MOST:
        tree.add(f"… {len(roots) - MOST} more kinds of {sum(root.count for root in roots[MOST:])} runs")
    yield tree
    yield _table(plan, price_per_gpu_hour)
    yield Text("\n".join(_remarks(plan)), style="dim")


def svg(plan: Plan, price_per_gpu_hour: float | None) -> str:
    """The plan as an SVG: a row for each group of equal chains (thicker for more of them), then a bar for each cost."""
    roots = collapse(plan.segments)
    rows: list[tuple[SegmentGroup, int]] = []
    count = 0
    for root in roots[:MOST]:
        count = _place(root, count, rows)
    costs, remarks = list(_costs(plan)), _remarks(plan)
    below = MARGIN * 4 + ROW * count
    picture = sheet(WIDTH, below + ROW * (len(costs) + 3 + len(remarks)))
    write(picture, MARGIN, MARGIN + 6, _title(plan), size=15, weight="bold")
    longest = max((segment.end for segment in plan.segments), default=1)
    _axis(picture, longest, count)
    for group, row in rows:
        _draw(picture, group, row, longest)
    if len(roots) > MOST:
        write(picture, MARGIN, below - 8, f"… and {len(roots) - MOST} more kinds")
    most = max(cost.steps for _, _, cost in costs) or 1
    for number, (name, way, cost) in enumerate(costs, start=1):
        y = below + ROW * number
        width = (WIDTH - LEFT - MARGIN - 380) * cost.steps / most
        write(picture, MARGIN, y + 12, f"{name}: {way}")
        rectangle(picture, (LEFT, y), max(1.0, width), 15, COLOURS["self_guided"] if way == "shared" else "#c3ccd6")
        write(picture, LEFT + width + 8, y + 12, ", ".join(_figures(cost, price_per_gpu_hour)))
    for number, remark in enumerate(remarks, start=len(costs) + 2):
        write(picture, MARGIN, below + ROW * number, remark, size=11, colour=QUIET)
    return finish(picture)


def _figure(value: float) -> str:
    return short(value) if value >= 1e5 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _title(plan: Plan) -> str:
    names = " + ".join(space.study for space in plan.spaces)
    steps = short(plan.grid.together.steps)
    return (
        f"{names}: {len(plan.configurations)} configurations, {len(plan.segments)} segments, {steps} steps, "
        f"{short(plan.critical_path)} of them one after another"
    )


def _costs(plan: Plan) -> Iterator[tuple[str, str, Cost]]:
    """(what is trained, how it is shared, its cost)."""
    for name, costs in (("all to their ends", plan.grid), (f"{plan.schedulers}, expected", plan.expected)):
        if costs:
            yield from ((name, way, getattr(costs, attribute)) for attribute, way in WAYS.items())


def _figures(cost: Cost, price_per_gpu_hour: float | None) -> list[str]:
    figures = [
        f"{short(cost.steps)} steps",
        f"{_figure(cost.gpu_hours)} GPU-hours",
        f"{_figure(cost.checkpoints_gib)} GiB",
    ]
    money = [] if price_per_gpu_hour is None else [f"{_figure(cost.gpu_hours * price_per_gpu_hour)} to pay"]
    return figures + money


def _table(plan: Plan, price_per_gpu_hour: float | None) -> Table:
    table = Table(title="What it costs", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("steps", "GPU-h", "(probes)", "ckpts", "GiB", "price"):
        if name != "price" or price_per_gpu_hour is not None:
            table.add_column(name, justify="right")
    last = ""
    for name, way, cost in _costs(plan):
        if name != last:
            table.add_section()
            table.add_row(name, style="bold")
            last = name
        cells = [short(cost.steps), _figure(cost.gpu_hours), _figure(cost.probes_gpu_s / 3600)]
        cells += [f"{cost.checkpoints:,.0f}", _figure(cost.checkpoints_gib)]
        if price_per_gpu_hour is not None:
            cells.append(_figure(cost.gpu_hours * price_per_gpu_hour))
        table.add_row(f"  {way}", *cells)
    return table


def _remarks(plan: Plan) -> list[str]:
    expected = [f"{plan.schedulers}: {plan.expected.assumed}"] if plan.expected else []
    return [*plan.notes, *expected, *price.ASSUMED]


def _label(group: SegmentGroup) -> str:
    label = f"{group.count} × {group.kind}" if group.count > 1 else group.kind
    if group.taught_by:
        label += f" by {group.taught_by[0]} at {short(group.taught_by[1])}"
    return label


def _grow(tree: Branches, group: SegmentGroup) -> None:
    text = Text(_label(group), style=COLOURS.get(group.kind, ""))
    text.append(f"  {short(group.begin)} → {short(group.end)}", style="default")
    if group.teaches:
        text.append(f"  teaches at {', '.join(map(short, group.teaches))}", style="default")
    branch = tree.add(text)
    for child in group.children:
        _grow(branch, child)


# --- the picture


def _place(group: SegmentGroup, row: int, rows: list[tuple[SegmentGroup, int]]) -> int:
    """Give a group and its children rows; returns the next free one. The first child continues in its parent's row."""
    rows.append((group, row))
    free = row
    for child in group.children:
        free = _place(child, free, rows)
    return max(free, row + 1)


def _x(step: int, longest: int) -> float:
    return LEFT + (WIDTH - LEFT - MARGIN) * step / longest


def _y(row: int) -> float:
    return MARGIN * 3 + ROW * row + ROW / 2


def _axis(picture: ET.Element, longest: int, rows: int) -> None:
    spacing = 10 ** math.floor(math.log10(longest)) if longest > 1 else 1
    if longest / spacing > 8:
        spacing *= 2
    for step in range(0, longest + 1, spacing):
        x = _x(step, longest)
        line(picture, (x, MARGIN * 3 - 4), (x, _y(rows) - ROW / 2), "#e4e8ec")
        write(picture, x, MARGIN * 3 - 8, short(step), size=11, colour=QUIET, anchor="middle")


def _draw(picture: ET.Element, group: SegmentGroup, row: int, longest: int) -> None:
    left, right, y = _x(group.begin, longest), _x(group.end, longest), _y(row)
    thickness = min(17.0, 6 + 2.2 * math.log2(group.count))
    colour = COLOURS.get(group.kind, OTHER)
    bar = rectangle(picture, (left, y - thickness / 2), right - left, thickness, colour)
    ends = ", ".join(map(short, group.ends))
    add_tooltip(bar, f"{_label(group)}: checkpoints at {ends}; trials through it: {group.users}")
    for end in group.ends[:-1]:
        x = _x(end, longest)
        line(picture, (x, y - thickness / 2), (x, y + thickness / 2), "white")
    for end in group.teaches:
        diamond = f"M{_x(end, longest):.1f} {y - 7:.1f} l5 7 l-5 7 l-5 -7 z"
        path(picture, diamond, colour, fill="white")
    if group.begin == 0:
        write(picture, MARGIN, y + 4, _label(group))
    for child_row, child in _child_rows(group, row):
        if child_row != row:
            line(picture, (right, y), (right, _y(child_row)), COLOURS.get(child.kind, OTHER))


def _child_rows(group: SegmentGroup, row: int) -> Iterator[tuple[int, SegmentGroup]]:
    for child in group.children:
        yield row, child
        row = _place(child, row, [])
