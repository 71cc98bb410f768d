"""What commands share: common options, numeric option types, and exit codes."""

from __future__ import annotations

import argparse
import math
import os
import traceback
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console

from raysweep.errors import SweepError, UserError
from raysweep.space.profile import PROFILES
from trainables.errors import one_line
from trainables.redaction import public


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line, without argparse's usage text before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, public(f"{self.prog}: {message}\n"))


def add_storage(parser: argparse.ArgumentParser, meaning: str) -> None:
    """`--storage`. The files that bring up a cluster set its default, RAYSWEEP_STORAGE, on every node."""
    default = os.environ.get("RAYSWEEP_STORAGE") or "runs"
    parser.add_argument(
        "--storage", default=default, metavar="URI", help=f"{meaning} (default: $RAYSWEEP_STORAGE, or else runs)"
    )


def add_spaces(parser: argparse.ArgumentParser) -> None:
    """The search spaces and the options that change them."""
    parser.add_argument(
        "space", nargs="+", help="search spaces, e.g. search_spaces/table5.yaml; several share their training"
    )
    parser.add_argument(
        "--profile", default="cluster", help=f"size of the sweep: {', '.join(PROFILES)} (default: cluster)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a key of the space, e.g. search.trials=30; may be given again",
    )


def add_tracking_uri(parser: argparse.ArgumentParser) -> None:
    """`--tracking-uri`."""
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or None,
        metavar="URI",
        help="MLflow (default: $MLFLOW_TRACKING_URI, or else a SQLite file in the storage)",
    )


def number_type(
    low: float = -math.inf, high: float = math.inf, kind: type[int] | type[float] = float
) -> Callable[[str], float]:
    """A type for argparse: a finite number from `low` to `high`. For other values argparse says what is allowed."""
    expected = "a whole number" if kind is int else "a number"
    if not math.isinf(low):
        expected += f" of {low:g} or more" if math.isinf(high) else f" from {low:g} to {high:g}"

    def parse(text: str) -> float:
        try:
            number = kind(text)
        except ValueError:
            number = math.nan
        if not low <= number <= high or math.isinf(number):
            raise argparse.ArgumentTypeError(f"'{text}'; give {expected}")
        return number

    return parse


def guarded(command: Callable[[argparse.Namespace, Console], int | None], options: argparse.Namespace) -> int:
    """Run a command and return its exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted.

    An expected failure is printed as one line, without a traceback; so is a file or storage that cannot be used. Any
    other failure is a fault of ours, whose traceback is printed without secrets.

    The command gets a console on stderr. With `--json` that console does not count as a terminal: `ray exec` merges
    stderr into stdout, where a live table would mix with the JSON.
    """
    console = Console(stderr=True, force_terminal=False if getattr(options, "json", False) else None)
    try:
        return command(options, console) or 0
    except (UserError, SweepError, OSError) as error:
        message = public(one_line(error)) if isinstance(error, OSError) else str(error)
        console.print(message, style="red", highlight=False, soft_wrap=True, markup=False)
        return 1 if isinstance(error, SweepError) else 2
    except Exception:
        console.print(public(traceback.format_exc()), highlight=False, soft_wrap=True, markup=False)
        return 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. Finished work is kept; run the same command again to continue.", highlight=False)
        return 130
