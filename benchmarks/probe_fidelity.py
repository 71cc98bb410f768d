"""How cheap a probe may be before it ranks checkpoints differently from the full probe.

    python benchmarks/probe_fidelity.py STUDY --storage runs [--picture fidelity.png]

Takes the checkpoints of a study at one rung, between which a scheduler decides (the first rung, or `--step`), and
probes them with the full 250-step SDE and with cheaper samplers. All probes draw the same noise. Prints for each kind
of probe its rank correlation (Spearman) with the full probe and the 95% interval over resampled checkpoints, the mean
difference of the metric, the standard error of one probe and of the difference of two (paired), seconds, and its cost
relative to the full probe. Below that, the cost of the study's own probes relative to its training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import spearmanr

from raysweep.errors import UserError
from raysweep.store.store import Store
from raysweep.study.costs import charges
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from trainables.config import ProbeSpec
from trainables.evaluation.probing import ProbeResult
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache

FULL = {"sampler": "euler_maruyama", "steps": 250}
CHEAPER = [("euler_maruyama", 50), ("euler_maruyama", 25), ("heun", 10), ("heun", 5), ("euler", 25), ("euler", 10)]
CHEAPER += [("euler", 5), ("euler", 3)]
RESAMPLED = 1000


@dataclass
class Measured:
    """One kind of probe over all checkpoints."""

    spec: ProbeSpec
    results: list[ProbeResult]
    seconds: float

    @property
    def values(self) -> list[float]:
        return [result.metrics[self.spec.metric] for result in self.results]

    def facts(self, full: Measured) -> dict[str, Any]:
        mine, theirs = np.array(self.values), np.array(full.values)
        chance = np.random.default_rng(0)
        draws = [chance.integers(len(mine), size=len(mine)) for _ in range(RESAMPLED)]
        ranks = [spearmanr(mine[drawn], theirs[drawn]).statistic for drawn in draws if len(set(drawn)) > 2]
        low, high = np.nanquantile(ranks, [0.025, 0.975])
        influences = [result.influence.double() for result in self.results if result.influence is not None]
        error = statistics.fmean(float(influence.std()) / len(influence) ** 0.5 for influence in influences)
        pairs = [float((one - other).std()) / len(one) ** 0.5 for one, other in combinations(influences, 2)]
        return {
            "sampler": self.spec.sampler,
            "steps": self.spec.steps,
            "samples": self.spec.samples,
            "rank_correlation": float(spearmanr(mine, theirs).statistic),
            "interval": [float(low), float(high)],
            "best_is_the_same": int(mine.argmin()) == int(theirs.argmin()),
            "bias": float((mine - theirs).mean()) if self.spec.samples == full.spec.samples else None,
            "spread": float(mine.std(ddof=1)),
            "standard_error": error,
            "paired_standard_error": statistics.fmean(pairs),
            "seconds": self.seconds / len(self.results),
            "cost": self.seconds / full.seconds,
        }


def chosen(study: StudyState, step: int | None, most: int) -> tuple[int, list[TrialState]]:
    """The rung, and the trials that have come to it and whose checkpoints there are kept and differ."""
    reached = [trial for trial in study.distinct if trial.probes]
    step = step or min((min(trial.probes) for trial in reached), default=0)
    trials: dict[str, TrialState] = {}
    for trial in reached:
        if checkpoint := study.store.find(study.run(trial), step):
            trials.setdefault(checkpoint.key, trial)
    if len(trials) < 4:
        raise UserError(f"{len(trials)} checkpoints of {study.space.id} at step {step}; ranks need four or more")
    return step, list(trials.values())[:most]


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    torch.set_num_threads(options.threads)
    study = StudyState.reopen(Store(options.storage), options.study)
    step, trials = chosen(study, options.step, options.most)
    worker_cache = WorkerCache(Context(torch.device("cuda" if torch.cuda.is_available() else "cpu")), study.store.cache)
    own = study.space.probe_of(study.space.trial({})[0])
    wanted = {"samples": options.samples or own.samples, "metrics": own.metrics[:1]}
    full = own.model_copy(update=FULL | wanted)
    specs = [full, *(full.model_copy(update={"samples": full.samples // part}) for part in (2, 4))]
    specs += [full.model_copy(update={"sampler": sampler, "steps": steps}) for sampler, steps in CHEAPER]
    worker_cache.reference(study.run(trials[0]).data, own)  # made once: no part of any probe's time
    jobs = [(spec, trial) for spec in specs for trial in trials]
    measured = {spec: Measured(spec, [], 0.0) for spec in specs}
    for spec, trial in track(jobs, "Probing", console=console, transient=True):
        checkpoint = study.store.find(study.run(trial), step)
        assert checkpoint is not None, "it was there a moment ago"
        folder = study.store.open(checkpoint)
        began = time.perf_counter()
        measured[spec].results.append(worker_cache.probe(study.run(trial), spec, folder))
        measured[spec].seconds += time.perf_counter() - began
    charged = list(charges([study]).values())
    return {
        "study": study.space.id,
        "step": step,
        "checkpoints": len(trials),
        "metric": full.metric,
        "probes": [measured[spec].facts(measured[full]) for spec in specs],
        "values": {f"{s.sampler} {s.steps} {s.samples}": measured[s].values for s in specs},
        "study_s": sum(charge.own + charge.shared for charge in charged),
        "study_probes_s": sum(charge.probes for charge in charged),
    }


def show(result: dict[str, Any]) -> None:
    table = Table(
        title=f"{result['study']}: {result['checkpoints']} checkpoints at step {result['step']}, {result['metric']}"
    )
    columns = (
        "sampler",
        "steps",
        "samples",
        "rank correlation",
        "same best",
        "bias",
        "error",
        "paired",
        "seconds",
        "cost",
    )
    for name in columns:
        table.add_column(name, justify="left" if name == "sampler" else "right", no_wrap=True)
    for probe in result["probes"]:
        low, high = probe["interval"]
        table.add_row(
            probe["sampler"],
            str(probe["steps"]),
            str(probe["samples"]),
            f"{probe['rank_correlation']:.3f} ({low:.2f} to {high:.2f})",
            "yes" if probe["best_is_the_same"] else "no",
            "" if probe["bias"] is None else f"{probe['bias']:+.1f}",
            f"{probe['standard_error']:.1f}",
            f"{probe['paired_standard_error']:.1f}",
            f"{probe['seconds']:.1f}",
            f"{probe['cost']:.3f}",
        )
    console = Console(width=max(120, Console().width))
    console.print(table)
    console.print(f"Spread of the checkpoints: {result['probes'][0]['spread']:.1f}.", end=" ")
    share = result["study_probes_s"] / result["study_s"]
    console.print(f"The study's own probes took {share:.0%} of its {result['study_s'] / 60:.0f} device-minutes.")


def draw(result: dict[str, Any], file: Path) -> None:
    """Rank correlation against cost, and each probe's values against the full one's."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    full = next(iter(result["values"].values()))
    for probe, (name, values) in zip(result["probes"], result["values"].items(), strict=True):
        low, high = probe["interval"]
        rank = probe["rank_correlation"]
        left.errorbar(probe["cost"], rank, [[max(0, rank - low)], [max(0, high - rank)]], fmt="o", capsize=2)
        left.annotate(name, (probe["cost"], rank), textcoords="offset points", xytext=(5, -9), fontsize=7)
        if probe["samples"] == result["probes"][0]["samples"]:
            right.plot(full, values, "o", markersize=4, label=name)
    left.set(xscale="log", xlabel="cost of the full probe", ylabel="rank correlation with the full probe")
    right.plot(full, full, color="grey", linewidth=0.8)
    right.set(xlabel=f"{result['metric']}, full probe", ylabel="the cheaper probe's")
    right.legend(fontsize=7)
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", help="its name, or how that begins")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--step", type=int, help="of the checkpoints (default: the first rung)")
    parser.add_argument("--most", type=int, default=20, help="checkpoints")
    parser.add_argument("--samples", type=int, help="of the full probe (default: the study's own)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        result = measure(options, Console(stderr=True))
    except UserError as error:
        parser.error(str(error))
    if options.picture:
        draw(result, options.picture)
    print(json.dumps(result)) if options.json else show(result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
