"""Every ratio on this machine, side by side, in one table: `make bench`, under 15 minutes on two cores.

    python benchmarks/all.py [--only NAME …]

Each line is one of the other scripts at sizes that fit into its share of the time; run by itself with its own defaults
it measures longer, larger and, where there is one, on a GPU. What each compares its docstring says. A script that fails
or outlasts its share is told as such, and the command ends with 1.
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
Told = dict[str, Any]
Lines = Iterator[tuple[str, str]]


@dataclass(frozen=True)
class Part:
    """A script with its arguments, the seconds it may take, and what is shown of its last line."""

    command: str
    seconds: float
    lines: Callable[[Told], Lines]


def _step(told: Told) -> Lines:
    for name, rows in told.items():
        for row in rows:
            what = f"{name}: {row['row']}"
            if row.get("x_reference", 1.0) != 1.0:
                yield what, f"{row['x_reference']:.2f} x REPA's step, {row['of_plain']:.2f} plain steps"
            elif "share" in row:
                yield what, f"{row['share']:.1e} of themselves, of REPA's"


def _packing(told: Told) -> Lines:
    for name, ways in told.items():
        for way, ratio in ways.items():
            yield f"several {name}: {way}", f"{ratio:.2f} x one after the other"


def _sampling(told: Told) -> Lines:
    for name, found in told["samplers"].items():
        (rate, _), (plain, compiled) = found["samples_per_s"], found["x"]
        yield f"samples: {name}", f"{rate:.1f}/s, {plain:.1f} x the SDE; compiled {compiled / plain:.2f} x plain"


def _publishing(told: Told) -> Lines:
    for way, found in told.items():
        yield f"checkpoints: {way}", f"{found['share_at_600_s']:.2%} of the time at one every 600 s"


def _tax(told: Told) -> Lines:
    yield "the platform, each trial", f"{told['per_trial_s']:.2f} s"
    yield "the platform, each sweep", f"{told['per_sweep_s']:.1f} s, first step after {told['first_step_s']:.1f} s"


def _growth(told: Told) -> Lines:
    for segment, exponent in told["exponents"].items():
        if exponent is not None:
            yield f"growth: {segment}", f"size^{exponent:.2f}"


def _scaling(told: Told) -> Lines:
    for ranks, found in told["ranks"].items():
        yield f"ranks: {ranks}", f"{found['steps_per_s']:.2f} steps/s, {found['efficiency']:.0%}"


PARTS = {
    "step": Part(
        f"step.py {TINY} --batch 16 --precision fp32 --projector 256 --threads 2 --steps 8 --repeats 7", 300, _step
    ),
    "packing": Part(f"packing.py {TINY} --batch 16 --precision fp32 --projector 256 --steps 12", 180, _packing),
    "sampling": Part(f"sampling.py {TINY} --batches 18 36 72 --threads 2 --repeats 2", 150, _sampling),
    "publishing": Part("publishing.py --every-s 4 --seconds 12", 240, _publishing),
    "growth": Part("growth.py --trials 10 100 1000 --batches 64 256 1024 --ranks", 90, _growth),
    "scaling": Part("scaling.py --ranks 1 2 --repeats 1", 150, _scaling),
    "tax": Part("tax.py --trials 2 6 --plain 0", 180, _tax),
}


def run(part: Part) -> tuple[Told | None, str, float]:
    """What a script told in its last line; else what went wrong; and the seconds it took."""
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
    """Run all in turn, then print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME")
    options = parser.parse_args()
    table = Table("what", "measured", title=f"{os.cpu_count()} cores")
    failed = False
    with Progress(transient=True) as progress:
        task = progress.add_task("", total=len(options.only))
        for name in options.only:
            progress.update(task, description=PARTS[name].command)
            told, wrong, seconds = run(PARTS[name])
            failed |= told is None
            for what, measured in PARTS[name].lines(told) if told else [(name, wrong)]:
                table.add_row(what, measured)
            table.add_section()
            progress.update(task, advance=1)
            progress.console.print(f"{seconds:4.0f} s  {PARTS[name].command}", highlight=False)
    Console(width=max(110, Console().width)).print(table)
    sys.exit(failed)


if __name__ == "__main__":
    main()
