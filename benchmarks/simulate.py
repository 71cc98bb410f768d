"""What a sweep would cost and find: the real study, order and scheduler on a virtual clock, before any money is spent.

    python benchmarks/simulate.py search_spaces/table5.yaml --noise 0.05 0.1 0.5 --seeds 100 --picture simulated.png

Compares `--schedulers` (`never` is a grid) over `--seeds` draws of the learning curves and of the order of proposal.
`--alone` also simulates each of them without sharing: each trial trains its own teacher, as in trial-based tuners.
The configurations are the rows of the space, then random ones: samplers are not simulated. Curves are synthetic, or
those of a study with `--curves STUDY --storage URI`. Times are estimated by `raysweep.planning.price`. `regret` is
the difference between the best finished trial and the best configuration, without the noise of probes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import track
from rich.table import Table

from raysweep.errors import UserError
from raysweep.planning.learning_curves import Curve, Recorded, Synthetic
from raysweep.planning.simulation import Outcome, simulate, trust_names
from raysweep.space import space
from raysweep.space.configurations import Configuration, configurations
from raysweep.space.space import Space
from raysweep.store.store import Store
from raysweep.study.state import StudyState

SCHEDULERS = [
    "never",
    "asha",
    "{kind: asha, eta: 4}",
    "{kind: asha, noise: paired}",
    "promotion",
    "hyperband",
    "median",
]


def loaded(options: argparse.Namespace, scheduler: str) -> Space:
    overrides = (f"search.trials={options.trials}", "search.mode=explore", f"search.scheduler={scheduler}")
    return _loaded(options.space, options.profile, (*overrides, *options.set))


@lru_cache
def _loaded(file: Path, profile: str, overrides: tuple[str, ...]) -> Space:
    return space.load(file, profile, list(overrides))


def curves(
    options: argparse.Namespace, chosen: list[Configuration], noise: float, seed: int
) -> tuple[Curve, list[Configuration]]:
    """The learning curves, and the configurations that have one, shuffled by the seed where curves are synthetic."""
    if options.curves:
        recorded = Recorded.of(StudyState.reopen(Store(options.storage), options.curves))
        return recorded, [configuration for configuration in chosen if recorded.known(configuration)]
    references = [configuration.reference for configuration in chosen if configuration.reference is not None]
    shuffled = random.Random(seed).sample(chosen, len(chosen))
    return Synthetic(
        seed, noise=noise, spread=options.spread, **({"finals": references} if references else {})
    ), shuffled


@dataclass
class Job:
    """One simulated sweep."""

    scheduler: str
    sharing: bool
    noise: float
    seed: int


def facts(outcome: Outcome, truth: list[float]) -> dict[str, Any]:
    best = outcome.study.best
    regret = truth[best.number] - min(truth) if best else float("nan")
    return {
        "days": outcome.hours / 24,
        "gpu_hours": outcome.gpu_hours,
        "probe_gpu_hours": outcome.probe_gpu_hours,
        "steps": outcome.steps,
        "complete": len(outcome.complete),
        "regret": regret,
        "found": outcome.best,
    }


def simulate_job(options: argparse.Namespace, job: Job) -> dict[str, Any]:
    trust_names()
    lanes = max(1, options.gpus // options.gpus_per_lane)
    whole = loaded(options, job.scheduler)
    curve, known = curves(options, list(configurations(whole, [])), job.noise, job.seed)
    began = time.perf_counter()
    outcome = simulate(whole, known, curve, lanes, options.gpus_per_lane, job.sharing)
    result = facts(outcome, [curve.final(configuration) for configuration in known])
    return vars(job) | {"trials": len(known), "wall_s": time.perf_counter() - began, **result}


def run(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    for scheduler in options.schedulers:
        loaded(options, scheduler)  # reports a mistake before anything is simulated
    jobs = [
        Job(*job)
        for job in itertools.product(
            options.schedulers, (True, False) if options.alone else (True,), options.noise, range(options.seeds)
        )
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        rows = pool.map(partial(simulate_job, options), jobs)
        return list(track(rows, "Simulating", len(jobs), console=console, transient=True))


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    title = f"{options.space.stem}: {rows[0]['trials']} trials on {options.gpus} GPUs, {options.seeds} seeds, simulated"
    table = Table(title=title)
    for name in ("noise", "scheduler", "days", "GPU-h", "of it probes", "steps", "complete", "regret", "best found"):
        table.add_column(name, justify="left" if name == "scheduler" else "right", no_wrap=True)
    groups = itertools.groupby(
        sorted(rows, key=lambda row: (row["noise"], options.schedulers.index(row["scheduler"]), not row["sharing"])),
        key=lambda row: (row["noise"], row["scheduler"], row["sharing"]),
    )
    for (noise, scheduler, sharing), group in groups:
        mine = list(group)
        means = ("days", "gpu_hours", "probe_gpu_hours", "steps", "complete", "regret")
        mean = {key: statistics.fmean(row[key] for row in mine) for key in means}
        error = statistics.stdev([row["regret"] for row in mine]) / len(mine) ** 0.5 if len(mine) > 1 else 0.0
        table.add_row(
            f"{noise:g}",
            scheduler if sharing else f"{scheduler}, alone",
            f"{mean['days']:.2f}",
            f"{mean['gpu_hours']:,.0f}",
            f"{mean['probe_gpu_hours']:,.0f}",
            f"{mean['steps'] / 1e6:,.1f}M",
            f"{mean['complete']:,.1f}",
            f"{mean['regret']:.3f} ± {error:.3f}",
            f"{statistics.fmean(row['regret'] == 0 for row in mine):.0%}",
        )
    Console(width=max(120, Console().width)).print(table)


def draw(rows: list[dict[str, Any]], options: argparse.Namespace, file: Path) -> None:
    """Regret against steps: a point for each scheduler and a panel for each noise. The last panel shows the best metric
    found against days, for the first seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    noises = sorted({row["noise"] for row in rows})
    figure, panels = pyplot.subplots(1, len(noises) + 1, figsize=(4.2 * (len(noises) + 1), 4), layout="constrained")
    for axes, noise in zip(panels, noises, strict=False):
        for scheduler in options.schedulers:
            mine = [row for row in rows if (row["noise"], row["scheduler"], row["sharing"]) == (noise, scheduler, True)]
            regrets = [row["regret"] for row in mine]
            error = statistics.stdev(regrets) / len(mine) ** 0.5 if len(mine) > 1 else 0.0
            steps = statistics.fmean(row["steps"] for row in mine) / 1e6
            axes.errorbar(steps, statistics.fmean(regrets), 1.96 * error, fmt="o", capsize=2, label=scheduler)
        axes.set(
            xlabel="million steps", ylabel="regret (bars: 95%)", title=f"noise of a probe: {noise:g}", ylim=(0, None)
        )
    for row in rows:
        if row["seed"] == 0 and row["noise"] == noises[0] and row["found"]:
            days = [hours / 24 for hours, _ in row["found"]] + [row["days"]]
            values = [value for _, value in row["found"]] + [row["found"][-1][1]]
            panels[-1].step(days, values, where="post", linestyle="-" if row["sharing"] else ":")
    panels[-1].set(xlabel="days", ylabel="best metric found", title="one seed")
    panels[0].legend(fontsize=7)
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--profile", default="cluster")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--gpus", type=int, default=64)
    parser.add_argument("--gpus-per-lane", type=int, default=8)
    parser.add_argument("--schedulers", nargs="+", default=SCHEDULERS, help="as in search.scheduler")
    parser.add_argument("--alone", action="store_true", help="also without sharing")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", type=float, nargs="+", default=[0.1], help="standard deviation of a probe")
    parser.add_argument("--spread", type=float, default=0.15, help="how differently curves fall, relative: they cross")
    parser.add_argument("--curves", metavar="STUDY", help="replay what a study has measured")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        rows = run(options, Console(stderr=True))
    except UserError as error:
        parser.error(str(error))
    if options.picture:
        draw(rows, options, options.picture)
    print(json.dumps(rows)) if options.json else show(rows, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
