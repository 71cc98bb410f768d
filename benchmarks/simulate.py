"""What a sweep would take and find, before any money is spent: the same study, order and ASHA on a virtual clock.

    python benchmarks/simulate.py search_spaces/table5.yaml --trials 10000 --gpus 1000 --picture simulated.png

Compared, over `--seeds` draws of the learning curves: ASHA with each `--eta` and, with `--grid`, every configuration to
its end; each of them sharing stages, and as trial-based tuners do, where each trial trains its own teacher. The
configurations are the space's rows, then random ones (TPE is not simulated). Curves are synthetic, or a study's own
with `--curves STUDY --storage URI`; times are those that `raysweep.price` assumes. `regret` is how far the best trial
that was finished is from the truly best configuration, without the noise of probes.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rich.console import Console
from rich.progress import track
from rich.table import Table

from raysweep import space
from raysweep.configurations import Configuration, configurations
from raysweep.curves import Recorded, Synthetic
from raysweep.simulation import Outcome, simulate, take_on_trust
from raysweep.space import Space
from raysweep.store import Store
from raysweep.study import Study

GRID = "all to their ends"


def loaded(options: argparse.Namespace, mode: str, eta: int) -> Space:
    overrides = [f"search.trials={options.trials}", f"search.mode={mode}", f"search.eta={eta}", *options.set]
    return space.load(options.space, options.profile, overrides)


def strategies(options: argparse.Namespace) -> dict[str, tuple[str, int]]:
    every = {GRID: ("reproduce", 2)} if options.grid else {}
    return every | {f"ASHA, eta {eta}": ("explore", eta) for eta in options.eta}


def curves(options: argparse.Namespace, chosen: list[Configuration], seed: int) -> tuple[Any, list[Configuration]]:
    """The learning curves, and the configurations that have one."""
    if options.curves:
        recorded = Recorded.of(Study.reopen(Store(options.storage), options.curves))
        return recorded, [each for each in chosen if recorded.known(each)]
    published = [each.published for each in chosen if each.published is not None]
    return Synthetic(seed, noise=options.noise, **({"finals": published} if published else {})), chosen


def facts(outcome: Outcome, truth: dict[str, float], wall_s: float) -> dict[str, Any]:
    best = outcome.study.best
    ended = {trial.number: truth[str(trial.number)] for trial in outcome.complete}
    return {
        "days": outcome.hours / 24,
        "gpu_hours": outcome.gpu_hours,
        "probe_gpu_hours": outcome.probe_gpu_hours,
        "steps": outcome.steps,
        "complete": len(ended),
        "regret": ended[best.number] - min(truth.values()) if best else float("nan"),
        "found": outcome.found,
        "wall_s": wall_s,
    }


def run(options: argparse.Namespace, console: Console) -> list[dict[str, Any]]:
    take_on_trust()
    lanes = max(1, options.gpus // options.gpus_per_lane)
    explored = loaded(options, "explore", 2)
    chosen = list(configurations(explored, []))
    jobs = [
        (name, sharing, seed)
        for name in strategies(options)
        for sharing in (True, False)
        for seed in range(options.seeds)
    ]
    rows = []
    for name, sharing, seed in track(jobs, "Simulating", console=console, transient=True):
        curve, known = curves(options, chosen, seed)
        truth = {str(number): curve.final(each) for number, each in enumerate(known)}
        mode, eta = strategies(options)[name]
        began = time.perf_counter()
        outcome = simulate(loaded(options, mode, eta), known, curve, lanes, options.gpus_per_lane, sharing)
        told = facts(outcome, truth, time.perf_counter() - began)
        rows.append({"strategy": name, "sharing": sharing, "seed": seed, "trials": len(known), **told})
    return rows


def show(rows: list[dict[str, Any]], options: argparse.Namespace) -> None:
    table = Table(title=f"{options.space.stem}: {rows[0]['trials']} trials on {options.gpus} GPUs, simulated")
    for name in ("strategy", "days", "GPU-h", "steps", "complete", "regret", "wall s"):
        table.add_column(name, justify="left" if name == "strategy" else "right", no_wrap=True)
    for name in dict.fromkeys(row["strategy"] for row in rows):
        for sharing in (True, False):
            mine = [row for row in rows if (row["strategy"], row["sharing"]) == (name, sharing)]
            mean = {key: statistics.fmean(row[key] for row in mine) for key in ("days", "gpu_hours", "steps", "regret")}
            cells = [f"{mean['days']:.2f}", f"{mean['gpu_hours']:,.0f}"]
            cells.append(f"{mean['steps'] / 1e6:,.0f}M")
            cells += [f"{statistics.fmean(row['complete'] for row in mine):,.0f}", f"{mean['regret']:.2f}"]
            cells.append(f"{statistics.fmean(row['wall_s'] for row in mine):.1f}")
            table.add_row(f"{name}, {'shared' if sharing else 'alone'}", *cells)
    Console().print(table)


def draw(rows: list[dict[str, Any]], file: Path) -> None:
    """The best metric found against the days since the start, one line a strategy."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for row in rows:
        if row["seed"] == 0 and row["found"]:
            days = [hours / 24 for hours, _ in row["found"]] + [row["days"]]
            values = [value for _, value in row["found"]] + [row["found"][-1][1]]
            label = f"{row['strategy']}, {'shared' if row['sharing'] else 'alone'}"
            axes.step(days, values, where="post", label=label, linestyle="-" if row["sharing"] else ":")
    axes.set(xlabel="days", ylabel="best metric found")
    axes.legend(fontsize=8)
    figure.savefig(file, dpi=150)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("space", type=Path)
    parser.add_argument("--profile", default="cluster")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--gpus-per-lane", type=int, default=8)
    parser.add_argument("--eta", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--grid", action="store_true", help="also every configuration to its end")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--noise", type=float, default=0.1, help="standard deviation of a probe")
    parser.add_argument("--curves", metavar="STUDY", help="replay what a study has measured")
    parser.add_argument("--storage", default="runs")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = run(options, Console(stderr=True))
    if options.picture:
        draw(rows, options.picture)
    print(json.dumps(rows)) if options.json else show(rows, options)
    return 0


if __name__ == "__main__":
    sys.exit(main())
