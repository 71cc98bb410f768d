"""`raysweep plan SPACE.yaml…`: show what a sweep would train and what that would cost.

Nothing is trained. Needs no GPU, no Ray and no data.
"""

from __future__ import annotations

import argparse
import gc
import json
from pathlib import Path

from rich.console import Console

from raysweep.commands.common import Parser, add_spaces, guarded, number_type
from raysweep.errors import UserError
from raysweep.planning import drawing
from raysweep.planning.plan import Plan
from raysweep.space.space import load_all


def main(arguments: list[str] | None = None) -> int:
    """Plan a sweep; returns the exit code: 0 done, 2 the user's mistake."""
    return guarded(show_plan, parser().parse_args(arguments))


def show_plan(options: argparse.Namespace, console: Console) -> None:
    """Print the tree of segments and its cost, or the plan as JSON; write the SVG if it is asked for.

    Raises:
        UserError: a space is wrong, or the SVG cannot be written.
    """
    spaces = load_all(options.space, options.profile, options.set)
    gc.disable()  # a plan keeps all of its many small objects, so collecting would waste a third of the time
    try:
        plan, price = Plan(spaces), options.price_per_gpu_hour
        if options.svg:
            try:
                options.svg.write_text(drawing.svg(plan, price), encoding="utf-8")
            except OSError as error:
                raise UserError(f"--svg {options.svg}: cannot be written ({error.strerror})") from None
        if options.json:
            print(json.dumps(plan.as_dict(price)))
            return
        out = Console()
        for part in drawing.terminal(plan, price):
            out.print(part)
    finally:
        gc.enable()


def add_plan_options(parser: argparse.ArgumentParser, condition: str = "") -> None:
    """Add the options of a plan, which `raysweep run --plan` takes too. The help of each begins with `condition`."""
    parser.add_argument("--svg", type=Path, metavar="FILE", help=f"{condition}also write the plan as an SVG picture")
    parser.add_argument(
        "--price-per-gpu-hour",
        type=number_type(0),
        metavar="X",
        help=f"{condition}also show the cost in money, in any currency",
    )


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep plan", description=__doc__)
    add_spaces(parser)
    add_plan_options(parser)
    parser.add_argument("--json", action="store_true", help="print the plan as one JSON object")
    return parser
