"""`raysweep doctor`: check a running cluster and say how to repair it.

With `--cluster FILE`, check a file that brings up a cluster instead.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from rich.console import Console

from raysweep.cluster import checkup
from raysweep.cluster.cluster_file import faults
from raysweep.commands.common import Parser, add_storage, guarded
from raysweep.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Check a cluster or a file; returns the exit code: 0 no fault, 1 a fault, 2 the user's mistake."""
    return guarded(_examine, parser().parse_args(arguments))


def _examine(options: argparse.Namespace, console: Console) -> int:
    if options.cluster:
        if missing := faults(options.cluster):
            raise UserError("\n".join(missing))
        Console().print(f"{options.cluster}: nothing is missing", highlight=False, soft_wrap=True)
        return 0
    checks = checkup.examine(options.address, options.storage)
    if options.json:
        print(json.dumps([check._asdict() for check in checks]))
    else:
        Console().print(checkup.table(checks))
    return int(any(check.state == "wrong" for check in checks))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep doctor", description=__doc__)
    parser.add_argument("--cluster", type=Path, metavar="FILE", help="check this file, which brings up a cluster")
    address = os.environ.get("RAY_ADDRESS") or "auto"
    parser.add_argument(
        "--address", default=address, help="address of the cluster (default: $RAY_ADDRESS, or else auto)"
    )
    add_storage(parser, "storage that all nodes must reach")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser
