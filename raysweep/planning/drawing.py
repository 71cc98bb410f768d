"""A plan for people: a folded tree and a table of costs in the terminal, the same as one SVG."""

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
from raysweep.planning.collapse import Fold, fold
from raysweep.planning.plan import Cost, Plan
from raysweep.svg import finish, sheet, write

MOST = 40  # roots to draw; what is alike is one of them
COLOURS = {
    "none": "#8d99a6",
    "self_guided": "#2f6fde",
    "vae_align": "#e8871e",
    "repa": "#2a9d5c",
    "sra": "#8e5bd0",
    "layersync": "#c2417c",
    "dispersive": "#0aa3a3",
}
WAYS = {
    "together": "shared",
    "by_hand": "alone, teachers once by hand",
    "apart": "alone, each its own teacher",
}
WIDTH, LEFT, ROW, MARGIN = 1080, 330, 24, 20  # pixels


def _figure(value: float) -> str:
    return short(value) if value >= 1e5 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def terminal(plan: Plan, price_per_gpu_hour: float | None) -> Iterator[RenderableType]:
    """The tree, the table, and what they rest on."""
    roots = fold(plan.segments)
    tree = Branches(Text(_title(plan), style="bold"))
    for root in roots[:MOST]:
        _grow(tree, root)
    if len(roots) > MOST:
        tree.add(f"… {len(roots) - MOST} more kinds of {sum(root.count for root in roots[MOST:])} runs")
    yield tree
    yield _table(plan, price_per_gpu_hour)
    yield Text("\n".join(_remarks(plan)), style="dim")


def svg(plan: Plan, price_per_gpu_hour: float | None) -> str:
    """The same as a picture: a row for each kind of run, thicker where more are alike, then a bar for each cost."""
    roots = fold(plan.segments)
    bars: list[tuple[Fold, int]] = []
    row = 0
    for root in roots[:MOST]:
        row = _place(root, row, bars)
    costs = [(f"{name}: {told}", cost) for name, told, cost in _costs(plan)]
    below = MARGIN * 4 + ROW * row
    height = below + ROW * (len(costs) + 3 + len(_remarks(plan)))
    picture = sheet(WIDTH, height)
    write(picture, MARGIN, MARGIN + 6, _title(plan), size=15, weight="bold")
    longest = max((segment.end for segment in plan.segments), default=1)
    _axis(picture, longest, row)
    for folded, place in bars:
        _draw(picture, folded, place, longest)
    if len(roots) > MOST:
        write(picture, MARGIN, below - 8, f"… and {len(roots) - MOST} more kinds")
    most = max(cost.steps for _, cost in costs) or 1
    for number, (told, cost) in enumerate(costs):
        y = below + ROW * (number + 1)
        width = (WIDTH - LEFT - MARGIN - 380) * cost.steps / most
        colour = "#2f6fde" if "shared" in told else "#c3ccd6"
        write(picture, MARGIN, y + 12, told)
        ET.SubElement(picture, "rect", x=str(LEFT), y=str(y), width=f"{max(1.0, width):.1f}", height="15", fill=colour)
        write(picture, LEFT + width + 8, y + 12, ", ".join(_words(cost, price_per_gpu_hour)))
    for number, remark in enumerate(_remarks(plan)):
        write(picture, MARGIN, below + ROW * (len(costs) + 2 + number), remark, size=11, colour="#66717d")
    return finish(picture)


def _title(plan: Plan) -> str:
    names = " + ".join(space.study for space in plan.spaces)
    steps = short(plan.grid.together.steps)
    return (
        f"{names}: {len(plan.trials)} configurations, {len(plan.segments)} stages, {steps} steps, "
        f"{short(plan.critical_path)} of them one after another"
    )


def _costs(plan: Plan) -> Iterator[tuple[str, str, Cost]]:
    for name, costs in (("all to their ends", plan.grid), (f"{plan.schedulers}, expected", plan.expected)):
        if costs:
            yield from ((name, told, getattr(costs, way)) for way, told in WAYS.items())


def _words(cost: Cost, price_per_gpu_hour: float | None) -> list[str]:
    words = [
        f"{short(cost.steps)} steps",
        f"{_figure(cost.gpu_hours)} GPU-hours",
        f"{_figure(cost.checkpoints_gib)} GiB",
    ]
    return words + (
        [f"{_figure(cost.gpu_hours * price_per_gpu_hour)} to pay"] if price_per_gpu_hour is not None else []
    )


def _table(plan: Plan, price_per_gpu_hour: float | None) -> Table:
    table = Table(title="What it costs", title_justify="left")
    table.add_column("", no_wrap=True)
    for name in ("steps", "GPU-h", "(probes)", "ckpts", "GiB", "price"):
        if name != "price" or price_per_gpu_hour is not None:
            table.add_column(name, justify="right")
    last = ""
    for name, told, cost in _costs(plan):
        if name != last:
            table.add_section()
            table.add_row(name, style="bold")
            last = name
        cells = [short(cost.steps), _figure(cost.gpu_hours), _figure(cost.probes_gpu_s / 3600)]
        cells += [f"{cost.checkpoints:,.0f}", _figure(cost.checkpoints_gib)]
        if price_per_gpu_hour is not None:
            cells.append(_figure(cost.gpu_hours * price_per_gpu_hour))
        table.add_row(f"  {told}", *cells)
    return table


def _remarks(plan: Plan) -> list[str]:
    expected = [f"{plan.schedulers}: {plan.expected.assumed}"] if plan.expected else []
    return [*plan.notes, *expected, *price.ASSUMED]


def _told(folded: Fold) -> str:
    told = f"{folded.count} × {folded.kind}" if folded.count > 1 else folded.kind
    if folded.taught_by:
        told += f" by {folded.taught_by[0]} at {short(folded.taught_by[1])}"
    return told


def _grow(tree: Branches, folded: Fold) -> None:
    text = Text(_told(folded), style=COLOURS.get(folded.kind, ""))
    text.append(f"  {short(folded.begin)} → {short(folded.end)}", style="default")
    if folded.teaches:
        text.append(f"  teaches at {', '.join(map(short, folded.teaches))}", style="default")
    branch = tree.add(text)
    for child in folded.children:
        _grow(branch, child)


# --- the picture


def _place(folded: Fold, row: int, bars: list[tuple[Fold, int]]) -> int:
    """Give a run and what follows it their rows, the first that follows its own; returns the next free one."""
    bars.append((folded, row))
    free = row
    for child in folded.children:
        free = _place(child, free, bars)
    return max(free, row + 1)


def _x(step: int, longest: int) -> float:
    return LEFT + (WIDTH - LEFT - MARGIN) * step / longest


def _y(row: int) -> float:
    return MARGIN * 3 + ROW * row + ROW / 2


def _axis(picture: ET.Element, longest: int, rows: int) -> None:
    apart = 10 ** math.floor(math.log10(longest)) if longest > 1 else 1
    if longest / apart > 8:
        apart *= 2
    for step in range(0, longest + 1, apart):
        x = f"{_x(step, longest):.1f}"
        ET.SubElement(
            picture, "line", x1=x, x2=x, y1=str(MARGIN * 3 - 4), y2=f"{_y(rows) - ROW / 2:.1f}", stroke="#e4e8ec"
        )
        write(picture, float(x), MARGIN * 3 - 8, short(step), size=11, colour="#66717d", anchor="middle")


def _draw(picture: ET.Element, folded: Fold, row: int, longest: int) -> None:
    left, right, y = _x(folded.begin, longest), _x(folded.end, longest), _y(row)
    thick = min(17.0, 6 + 2.2 * math.log2(folded.count))
    bar = ET.SubElement(picture, "rect", x=f"{left:.1f}", y=f"{y - thick / 2:.1f}", height=f"{thick:.1f}")
    bar.set("width", f"{right - left:.1f}")
    bar.set("fill", COLOURS.get(folded.kind, "#444444"))
    publishes = ", ".join(map(short, folded.ends))
    ET.SubElement(bar, "title").text = f"{_told(folded)}: publishes at {publishes}; trials through it: {folded.users}"
    for end in folded.ends[:-1]:
        x = f"{_x(end, longest):.1f}"
        ET.SubElement(picture, "line", x1=x, x2=x, y1=f"{y - thick / 2:.1f}", y2=f"{y + thick / 2:.1f}", stroke="white")
    for end in folded.teaches:
        at = _x(end, longest)
        ET.SubElement(
            picture, "path", d=f"M{at:.1f} {y - 7:.1f} l5 7 l-5 7 l-5 -7 z", fill="white", stroke=COLOURS[folded.kind]
        )
    if folded.begin == 0:
        write(picture, MARGIN, y + 4, _told(folded))
    for child_row, child in _rows_below(folded, row):
        if child_row != row:
            ET.SubElement(
                picture,
                "line",
                x1=f"{right:.1f}",
                x2=f"{right:.1f}",
                y1=f"{y:.1f}",
                y2=f"{_y(child_row):.1f}",
                stroke=COLOURS.get(child.kind, "#444444"),
            )


def _rows_below(folded: Fold, row: int) -> Iterator[tuple[int, Fold]]:
    for child in folded.children:
        yield row, child
        row = _place(child, row, [])
