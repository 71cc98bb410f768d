"""What the platform costs beside training and probing: until the first step, and for each trial.

    python benchmarks/tax.py [--trials 4 16] [--plain 3] [--address local] [--storage FOLDER]

Side by side in one run, two processes of one thread each:

* `raysweep`: two sweeps of the smoke profile, without pruning, of few and of more trials. Wall time less the seconds
  that training and probes took on the lane is the tax; what more trials add to it is the tax of a trial, and what is
  left is that of a sweep. The first step is when the first published stretch began.
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

from raysweep.store import Store

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


def sweep(trials: int, storage: Path, address: str) -> tuple[float, float, float]:
    """Wall time, seconds of training and probes, and seconds until the first step."""
    arguments = ["--profile", "smoke", "--address", address, "--storage", str(storage), "--json"]
    arguments += ["--set", f"search.trials={trials}", "--set", "search.scheduler=never"]
    began, clock = time.time(), time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "raysweep.run", "search_spaces/table5.yaml", *arguments],
        cwd=ROOT,
        env=os.environ | QUIET,
        capture_output=True,
        text=True,
    )
    wall = time.perf_counter() - clock
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    store = Store(str(storage))
    stretches = list(store.published())
    busy = sum(found.manifest["seconds"] for found in stretches)
    starts = [
        (storage / "checkpoints" / str(found.step) / found.key / "manifest.json").stat().st_mtime
        - found.manifest["seconds"]
        for found in stretches
    ]
    probes = [store.record("probes", file.stem) for file in (storage / "records" / "probes").glob("*.json")]
    busy += sum(record["seconds"] for record in probes if record)
    return wall, busy, min(starts) - began


def nested(trials: int) -> float:
    """Seconds from the end of one trial to the end of the next."""
    done = subprocess.run(
        [sys.executable, "-c", NESTED, str(trials)], env=os.environ | QUIET, capture_output=True, text=True
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("seconds ")]
    if not told:
        sys.exit(done.stderr[-2000:])
    return float(told[-1].split()[1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs=2, default=(4, 16))
    parser.add_argument("--plain", type=int, default=3, help="trials of the nested sweep; 0: none")
    parser.add_argument("--address", default="local")
    parser.add_argument("--storage", help="a folder that all nodes see (default: a temporary one)")
    options = parser.parse_args()
    taxes, firsts = [], []
    for trials in options.trials:
        with tempfile.TemporaryDirectory(dir=options.storage) as folder:
            wall, busy, first = sweep(trials, Path(folder), options.address)
        taxes.append(wall - busy)
        firsts.append(first)
        print(
            f"{trials} trials: {wall:.1f} s, of which {busy:.1f} s training and probes; first step after {first:.1f} s"
        )
    few, more = options.trials
    per_trial = (taxes[1] - taxes[0]) / (more - few)
    told = {"per_trial_s": per_trial, "per_sweep_s": taxes[0] - few * per_trial, "first_step_s": min(firsts)}
    print(f"raysweep: {per_trial:.2f} s a trial, {told['per_sweep_s']:.1f} s a sweep")
    if options.plain:
        told["nested_s"] = nested(options.plain)
        print(f"nested: {told['nested_s']:.1f} s a trial, {told['nested_s'] / per_trial:.0f} times as much")
    print(json.dumps(told))


if __name__ == "__main__":
    main()
