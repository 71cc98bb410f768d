"""What all commands have in common: how they end."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from raysweep.errors import SweepError, UserError
from raysweep.uris import public


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
