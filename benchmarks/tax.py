"""What the platform costs beside training and probing: until the first step, and for each trial.

    python benchmarks/tax.py [--trials 4 16] [--plain 3] [--address local] [--storage FOLDER]

Side by side in one run, two processes of one thread each:

* `raysweep`: two sweeps of the smoke profile, without pruning, of few and of more trials. Wall time less the seconds
  that training and probes took on the lane is the tax; what more trials add to it is the tax of a trial, and what is
  left is that of a sweep. The first step is the begin of the first committed segment.
* Of the first of them, without a second run: where its wall time goes, part by part, and the CPU time of each kind of
  process (`anatomy.py`).
* `nested`: a plain `ray.tune.Tuner` around a two-worker `TorchTrainer` that trains nothing, one trial after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

from anatomy import Piece, Processes, parts, pieces
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
NESTED = """
import sys, time, tempfile
import ray
from ray import tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

def trial(config):
    with tempfile.TemporaryDirectory() as folder:
        TorchTrainer(
            lambda: None, scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=folder)
        ).fit()
    tune.report({"end": time.time()})

ray.init(num_cpus=4, include_dashboard=True, log_to_driver=False)
with tempfile.TemporaryDirectory() as folder:
    results = tune.Tuner(
        tune.with_resources(trial, {"CPU": 0.1}),
        tune_config=tune.TuneConfig(num_samples=int(sys.argv[1]), max_concurrent_trials=1),
        run_config=tune.RunConfig(storage_path=folder, verbose=0),
    ).fit()
    ends = sorted(result.metrics["end"] for result in results)
print("seconds", (ends[-1] - ends[0]) / (len(ends) - 1))
"""


class Swept(NamedTuple):
    """A finished sweep: when its process began, its wall time, its JSON output, and what its lane did."""

    began: float
    wall_s: float
    output: dict[str, Any]
    work: list[Piece]
    processes: Processes

    @property
    def busy_s(self) -> float:
        """Seconds of training and probes."""
        return sum(piece.ended - piece.began for piece in self.work)

    @property
    def first_step_s(self) -> float:
        """Seconds until the first step."""
        return min(piece.began for piece in self.work if piece.kind == "train") - self.began


def sweep(trials: int, storage: Path, address: str) -> Swept:
    """Run one to its end."""
    arguments = ["--profile", "smoke", "--address", address, "--storage", str(storage), "--json"]
    arguments += ["--set", f"search.trials={trials}", "--set", "search.scheduler=never"]
    command = [sys.executable, "-m", "raysweep.run", "search_spaces/table5.yaml", *arguments]
    began, clock = time.time(), time.perf_counter()
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | QUIET, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        with Processes(process.pid) as processes:
            out, errors = process.communicate()
            wall_s = time.perf_counter() - clock
    if process.returncode:
        sys.exit(errors[-2000:])
    return Swept(began, wall_s, json.loads(out.splitlines()[-1]), pieces(storage), processes)


def show(swept: Swept) -> dict[str, float]:
    """Print where a sweep's time went; returns the parts of its wall time in seconds."""
    seconds_of = parts(swept.began, swept.wall_s, swept.output, swept.work)
    wall = Table("part", "seconds", title=f"{swept.wall_s:.1f} s from the first process to the last")
    for name, seconds in seconds_of.items():
        wall.add_row(name, f"{seconds:.2f}")
    spent = swept.processes.by_name()
    cpu = Table("process", "how many", "CPU seconds", title=f"{sum(s for _, s in spent.values()):.1f} s of CPU")
    for name, (count, seconds) in spent.items():
        cpu.add_row(name, str(count), f"{seconds:.1f}")
    console = Console()
    console.print(wall)
    console.print(cpu)
    return seconds_of


def nested(trials: int) -> float:
    """Seconds from the end of one trial to the end of the next."""
    done = subprocess.run(
        [sys.executable, "-c", NESTED, str(trials)], env=os.environ | QUIET, capture_output=True, text=True
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not lines:
        sys.exit(done.stderr[-2000:])
    return float(lines[-1].split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=(4, 16))
    parser.add_argument("--plain", type=int, default=3, help="trials of the nested sweep; 0: none")
    parser.add_argument("--address", default="local")
    parser.add_argument("--storage", help="a folder that all nodes see (default: a temporary one)")
    options = parser.parse_args()
    swept = []
    for trials in options.trials:
        with tempfile.TemporaryDirectory(dir=options.storage) as folder:
            swept.append(sweep(trials, Path(folder), options.address))
        print(
            f"{trials} trials: {swept[-1].wall_s:.1f} s, of which {swept[-1].busy_s:.1f} s training and probes; "
            f"first step after {swept[-1].first_step_s:.1f} s"
        )
    profile = show(swept[0])
    taxes = [sweep.wall_s - sweep.busy_s for sweep in swept]
    few, more = options.trials
    per_trial = (taxes[1] - taxes[0]) / (more - few)
    result: dict[str, Any] = {
        "per_trial_s": per_trial,
        "per_sweep_s": taxes[0] - few * per_trial,
        "first_step_s": min(sweep.first_step_s for sweep in swept),
    }
    result |= {"parts_s": profile}
    print(f"raysweep: {per_trial:.2f} s a trial, {result['per_sweep_s']:.1f} s a sweep")
    if options.plain:
        result["nested_s"] = nested(options.plain)
        print(f"nested: {result['nested_s']:.1f} s a trial, {result['nested_s'] / per_trial:.0f} times as much")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
