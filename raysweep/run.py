"""`python -m raysweep.run SPACE.yaml`: a sweep from its search space to its table. The same command again carries
on. With `--plan`: what it would cost, and nothing is run."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from raysweep import drawing
from raysweep.command import add_storage, guarded
from raysweep.errors import UserError
from raysweep.plan import Plan
from raysweep.profile import PROFILES
from raysweep.space import Space, load


def main(arguments: list[str] | None = None) -> int:
    """Run or plan a sweep; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    command = parser()
    options = command.parse_args(arguments)
    for name in ("svg", "price_per_gpu_hour"):
        if getattr(options, name) is not None and not options.plan:
            command.error(f"--{name.replace('_', '-')} belongs to --plan")
    return guarded(_run, options)


def _run(options: argparse.Namespace, console: Console) -> int:
    spaces = load_all(options.space, options.profile, options.set)
    if options.plan:
        gc.disable()  # a plan is many small things that all stay: looking through them takes a third of the time
        try:
            show_plan(spaces, options)
        finally:
            gc.enable()
        return 0
    from raysweep.sweep import sweep

    return sweep(spaces, options, console)


def show_plan(spaces: list[Space], options: argparse.Namespace) -> None:
    """Draw the tree and its cost in the terminal, or print it as JSON, and write the SVG.

    Raises:
        UserError: the SVG cannot be written.
    """
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


def load_all(paths: list[str], profile: str, overrides: list[str]) -> list[Space]:
    """Several search spaces for one plan.

    Raises:
        UserError: one is wrong, two are the same, or they want to be launched differently.
    """
    spaces = [load(Path(path), profile, overrides) for path in paths]
    for number, space in enumerate(spaces):
        for other in range(number):
            if space.id == spaces[other].id:
                raise UserError(f"{paths[number]}: the same space as {paths[other]}; give it once")
            mine, theirs = space.launch.model_dump(), spaces[other].launch.model_dump()
            for key in sorted(set(mine) - {"concurrent_trials"}):
                if mine[key] != theirs[key]:
                    raise UserError(
                        f"{paths[number]}: launch.{key} is {mine[key]} and {theirs[key]} in {paths[other]}; "
                        f"they share their workers, so give one: --set launch.{key}=VALUE"
                    )
    return spaces


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError
    return share


_share.__name__ = "share between 0 and 1"  # argparse names the type where a value is wrong


def _price(text: str) -> float:
    price = float(text)
    if not 0 <= price < float("inf"):
        raise ValueError
    return price


_price.__name__ = "price"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="python -m raysweep.run", description=__doc__)
    found.add_argument("space", nargs="+", help="search spaces, e.g. search_spaces/table5.yaml; several share work")
    found.add_argument("--profile", default="cluster", help=f"the size: {', '.join(PROFILES)} (default: cluster)")
    found.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the space")
    add_storage(found, "folder or URI for checkpoints")
    found.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or None,
        metavar="URI",
        help="MLflow (default: $MLFLOW_TRACKING_URI, or else a SQLite file in the storage)",
    )
    found.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        help="a Ray cluster, `auto` for this machine's, `local` for none (default: $RAY_ADDRESS, or else local)",
    )
    found.add_argument(
        "--verify-sharing",
        type=_share,
        default=0.0,
        metavar="P",
        help="train this share of the stretches a second time, uncut, and compare bits (default: 0)",
    )
    found.add_argument("--extend", action="store_true", help="the space has changed: go on with its study's trials")
    found.add_argument("--plan", action="store_true", help="draw what would be trained and what it costs; run nothing")
    found.add_argument("--svg", type=Path, metavar="FILE", help="with --plan: the drawing as a picture")
    found.add_argument(
        "--price-per-gpu-hour", type=_price, metavar="X", help="with --plan: the cost in money, of any currency"
    )
    found.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return found


if __name__ == "__main__":
    sys.exit(main())
