"""How cost grows with size, as plots of cost against size: trials of a sweep, images of a batch, ranks.

    python benchmarks/growth.py [--trials 10 100 1000 10000] [--batches 64 256 1024 4096] [--ranks 1 2 4]
                                [--storage FOLDER] [--out FOLDER]

An option without a number leaves its part out. Each measurement has a process of its own and each size its turn, all
on one machine: wall seconds and CPU seconds from the first call on, imports excluded, and the process's highest memory
(RSS, imports included). For each number of trials, of Table 5 with a continuous guidance scale:

* `plan`: `python -m raysweep.run --plan`.
* `search`: what a driver does but for Tune and the work: proposals of TPE, turns, ASHA, the journal, Optuna's view of
  it, over synthetic learning curves. The journal lies in `--storage`, fsync included: on a disk, wall seconds are the
  disk's. `--database` adds what optuna-dashboard reads, in SQLite.
* `dispatch`: the simulated sweep of as many random configurations: the dispatcher, its lanes and the study on a virtual
  clock, everything in memory.
* `report`: `raysweep report` of the study that `search` has left.

`batch` is `trainables.train` of SiT-T/2 on random latents of 8x8x8 in micro-batches of 64: seconds of a step, after one
that is not timed. Every batch takes as many images as the largest in all. `ranks` is benchmarks/scaling.py.

The exponent is b in cost = a · size^b, by least squares in the logarithms over the larger half of the sizes, two at
least: what every size pays alike (a first look at a file, a picture's frame) hides it in the smaller ones. Of trials it
is that of CPU seconds, which other work on the machine touches least.
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
from raysweep.space.configurations import Configuration, configurations
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
DRIVER = ["raysweep.proposals", "raysweep.report", "raysweep.run", "raysweep.simulation"]
INK = {"plan": COLOURS["RUNNING"], "search": COLOURS["COMPLETE"], "dispatch": "#009E73", "report": COLOURS["FAILED"]}

Row = dict[str, float]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float | None:
    """b of cost = a · size^b over the larger half of rising sizes; None of fewer than two."""
    if len(sizes) < 2:
        return None
    half = max(2, math.ceil(len(sizes) / 2))
    x, y = ([math.log(value) for value in values[-half:]] for values in (sizes, costs))
    middle_x, middle_y = sum(x) / half, sum(y) / half
    across = sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    return across / sum((one - middle_x) ** 2 for one in x)


# --- each in a process of its own


def measured(work: Callable[..., Row | None], *arguments: Any) -> Row:
    """What `work(*arguments)` takes in a new process, and what it has measured itself."""
    context = get_context("forkserver")
    context.set_forkserver_preload(DRIVER)  # imported once, and there in each process from its start
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_measured, work, arguments).result()


def _measured(work: Callable[..., Row | None], arguments: Sequence[Any]) -> Row:
    began, cpu = time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        own = work(*arguments)
    spent = {"seconds": time.perf_counter() - began, "cpu_s": time.process_time() - cpu}
    # Not `ru_maxrss`: that is inherited from whoever started the process.
    (peak,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return {**spent, "peak_mib": int(peak.split()[1]) / 1024, **(own or {})}


def plan(trials: int) -> None:
    """What `--plan` does."""
    overrides = [part for each in (f"search.trials={trials}", *WIDE) for part in ("--set", each)]
    run.main([str(FILE), "--plan", "--json", *overrides])


def search(trials: int, storage: str, database: bool) -> None:
    """Ask and tell until the study is finished."""
    wide = _space(trials)
    study, curve = StudyState(wide, Store(storage)), Synthetic()
    folder = Path(storage, "studies", wide.id)
    Dashboard(study, f"sqlite:///{folder / 'optuna.db'}" if database else None)
    proposals = Proposals(study)
    order = EventOrder(study, proposals.next, wide.launch.concurrent_trials)
    while not order.finished:
        for rung_task in list(iter(order.next, None)):
            trial = study.trials[rung_task.trial]
            written = wide.trial(trial.point)[0]
            chosen = Configuration(
                wide, trial.point, written, study.run(trial), study.rungs(trial), None, study.probe(trial)
            )
            order.probed(rung_task, dict.fromkeys(wide.probe.measured, curve(chosen, rung_task.step)))


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
    """Steps of `batch` images in micro-batches, over `images` in all after a first step: seconds and images a second of
    those."""
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
    found: dict[str, dict[int, Row]] = {name: {} for name in INK}
    for trials in sizes:
        with tempfile.TemporaryDirectory(dir=storage) as folder:
            found["plan"][trials] = measured(plan, trials)
            found["search"][trials] = measured(search, trials, folder, database)
            found["dispatch"][trials] = measured(dispatch, trials)
            found["report"][trials] = measured(tell, trials, folder)
    return found


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
    told = json.loads(done.stdout.splitlines()[-1])["ranks"]
    return {int(ranks): row for ranks, row in told.items()}


def measure(
    trials: Sequence[int],
    batches: Sequence[int],
    ranks: Sequence[int],
    storage: str | None = None,
    database: bool = False,
) -> dict[str, Any]:
    """All of it. Sizes rise; a part without sizes is empty.

    Returns:
        `trials` by stage and size, `batch` and `ranks` by size, each with rows of figures; `exponents` by what grows:
        CPU seconds of a stage, seconds of a training step.
    """
    by_stage = over_trials(sorted(trials), storage, database) if trials else {}
    by_batch, by_ranks = over_batches(sorted(batches)), over_ranks(sorted(ranks)) if ranks else {}
    exponents = {segment: _exponent(rows, "cpu_s") for segment, rows in by_stage.items()}
    if by_batch:
        exponents["batch"] = _exponent(by_batch, "step_s")
    return {"trials": by_stage, "batch": by_batch, "ranks": by_ranks, "exponents": exponents}


def _exponent(rows: dict[int, Row], cost: str) -> float | None:
    return exponent(list(rows), [row[cost] for row in rows.values()])


# --- for people


def show(found: dict[str, Any], console: Console) -> None:
    """A table for each part."""
    if found["trials"]:
        table = _table("Trials", "", "trials", "seconds", "CPU s", "peak MiB", "exponent")
        for segment, rows in found["trials"].items():
            for trials, row in rows.items():
                told = (f"{row['seconds']:.1f}", f"{row['cpu_s']:.1f}", f"{row['peak_mib']:,.0f}")
                last = trials == max(rows)
                table.add_row(
                    segment, f"{trials:,}", *told, _told(found["exponents"][segment]) if last else "", end_section=last
                )
        console.print(table)
    if found["batch"]:
        title = f"Batch: {BACKBONE}, micro-batches of {MICRO_BATCH}"
        table = _table(title, "batch", "seconds a step", "images/s", "peak MiB", "exponent")
        for batch, row in found["batch"].items():
            told = (f"{row['step_s']:.2f}", f"{row['images_per_s']:.0f}", f"{row['peak_mib']:,.0f}")
            table.add_row(
                f"{batch:,}", *told, _told(found["exponents"]["batch"]) if batch == max(found["batch"]) else ""
            )
        console.print(table)
    if found["ranks"]:
        table = _table("Ranks", "ranks", "steps/s", "efficiency")
        for ranks, row in found["ranks"].items():
            table.add_row(str(ranks), f"{row['steps_per_s']:.2f}", f"{row['efficiency']:.0%}")
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _told(b: float | None) -> str:
    return "" if b is None else f"{b:.2f}"


def draw(found: dict[str, Any], folder: Path) -> None:
    """`growth.png` and `growth.svg`: cost against size, a panel for each that was measured."""
    trials = [_draw_seconds, _draw_memory] if found["trials"] else []
    others = [_draw_steps, _draw_step_memory] if found["batch"] else []
    others += [_draw_ranks] if found["ranks"] else []
    rows = [row for row in (trials, others) if row]
    picture = figure(0.4 + 3.6 * len(rows), "How cost grows with size")
    for part, row in zip(picture.subfigures(len(rows), 1, squeeze=False).flat, rows, strict=True):
        for axes, panel in zip(part.subplots(1, len(row), squeeze=False).flat, row, strict=True):
            panel(axes, found)
            tidy(axes)
            axes.legend(fontsize=9, frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        save(picture, folder / f"growth.{kind}", kind)


def _line(axes: Axes, rows: dict[int, Row], cost: str, label: str, colour: str, style: str = "o-") -> None:
    """One line on two logarithmic axes, of which the first is marked where something was measured."""
    axes.plot(list(rows), [row[cost] for row in rows.values()], style, color=colour, label=label, markersize=5)
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(list(rows), [f"{size:,}" for size in rows])
    axes.xaxis.set_minor_locator(NullLocator())


def _in_mib(axes: Axes) -> None:
    axes.set(yscale="linear", ylabel="MiB at most (RSS)")
    axes.set_ylim(0, 1.25 * axes.get_ylim()[1])


def _draw_seconds(axes: Axes, found: dict[str, Any]) -> None:
    for segment, rows in found["trials"].items():
        b = _told(found["exponents"][segment])
        _line(axes, rows, "cpu_s", f"{segment}: N^{b}" if b else segment, INK[segment])
    axes.set(xlabel="trials N", ylabel="CPU seconds", title="Trials: time")


def _draw_memory(axes: Axes, found: dict[str, Any]) -> None:
    for segment, rows in found["trials"].items():
        few, many = sorted(rows)[-2:] if len(rows) > 1 else (0, 0)
        kib = 1024 * (rows[many]["peak_mib"] - rows[few]["peak_mib"]) / (many - few) if many else None
        _line(axes, rows, "peak_mib", f"{segment}: {kib:.0f} KiB a trial" if kib else segment, INK[segment])
    axes.set(xlabel="trials N", title="Trials: memory")
    _in_mib(axes)


def _draw_steps(axes: Axes, found: dict[str, Any]) -> None:
    b = _told(found["exponents"]["batch"])
    _line(axes, found["batch"], "step_s", f"a step: B^{b}" if b else "a step", INK["search"])
    axes.set(xlabel="batch B", ylabel="seconds", title="Accumulated gradients: time")


def _draw_step_memory(axes: Axes, found: dict[str, Any]) -> None:
    _line(axes, found["batch"], "peak_mib", f"micro-batches of {MICRO_BATCH}", INK["search"])
    axes.set(xlabel="batch B", title="Accumulated gradients: memory")
    _in_mib(axes)


def _draw_ranks(axes: Axes, found: dict[str, Any]) -> None:
    rows = found["ranks"]
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
    found = measure(options.trials, options.batches, options.ranks, options.storage, options.database)
    show(found, Console(width=max(100, Console().width)))
    if options.out and (options.trials or options.batches or options.ranks):
        draw(found, options.out)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
