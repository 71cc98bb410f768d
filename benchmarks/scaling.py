"""Steps per second on 1, 2 and 4 ranks, and the efficiency: the fraction of the ideal speed-up.

    python benchmarks/scaling.py [--ranks 1 2 4] [--batch 64] [--steps 40] [--repeats 3]
    python benchmarks/scaling.py --address auto --storage /shared/scaling --placement SPREAD --gpus 1

Trains the same run at the same global batch on each number of ranks, in lanes of raysweep. The numbers of ranks take
turns, so that compared rates are measured within minutes of each other. Losses are compared too. Efficiency is (rate
on n ranks) / (n x rate on the fewest). It is also given relative to the cores that exist: four ranks on two cores
cannot be faster than two.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from rich.console import Console
from rich.table import Table

from raysweep.store.store import Store

ROOT = Path(__file__).resolve().parent.parent


def measure(ranks: int, repeat: int, storage: str, options: argparse.Namespace) -> tuple[float, list[float]]:
    """Steps per second, and the losses."""
    trial = {"backbone": options.backbone, "iterations": options.steps, "batch_size": options.batch, "method": "none"}
    space = {
        "study": f"scaling{ranks}-{repeat}",
        "trial": trial | {"data": "emoji9", "horizontal_flip": False, "seed": repeat},
        "search": {"trials": 1, "rungs": [], "scheduler": "never"},
        "probe": {"detector": "effnet_lite0", "samples": 18, "sampler": "euler", "steps": 2, "batch_size": 18},
        "launch": {
            "workers": ranks,
            "gpus_per_worker": options.gpus,
            "cpus_per_worker": 1,
            "placement_strategy": options.placement,
        },
    }
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(space, file)
        file.flush()
        command = [sys.executable, "-m", "raysweep.run", file.name, "--address", options.address, "--json"]
        done = subprocess.run(
            [*command, "--storage", storage],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    (checkpoint,) = Store(storage).checkpoints()
    curve = [point["loss_diffusion"] for point in checkpoint.manifest.training.curve]
    return options.steps / checkpoint.manifest.training.seconds, curve


def main() -> None:
    """Measure, print, and exit with 1 where the losses differ by more than rounding."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--backbone", default="SiT-T/2")
    parser.add_argument("--address", default="local")
    parser.add_argument("--storage", help="a folder that all nodes see (default: a temporary one)")
    parser.add_argument("--placement", default="PACK")
    parser.add_argument("--gpus", type=float, default=0)
    options = parser.parse_args()
    rates: dict[int, list[float]] = {ranks: [] for ranks in options.ranks}
    apart = 0.0
    for repeat in range(options.repeats):
        losses = {}
        for ranks in options.ranks:
            with tempfile.TemporaryDirectory(dir=options.storage) as folder:
                rate, losses[ranks] = measure(ranks, repeat, folder, options)
            rates[ranks].append(rate)
        first = losses[options.ranks[0]]
        apart = max(apart, *(abs(a - b) / b for other in losses.values() for a, b in zip(other, first, strict=True)))
    cores = os.cpu_count() or 1
    table = Table(title=f"{options.backbone}, global batch {options.batch}, medians of {options.repeats}")
    for column in ("ranks", "steps/s", "images/s", "speed-up", "efficiency", f"of {cores} cores"):
        table.add_column(column, justify="right")
    fewest = options.ranks[0]
    base = statistics.median(rates[fewest])
    results = {}
    for ranks, measured in rates.items():
        rate = statistics.median(measured)
        speed_up = rate / base
        possible = ranks if options.gpus or options.address != "local" else min(ranks, cores)
        results[ranks] = {"steps_per_s": rate, "efficiency": speed_up * fewest / ranks}
        shares = f"{speed_up * fewest / ranks:.0%}", f"{speed_up * fewest / possible:.0%}"
        table.add_row(str(ranks), f"{rate:.2f}", f"{rate * options.batch:.0f}", f"{speed_up:.2f}", *shares)
    Console().print(table)
    print(f"losses differ by at most {apart:.1e} of themselves")
    print(json.dumps({"ranks": results, "losses_apart": apart}))
    sys.exit(apart > 1e-3)


if __name__ == "__main__":
    main()
