"""`raysweep run SPACE.yaml…`: a sweep from its search spaces to its tables. The same command again carries on.

With `--plan` it shows what the sweep would train and cost, and runs nothing: the same as `raysweep plan`.
"""

from __future__ import annotations

import argparse
import os

from rich.console import Console

from raysweep.commands.common import add_spaces, add_storage, guarded, number_type
from raysweep.commands.plan import add_plan_options, show_plan
from raysweep.space.space import load_all


def main(arguments: list[str] | None = None) -> int:
    """Run or plan a sweep; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    command = parser()
    options = command.parse_args(arguments)
    for name in ("svg", "price_per_gpu_hour"):
        if getattr(options, name) is not None and not options.plan:
            command.error(f"--{name.replace('_', '-')} belongs to --plan")
    return guarded(show_plan if options.plan else _run, options)


def _run(options: argparse.Namespace, console: Console) -> int:
    spaces = load_all(options.space, options.profile, options.set)
    from raysweep.driver import sweep  # brings in Ray, which neither a plan nor a wrong space needs

    return sweep(spaces, options, console)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="raysweep run", description=__doc__)
    add_spaces(parser)
    add_storage(parser, "folder or URI for checkpoints")
    parser.add_argument(
        "--tracking-uri",
        default=os.environ.get("MLFLOW_TRACKING_URI") or None,
        metavar="URI",
        help="MLflow (default: $MLFLOW_TRACKING_URI, or else a SQLite file in the storage)",
    )
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        help="a Ray cluster, `auto` for this machine's, `local` for none (default: $RAY_ADDRESS, or else local)",
    )
    parser.add_argument(
        "--verify-sharing",
        type=number_type("share between 0 and 1", 0, 1),
        default=0.0,
        metavar="P",
        help="train this share of the segments a second time, without a stop, and compare bits (default: 0)",
    )
    parser.add_argument("--extend", action="store_true", help="the space has changed: go on with its study's trials")
    parser.add_argument("--plan", action="store_true", help="show what would be trained and its cost; run nothing")
    add_plan_options(parser, "with --plan: ")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return parser
