"""How cost grows with size, as plots of cost against size: trials of a sweep, images of a batch, ranks.

    python benchmarks/growth.py [--trials 10 100 1000 10000] [--batches 64 256 1024 4096] [--ranks 1 2 4]
                                [--storage FOLDER] [--out FOLDER]

An option without a number leaves out its part. Each measurement runs in a process of its own, one after another, on one
machine. It gives wall seconds and CPU seconds without imports, and the peak memory of the process (RSS) with imports.
For each number of trials of Table 5 with a continuous guidance scale:

* `plan`: `raysweep run --plan`.
* `search`: the driver without Ray Tune and training, over synthetic learning curves: proposals of TPE, event order,
  ASHA, the journal, and Optuna's view of it. The journal is written to `--storage` with fsync, so wall seconds depend
  on the disk. `--database` adds the SQLite file of optuna-dashboard.
* `dispatch`: a simulated sweep of as many random configurations: the dispatcher, its lanes and the study, in memory.
* `report`: `raysweep report` of the study of `search`.

`batch` trains SiT-T/2 on random latents of 8x8x8 in micro-batches of 64 and gives seconds per step, after one step that
is not timed. Every batch size sees as many images in all as the largest batch. `ranks` is benchmarks/scaling.py.

The exponent is b in cost = a · size^b, by least squares in the logarithms over the larger half of the sizes, but at
least two. Constant costs hide it at smaller sizes. For trials it is the exponent of CPU seconds, which other work on
the machine disturbs least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator, ScalarFormatter
from rich.console import Console
from rich.table import Table

from raysweep.commands import report, run
from raysweep.planning.learning_curves import Synthetic
from raysweep.planning.simulation import simulate, trust_names
from raysweep.report.plots.style import COLOURS, figure, save, tidy
from raysweep.space import space
from raysweep.space.configurations import configurations
from raysweep.space.space import Space
from raysweep.store.store import Store
from raysweep.study.ordering import EventOrder
from raysweep.study.proposals import Proposals
from raysweep.study.state import StudyState
from raysweep.tracking.optuna_dashboard import Dashboard

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "search_spaces" / "table5.yaml"
WIDE = ("trial.method.guidance_scale={uniform: [1.0, 60.0]}", "enqueue=[{set: {}}]")  # as many trials as one likes
BACKBONE, LATENT, MICRO_BATCH = "SiT-T/2", (8, 8, 8), 64
LANES = 16  # of the simulated sweep
DRIVER = ["raysweep.study.proposals", "raysweep.report.report", "raysweep.run", "raysweep.planning.simulation"]
INK = {"plan": COLOURS["RUNNING"], "search": COLOURS["COMPLETE"], "dispatch": "#009E73", "report": COLOURS["FAILED"]}

Row = dict[str, float]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """b in cost = a · size^b over the larger half of the sizes, which increase; None for fewer than two."""
    if len(sizes) < 2:
        return None
    half = max(2, math.ceil(len(sizes) / 2))
    x, y = ([math.log(value) for value in values[-half:]] for values in (sizes, costs))
    middle_x, middle_y = sum(x) / half, sum(y) / half
    across = sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    return across / sum((one - middle_x) ** 2 for one in x)


# --- each in a process of its own


def measured(work: Callable[..., Row | None], *arguments: Any) -> Row:
    """Time and memory of `work(*arguments)` in a new process, and what it measured itself."""
    context = get_context("forkserver")
    context.set_forkserver_preload(DRIVER)  # imported once, before each process is forked
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., Row | None], arguments: Sequence[Any]) -> Row:
    began, cpu = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        own = work(*arguments)
    spent = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    # `ru_maxrss` would include the peak of the parent process.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {**spent, "peak_mib": int(peak.split()[1]) / 1024, **(own or {})}


def plan(trials: int) -> None:
    """What `--plan` does."""
    overrides = [part for override in (f"search.trials={trials}", *WIDE) for part in ("--set", override)]
    run.main([str(FILE), "--plan", "--json", *overrides])


def search(trials: int, storage: str, database: bool) -> None:
    """Propose trials and report their metrics until the study is finished."""
    wide = _space(trials)
    study, curve = StudyState(wide, Store(storage)), Synthetic()
    folder = Path(storage, "studies", wide.id)
    Dashboard(study, f"sqlite:///{folder / 'optuna.db'}" if database else None)
    proposals = Proposals(study)
    order = EventOrder(study, proposals.next, wide.launch.concurrent_trials)
    while not order.finished:
        for rung_task in list(iter(order.next, None)):
            trial = study.trials[rung_task.trial]
            value = curve(study.configuration(trial), rung_task.step)
            order.probed(rung_task, dict.fromkeys(wide.probe.measured, value))


def dispatch(trials: int) -> None:
    """The same number of configurations, drawn at random, as a simulated sweep."""
    wide = _space(trials)
    simulate(wide, list(configurations(wide, [])), Synthetic(), LANES)


def tell(trials: int, storage: str) -> None:
    """What `raysweep report` does."""
    report.main([_space(trials).id, "--storage", storage])


def _space(trials: int) -> Space:
    trust_names()
    return space.load(FILE, "cluster", [f"search.trials={trials}", *WIDE])


def accumulate(batch: int, images: int, micro_batch: int) -> Row:
    """Train steps of `batch` images in micro-batches, over `images` images after a first step that is not timed."""
    import torch

    from trainables.config import NoTerm, Phase, Recipe, Run
    from trainables.datasets.autoencoders import Normalisation
    from trainables.datasets.latent_files import Held
    from trainables.datasets.latent_set import LatentSet
    from trainables.training.loop import Context, train

    count, classes = 1024, 10
    latents = torch.randn(count, 2, *LATENT)
    columns = Held({"latent": latents, "label": torch.arange(count) % classes})
    unit = Normalisation(torch.tensor(0.0), torch.tensor(1.0))
    data = LatentSet(columns, num_images=count, latent_shape=LATENT, num_classes=classes, normalisation=unit)
    steps = 1 + max(1, images // batch)
    recipe = Recipe(backbone=BACKBONE, batch_size=batch)
    marks: list[float] = []
    context = Context(micro_batch=micro_batch, progress=lambda step: marks.append(time.perf_counter()))
    phases = (Phase(until=steps, term=NoTerm()),)
    train(Run(**recipe.model_dump(), phases=phases), steps, data=data, context=context)
    step_s = (marks[-1] - marks[0]) / (steps - 1)
    return {"step_s": step_s, "images_per_s": batch / step_s}


# --- the parts


def over_trials(sizes: Sequence[int], storage: str | None, database: bool) -> dict[str, dict[int, Row]]:
    """Plan, search, dispatch and report by number of trials."""
    results: dict[str, dict[int, Row]] = {name: {} for name in INK}
    for trials in sizes:
        with tempfile.TemporaryDirectory(dir=storage) as folder:
            results["plan"][trials] = measured(plan, trials)
            results["search"][trials] = measured(search, trials, folder, database)
            results["dispatch"][trials] = measured(dispatch, trials)
            results["report"][trials] = measured(tell, trials, folder)
    return results


def over_batches(sizes: Sequence[int], micro_batch: int = MICRO_BATCH) -> dict[int, Row]:
    """Training steps by batch."""
    return {batch: measured(accumulate, batch, max(sizes), micro_batch) for batch in sizes}


def over_ranks(sizes: Sequence[int]) -> dict[int, Row]:
    """Steps a second and efficiency by number of ranks, of which the fewest come first."""
    command = [sys.executable, str(ROOT / "benchmarks" / "scaling.py"), "--repeats", "1", "--ranks", *map(str, sizes)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-2000:] or done.stdout[-2000:])
    rows = json.loads(done.stdout.splitlines()[-1])["ranks"]
    return {int(ranks): row for ranks, row in rows.items()}


def measure(
    trials: Sequence[int],
    batches: Sequence[int],
    ranks: Sequence[int],
    storage: str | None = None,
    database: bool = False,
) -> dict[str, Any]:
    """Measure all parts; a part without sizes is empty.

    Returns:
        `trials` by command and size; `batch` and `ranks` by size; each with rows of figures. `exponents` of the CPU
        seconds of each command, and of the seconds of a training step.
    """
    by_command = over_trials(sorted(trials), storage, database) if trials else {}
    by_batch, by_ranks = over_batches(sorted(batches)), over_ranks(sorted(ranks)) if ranks else {}
    exponents = {command: _exponent(rows, "cpu_s") for command, rows in by_command.items()}
    if by_batch:
        exponents["batch"] = _exponent(by_batch, "step_s")
    return {"trials": by_command, "batch": by_batch, "ranks": by_ranks, "exponents": exponents}


def _exponent(rows: dict[int, Row], cost: str) -> float | None:
    return exponent(list(rows), [row[cost] for row in rows.values()])


# --- for people


def show(results: dict[str, Any], console: Console) -> None:
    """A table for each part."""
    if results["trials"]:
        table = _table("Trials", "", "trials", "seconds", "CPU s", "peak MiB", "exponent")
        for command, rows in results["trials"].items():
            for trials, row in rows.items():
                cells = (f"{row['seconds']:.1f}", f"{row['cpu_s']:.1f}", f"{row['peak_mib']:,.0f}")
                last = trials == max(rows)
                table.add_row(
                    command,
                    f"{trials:,}",
                    *cells,
                    _two_digits(results["exponents"][command]) if last else "",
                    end_section=last,
                )
        console.print(table)
    if results["batch"]:
        title = f"Batch: {BACKBONE}, micro-batches of {MICRO_BATCH}"
        table = _table(title, "batch", "seconds a step", "images/s", "peak MiB", "exponent")
        for batch, row in results["batch"].items():
            cells = (f"{row['step_s']:.2f}", f"{row['images_per_s']:.0f}", f"{row['peak_mib']:,.0f}")
            table.add_row(
                f"{batch:,}",
                *cells,
                _two_digits(results["exponents"]["batch"]) if batch == max(results["batch"]) else "",
            )
        console.print(table)
    if results["ranks"]:
        table = _table("Ranks", "ranks", "steps/s", "efficiency")
        for ranks, row in results["ranks"].items():
            table.add_row(str(ranks), f"{row['steps_per_s']:.2f}", f"{row['efficiency']:.0%}")
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _two_digits(b: float | None) -> str:
    return "" if b is None else f"{b:.2f}"


def draw(results: dict[str, Any], folder: Path) -> None:
    """Write `growth.png` and `growth.svg`: cost against size, one panel per measured cost."""
    trials = [_draw_seconds, _draw_memory] if results["trials"] else []
    others = [_draw_steps, _draw_step_memory] if results["batch"] else []
    others += [_draw_ranks] if results["ranks"] else []
    rows = [row for row in (trials, others) if row]
    picture = figure(0.4 + 3.6 * len(rows), "How cost grows with size")
    for part, row in zip(picture.subfigures(len(rows), 1, squeeze=False).flat, rows, strict=True):
        for axes, panel in zip(part.subplots(1, len(row), squeeze=False).flat, row, strict=True):
            panel(axes, results)
            tidy(axes)
            axes.legend(fontsize=9, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        save(picture, folder / f"growth.{kind}", kind)


def _line(axes: Axes, rows: dict[int, Row], cost: str, label: str, colour: str, style: str = "o-") -> None:
    """One line on two logarithmic axes, with ticks at the measured sizes."""
    axes.plot(list(rows), [row[cost] for row in rows.values()], style, color=colour, label=label, markersize=5)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(list(rows), [f"{size:,}" for size in rows])
    axes.xaxis.set_minor_locator(NullLocator())


def _in_mib(axes: Axes) -> None:
    axes.set(yscale="linear", ylabel="MiB at most (RSS)")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])


def _draw_seconds(axes: Axes, results: dict[str, Any]) -> None:
    for command, rows in results["trials"].items():
        b = _two_digits(results["exponents"][command])
        _line(axes, rows, "cpu_s", f"{command}: N^{b}" if b else command, INK[command])
    axes.set(xlabel="trials N", ylabel="CPU seconds", title="Trials: time")


def _draw_memory(axes: Axes, results: dict[str, Any]) -> None:
    for command, rows in results["trials"].items():
        few, many = sorted(rows)[-2:] if len(rows) > 1 else (0, 0)
        kib = 1024 * (rows[many]["peak_mib"] - rows[few]["peak_mib"]) / (many - few) if many else None
        _line(axes, rows, "peak_mib", f"{command}: {kib:.0f} KiB a trial" if kib else command, INK[command])
    axes.set(xlabel="trials N", title="Trials: memory")
    _in_mib(axes)


def _draw_steps(axes: Axes, results: dict[str, Any]) -> None:
    b = _two_digits(results["exponents"]["batch"])
    _line(axes, results["batch"], "step_s", f"a step: B^{b}" if b else "a step", INK["search"])
    axes.set(xlabel="batch B", ylabel="seconds", title="Accumulated gradients: time")


def _draw_step_memory(axes: Axes, results: dict[str, Any]) -> None:
    _line(axes, results["batch"], "peak_mib", f"micro-batches of {MICRO_BATCH}", INK["search"])
    axes.set(xlabel="batch B", title="Accumulated gradients: memory")
    _in_mib(axes)


def _draw_ranks(axes: Axes, results: dict[str, Any]) -> None:
    rows = results["ranks"]
    fewest = min(rows)
    ideal = {ranks: {"steps_per_s": rows[fewest]["steps_per_s"] * ranks / fewest} for ranks in rows}
    _line(axes, ideal, "steps_per_s", "ideal", COLOURS["PRUNED"], "--")
    _line(axes, rows, "steps_per_s", f"measured, {os.cpu_count()} cores", INK["search"])
    axes.set(xlabel="ranks", ylabel="steps a second", title="Ranks: one global batch")
    axes.yaxis.set_minor_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.tick_params(axis="y", which="minor", labelsize=9)


def main() -> None:
    """Measure, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="*", default=[10, 100, 1000, 10_000])
    parser.add_argument("--batches", type=int, nargs="*", default=[64, 256, 1024, 4096])
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--storage", help="where studies lie (default: a temporary folder)")
    parser.add_argument("--database", action="store_true", help="with optuna-dashboard's SQLite file")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for growth.png and growth.svg")
    options = parser.parse_args()
    results = measure(options.trials, options.batches, options.ranks, options.storage, options.database)
    show(results, Console(width=max(100, Console().width)))
    if options.out and (options.trials or options.batches or options.ranks):
        draw(results, options.out)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
