"""What several commands share: options, types of numbers, and how a command ends."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable

from rich.console import Console

from raysweep.errors import SweepError, UserError
from raysweep.space.profile import PROFILES
from raysweep.uris import public


def add_storage(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--storage`. The nodes of a cluster know its default by RAYSWEEP_STORAGE."""
    default = os.environ.get("RAYSWEEP_STORAGE") or "runs"
    parser.add_argument(
        "--storage", default=default, metavar="URI", help=f"{meaning} (default: $RAYSWEEP_STORAGE, or else runs)"
    )


def add_spaces(parser: argparse.ArgumentParser) -> None:
    """The search spaces, and the options that change them."""
    parser.add_argument("space", nargs="+", help="search spaces, e.g. search_spaces/table5.yaml; several share work")
    parser.add_argument("--profile", default="cluster", help=f"the size: {', '.join(PROFILES)} (default: cluster)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the space")


def number_type(
    name: str, low: float, high: float = math.inf, kind: type[int] | type[float] = float
) -> Callable[[str], float]:
    """A type for argparse: a finite number from `low` to `high`. argparse shows `name` where a value is wrong."""

    def parse(text: str) -> float:
        number = kind(text)
        if not low <= number <= high or math.isinf(number):
            raise ValueError
        return number

    parse.__name__ = name
    return parse


def guarded(command: Callable[[argparse.Namespace, Console], int | None], options: argparse.Namespace) -> int:
    """Run a command and return its exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted.

    An expected failure is printed as one line, without a traceback. The console given to the command is stderr. With
    `--json` it counts as no terminal: `ray exec` merges stderr into stdout, and a live table would run into the JSON.
    """
    console = Console(stderr=True, force_terminal=False if getattr(options, "json", False) else None)
    try:
        return command(options, console) or 0
    except (UserError, SweepError) as error:
        console.print(public(str(error)), style="red", highlight=False, soft_wrap=True, markup=False)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. What is finished is kept; the same command carries on.", highlight=False)
        return 130
