"""`raysweep run SPACE.yaml…`: train search spaces and write their tables. The same command continues a stopped sweep.

With `--plan`, show what the sweep would train and cost instead, like `raysweep plan`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
from typing import TYPE_CHECKING

from rich.console import Console

from raysweep.commands.common import Parser, add_spaces, add_storage, add_tracking_uri, guarded, number_type
from raysweep.commands.plan import add_plan_options, show_plan
from raysweep.space.space import load_all

if TYPE_CHECKING:
    from raysweep.driver import SweepResult


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
    from raysweep.driver import SweepOptions, run_sweep  # imports Ray, which neither a plan nor a wrong space needs

    where = SweepOptions(options.storage, options.address, options.tracking_uri, options.verify_sharing, options.extend)
    result = run_sweep(spaces, where, console)
    if options.json:
        print(json.dumps(result.as_dict()))
    else:
        _show(result, Console())
    return 0 if result.succeeded else 1


def _show(result: SweepResult, out: Console) -> None:
    """Print each study's table, best trial and files, then what concerns all studies."""
    from raysweep.report import report  # imports matplotlib and plotly, which a plan does not need

    for study in result.studies:
        report.show(study.study, study.summary, study.files, out)
    if len(result.studies) > 1:
        out.print(report.steps_line(result.steps))
    uri = result.tracking_uri
    ui = uri if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {shlex.quote(uri)}"
    out.print(f"MLflow: {ui}", highlight=False, soft_wrap=True, markup=False)
    if result.certificates:
        out.print(str(result.certificates))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep run", description=__doc__)
    add_spaces(parser)
    add_storage(parser, "folder or URI for checkpoints and results")
    add_tracking_uri(parser)
    parser.add_argument(
        "--address",
        default=os.environ.get("RAY_ADDRESS") or "local",
        help="address of a Ray cluster; `auto`: the one on this machine; `local`: start one (default: $RAY_ADDRESS, "
        "or else local)",
    )
    parser.add_argument(
        "--verify-sharing",
        type=number_type(0, 1),
        default=0.0,
        metavar="P",
        help="train this share of the segments again without sharing, and compare the bits (default: 0)",
    )
    parser.add_argument(
        "--extend", action="store_true", help="continue the study's trials although the space has changed"
    )
    parser.add_argument("--plan", action="store_true", help="show what would be trained and its cost; train nothing")
    add_plan_options(parser, "with --plan: ")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return parser
