"""What all commands have in common: how they end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable

from rich.console import Console

from raysweep.errors import SweepError, UserError
from raysweep.uris import public


def add_storage(parser: argparse.ArgumentParser, told: str) -> None:
    """`--storage`, of which a cluster's nodes know the default by RAYSWEEP_STORAGE."""
    default = os.environ.get("RAYSWEEP_STORAGE") or "runs"
    parser.add_argument(
        "--storage", default=default, metavar="URI", help=f"{told} (default: $RAYSWEEP_STORAGE, or else runs)"
    )


def guarded(command: Callable[[argparse.Namespace, Console], int | None], options: argparse.Namespace) -> int:
    """Run a command and return its exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted.

    What fails on purpose says so in one line, never in a traceback. The console given to it is the terminal's stderr.
    """
    console = Console(stderr=True)
    try:
        return command(options, console) or 0
    except (UserError, SweepError) as error:
        console.print(public(str(error)), style="red", highlight=False, soft_wrap=True, markup=False)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        console.print("\nInterrupted. What is finished is kept; the same command carries on.", highlight=False)
        return 130
