"""Table 5 x early stop as a sweep, compared with trial-based execution of the same proposals and decisions.

    python benchmarks/sharing.py [--rows 18] [--grid]

Executes the same trials in three ways, each to the step at which the sweep ended it, with the same training function:

* `raysweep`: a sweep with ASHA (eta 3; rungs at 50K, 100K, 200K and the end), or with `--grid` without pruning;
* `Tuner`: a plain `ray.tune.Tuner`, where each trial trains its own teacher, then itself, and probes at its rungs;
* `Tuner, teachers by hand`: the same after each distinct teacher has been trained once, from 0.

Each way uses two processes of one thread; sizes are those of the smoke profile. Prints training steps and wall time
with ratios, and whether all trials ended in the same bits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import yaml

from raysweep.space import runs, space
from raysweep.space.space import Space
from raysweep.store import history
from raysweep.store.files import sha256_of
from raysweep.store.store import Store
from trainables.config import Run

ROOT = Path(__file__).resolve().parent.parent
QUIET = {
    "OMP_NUM_THREADS": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
STOPS = (50_000, 100_000, 150_000, 200_000, "never")
WORKERS = 2


@dataclass
class Job:
    """A trial of all three ways: its run, how far it is trained, and where it is probed."""

    trial: int
    run: Run
    rungs: list[int]


def write_space(folder: Path, rows: int, grid: bool) -> Path:
    raw = yaml.safe_load((ROOT / "search_spaces" / "table5.yaml").read_text())
    points = [row["set"] | {"method.stop": stop} for row in raw["enqueue"][:rows] for stop in STOPS]
    random.Random(0).shuffle(points)  # neighbours in the file are similar, and ASHA compares with earlier trials
    raw["enqueue"] = [{"set": point} for point in points]
    raw["search"] = {
        "mode": "reproduce" if grid else "explore",
        "trials": len(points),
        "scheduler": {"kind": "asha", "eta": 3},
    }
    raw["search"]["rungs"] = [50_000, 100_000, 200_000]
    path = folder / "ninety.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def sweep(path: Path, storage: Path) -> tuple[dict[str, Any], float]:
    """Run the sweep as a user does."""
    lanes = [f"--set=launch.{key}={value}" for key, value in {"workers": 1, "lanes": WORKERS}.items()]
    command = [sys.executable, "-m", "raysweep.run", str(path), "--profile", "smoke", "--storage", str(storage)]
    began = time.perf_counter()
    ended = subprocess.run([*command, *lanes, "--json"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1]), time.perf_counter() - began


def jobs_of(loaded: Space, result: dict[str, Any]) -> list[Job]:
    jobs = []
    for row in result["trials"]:
        if row["repeats"] is None and row["steps"]:
            trial, _ = loaded.trial(row["params"])
            rungs = [rung for rung in loaded.rungs(trial) if rung <= row["steps"]]
            jobs.append(Job(row["trial"], runs.student(loaded, trial), rungs))
    return jobs


def trial_based(config: dict[str, Any]) -> None:
    """The training function of a plain Tuner. It also trains teachers by hand."""
    import torch
    from ray import tune

    from trainables.config import ProbeSpec
    from trainables.training.loop import Context
    from trainables.training.worker_cache import WorkerCache

    torch.set_num_threads(1)
    config = config["each"]
    run, folder = Run.model_validate_json(config["run"]), Path(config["folder"])
    worker_cache, steps, at = WorkerCache(Context(), Path(config["cache"])), 0, None

    def teacher_folder(teacher: Any) -> Path:
        nonlocal steps
        given = Path(config["teachers"]) / history.key(teacher.run, teacher.step)
        if given.exists():
            return given
        own = folder / "teacher"
        if not own.exists():
            own.mkdir(parents=True)
            worker_cache.train(teacher.run, teacher.step, None, teacher_folder).checkpoint.save(own)
            steps += teacher.step
        return own

    for rung in config["rungs"]:
        here = folder / str(rung)
        here.mkdir(parents=True)
        worker_cache.train(run, rung, at, teacher_folder).checkpoint.save(here)
        steps += rung - (at[1] if at else 0)
        at = (here, rung)
        metrics = {}
        if config["probe"]:
            metrics = worker_cache.probe(run, ProbeSpec.model_validate_json(config["probe"]), here).metrics
        tune.report({"step": rung, "steps": steps, "files": {f.name: sha256_of(f) for f in here.iterdir()}, **metrics})


def tuner(configs: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Run configurations in a plain Tuner; returns the last report of each by its number."""
    from ray import tune

    with tempfile.TemporaryDirectory() as scratch:
        results = tune.Tuner(
            tune.with_resources(trial_based, {"CPU": 1}),
            param_space={"each": tune.grid_search(configs)},
            tune_config=tune.TuneConfig(max_concurrent_trials=WORKERS, reuse_actors=True),
            run_config=tune.RunConfig(storage_path=scratch, verbose=0),
        ).fit()
    if results.errors:
        raise results.errors[0]
    return {result.config["each"]["number"]: result.metrics for result in results}


def alone(jobs: list[Job], loaded: Space, cache: Path, by_hand: bool) -> tuple[dict[int, dict[str, Any]], int, float]:
    """Trial-based execution: the trials' last reports, steps, and wall time, Ray's start included."""
    import ray

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        began = time.perf_counter()
        ray.init(num_cpus=WORKERS, include_dashboard=False, log_to_driver=False, configure_logging=False)
        steps = 0
        if by_hand:
            distinct = {history.key(t.run, t.step): t for job in jobs for t in runs.teachers(job.run)}
            configs = [
                config(number, teacher.run, [teacher.step], folder / "by-hand" / key, folder, cache, "")
                for number, (key, teacher) in enumerate(distinct.items())
            ]
            steps += sum(report["steps"] for report in tuner(configs).values())
            for key, teacher in distinct.items():
                (folder / "teachers").mkdir(exist_ok=True)
                (folder / "teachers" / key).symlink_to(folder / "by-hand" / key / str(teacher.step))
        probe = loaded.probe_of(loaded.trial({})[0]).model_dump_json()
        configs = [config(j.trial, j.run, j.rungs, folder / str(j.trial), folder, cache, probe) for j in jobs]
        reports = tuner(configs)
        ray.shutdown()
        return reports, steps + sum(report["steps"] for report in reports.values()), time.perf_counter() - began


def config(number: int, run: Run, rungs: list[int], own: Path, folder: Path, cache: Path, probe: str) -> dict[str, Any]:
    facts = {"number": number, "run": run.model_dump_json(), "rungs": rungs, "probe": probe}
    return facts | {"folder": str(own), "teachers": str(folder / "teachers"), "cache": str(cache)}


def same_bits(jobs: list[Job], store: Store, reports: dict[int, dict[str, Any]]) -> int:
    """How many trials ended in exactly the files that the sweep committed."""
    count = 0
    for job in jobs:
        checkpoint = store.find(job.run, job.rungs[-1])
        files = checkpoint.manifest.checksums if checkpoint else {}
        count += files == reports[job.trial]["files"]
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=18, help="of Table 5, each at five early-stop points")
    parser.add_argument("--grid", action="store_true", help="nothing is pruned")
    options = parser.parse_args()
    os.environ.update(QUIET)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        sweep(write_space(folder, 1, True), folder / "warm")  # encodes the data, which all three then find
        (folder / "runs").mkdir()
        (folder / "runs" / "cache").symlink_to(folder / "warm" / "cache")
        path = write_space(folder, options.rows, options.grid)
        result, wall = sweep(path, folder / "runs")
        loaded = space.load(path, "smoke")
        jobs, store = jobs_of(loaded, result), Store(str(folder / "runs"))
        steps = result["steps"]["computed"]
        print(f"{len(jobs)} trials, {sum(len(job.rungs) for job in jobs)} probes; ratios are raysweep's to the others")
        print(f"{'raysweep':26} {steps:6d} steps            {wall:7.1f} s")
        for name, by_hand in (("Tuner, teachers by hand", True), ("Tuner", False)):
            reports, theirs, took = alone(jobs, loaded, folder / "warm" / "cache", by_hand)
            figures = f"{name:26} {theirs:6d} steps ({steps / theirs:5.3f})    {took:7.1f} s ({wall / took:5.3f})"
            print(f"{figures}    same bits: {same_bits(jobs, store, reports)} of {len(jobs)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
