"""Every ratio on this machine, side by side, in one table: `make bench`, under 15 minutes on two cores.

    python benchmarks/all.py [--only NAME …]

Runs the other scripts at sizes that fit into the time. Run by itself, each script measures longer, at larger sizes, and
on a GPU where there is one; its docstring says what it compares. If a script fails or takes too long, the table says so
and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

HERE = Path(__file__).resolve().parent
TINY = "--backbone SiT-T/2 --latent 8 8"  # the laptop's backbone and latents
Result = dict[str, Any]
Lines = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """A script with its arguments, the seconds it may take, and the table rows made from its result."""

    command: str
    seconds: float
    lines: Callable[[Result], Lines]


def _step(result: Result) -> Lines:
    for name, rows in result.items():
        for row in rows:
            what = f"{name}: {row['row']}"
            if row.get("x_reference", 1.0) != 1.0:
                yield what, f"{row['x_reference']:.2f} x REPA's step, {row['of_plain']:.2f} plain steps"
            elif "share" in row:
                yield what, f"{row['share']:.1e} of themselves, of REPA's"


def _packing(result: Result) -> Lines:
    for name, ways in result.items():
        for way, ratio in ways.items():
            yield f"several {name}: {way}", f"{ratio:.2f} x one after the other"


def _sampling(result: Result) -> Lines:
    for name, row in result["samplers"].items():
        (rate, _), (plain, compiled) = row["samples_per_s"], row["x"]
        yield f"samples: {name}", f"{rate:.1f}/s, {plain:.1f} x the SDE; compiled {compiled / plain:.2f} x plain"


def _publishing(result: Result) -> Lines:
    for way, row in result.items():
        yield f"checkpoints: {way}", f"{row['share_at_600_s']:.2%} of the time at one every 600 s"


def _tax(result: Result) -> Lines:
    yield "the platform, each trial", f"{result['per_trial_s']:.2f} s"
    yield "the platform, each sweep", f"{result['per_sweep_s']:.1f} s, first step after {result['first_step_s']:.1f} s"


def _growth(result: Result) -> Lines:
    for segment, exponent in result["exponents"].items():
        if exponent is not None:
            yield f"growth: {segment}", f"size^{exponent:.2f}"


def _scaling(result: Result) -> Lines:
    for ranks, row in result["ranks"].items():
        yield f"ranks: {ranks}", f"{row['steps_per_s']:.2f} steps/s, {row['efficiency']:.0%}"


def _storage(result: Result) -> Lines:
    for what, row in result.items():
        yield f"storage: {what}", f"{row['calls']:.0f} calls, {row['seconds']:.2f} s at 30 ms a call"


PARTS = {
    "step": Part(
        f"step.py {TINY} --batch 16 --precision fp32 --projector 256 --threads 2 --steps 8 --repeats 7", 300, _step
    ),
    "packing": Part(f"packing.py {TINY} --batch 16 --precision fp32 --projector 256 --steps 12", 180, _packing),
    "sampling": Part(f"sampling.py {TINY} --batches 18 36 72 --threads 2 --repeats 2", 150, _sampling),
    "publishing": Part("publishing.py --every-s 4 --seconds 12", 240, _publishing),
    "growth": Part("growth.py --trials 10 100 1000 --batches 64 256 1024 --ranks", 90, _growth),
    "storage": Part("storage.py --trials 1000 --checkpoints 10000", 60, _storage),
    "scaling": Part("scaling.py --ranks 1 2 --repeats 1", 150, _scaling),
    "tax": Part("tax.py --trials 2 6 --plain 0", 180, _tax),
}


def run(part: Part) -> tuple[Result | None, str, float]:
    """Run a script; returns its result (JSON in its last line) or None, what went wrong, and the seconds it took."""
    script, *arguments = part.command.split()
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, str(HERE / script), *arguments],
            capture_output=True,
            text=True,
            env=env,
            timeout=part.seconds,
        )
    except subprocess.TimeoutExpired:
        return None, f"took longer than {part.seconds:.0f} s", part.seconds
    seconds = time.perf_counter() - began
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["failed"])[-1], seconds
    return json.loads(done.stdout.strip().splitlines()[-1]), "", seconds


def main() -> None:
    """Run all scripts one after another, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    options = parser.parse_args()
    table = Table("what", "measured", title=f"{os.cpu_count()} cores")
    failed = False
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(options.only))
        for name in options.only:
            progress.update(task, description=PARTS[name].command)
            result, wrong, seconds = run(PARTS[name])
            failed |= result is None
            for what, measured in PARTS[name].lines(result) if result else [(name, wrong)]:
                table.add_row(what, measured)
            table.add_section()
            progress.update(task, advance=1)
            progress.console.print(f"{seconds:4.0f} s  {PARTS[name].command}", highlight=False)
    Console(width=max(110, Console().width)).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
