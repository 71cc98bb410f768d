"""`python -m raysweep.doctor`: what is wrong with the cluster that runs, and how to put it right.

With `--cluster FILE`: what is missing in a file that brings one up. With `--model NAME`: what a backbone costs."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from rich.console import Console

from raysweep import checkup, model_cost
from raysweep.clusterfile import faults
from raysweep.command import add_storage, guarded
from raysweep.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Examine; returns the exit code: 0 all is well, 1 something is wrong, 2 the user's mistake."""
    return guarded(_examine, parser().parse_args(arguments))


def _examine(options: argparse.Namespace, console: Console) -> int:
    if options.model:
        model_cost.show(options)
        return 0
    if options.cluster:
        if found := faults(options.cluster):
            raise UserError("\n".join(found))
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
    found = argparse.ArgumentParser(prog="python -m raysweep.doctor", description=__doc__)
    subject = found.add_mutually_exclusive_group()
    subject.add_argument("--cluster", type=Path, metavar="FILE", help="a file that brings up a cluster")
    subject.add_argument("--model", metavar="NAME", help="a backbone, e.g. SiT-XL/2")
    address = os.environ.get("RAY_ADDRESS") or "auto"
    found.add_argument("--address", default=address, help="of the cluster (default: $RAY_ADDRESS, or else auto)")
    add_storage(found, "the store that its nodes are to share")
    found.add_argument("--latent", metavar="CxHxW", help="latents (default: 4x32x32, LightningDiT's 32x16x16)")
    found.add_argument("--classes", type=int, default=1000, metavar="N", help="how many classes (default: 1000)")
    found.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return found


if __name__ == "__main__":
    sys.exit(main())
