"""What MLflow costs: the time to tell it all of a stored study, against the time that training took.

    python benchmarks/tracking.py table5 --storage runs

The study is mirrored into an empty SQLite file, as the sweep's own thread does while it trains: curves, probes,
pictures, checkpoints, in batches. Compared with the seconds that workers trained for the same study. Workers never wait
for it: this is what it takes from the driver's core.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize
from raysweep.tracking import Mirror


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    study = StudyState.reopen(Store(options.storage), options.study)
    cost = summarize(study).cost
    trained = cost.spent - cost.probes
    steps = sum(trial.step for trial in study.distinct)
    times = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as folder:
            mirror = Mirror(study, f"sqlite:///{Path(folder, 'mlflow.db')}")
            began = time.process_time()
            for trial in study.trials:
                mirror.log_trial(trial)
            times.append(time.process_time() - began)
    seconds = statistics.median(times)
    print(
        f"{study.space.id}: {len(study.trials)} trials, {steps} steps of students\n"
        f"training {trained:.0f} device-seconds, MLflow {seconds:.2f} s of CPU (median of {options.repeats}): "
        f"{seconds / len(study.trials) * 1000:.0f} ms a trial, {seconds / steps * 1000:.2f} ms a step, "
        f"{seconds / trained:.2%} of training"
    )


if __name__ == "__main__":
    main()
