"""Several small trials on one device: one after another, in parallel processes, or as a cohort.

    python benchmarks/packing.py --backbone SiT-S/2 SiT-B/2 SiT-L/2 --batch 256 --precision bf16 --device cuda
    python benchmarks/packing.py --backbone SiT-T/2 --latent 8 8 --batch 16 --projector 256 --threads 2

Trains `--trials` guided students of one teacher for the same number of steps. Measures student-steps per second:

* `in turn`: one process trains one student after another, with the whole device.
* `side by side`: two processes, or `--trials` of them, as with fractions of a GPU (`gpus_per_worker: 0.5`). They use
  MPS where its daemon runs (`nvidia-cuda-mps-control -d`); the title says so. On a CPU they share the threads.
* `cohort`: one process trains all students in lockstep.

Clocks start when all processes have warmed up, and the slowest process counts. Figures are medians over `--repeats`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import step as steps_of

from trainables.config import BACKBONES, Recipe, Run
from trainables.training.loop import Context, build_backbone, train_together


def guided(name: str, options: argparse.Namespace) -> tuple[Run, ...]:
    """The students: they differ in their guidance scale."""
    recipe = Recipe(backbone=name, batch_size=options.batch, precision=options.precision)
    total = options.steps + steps_of.WARM_UP
    every = steps_of.rows(recipe, total, options.projector, options.trials)
    return next(row.runs for row in every if row.name.startswith("cohort"))


def work(rank: int, groups: list[list[tuple[Run, ...]]], options: argparse.Namespace, gate: Any, out: Any) -> None:
    """One process: train its groups of students in turn, and report the seconds since its first timed step."""
    torch.set_num_threads(max(1, options.threads // len(groups)))
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = True
    channels, size = options.latent or steps_of.LATENTS[groups[0][0][0].size.family]
    data = steps_of.random_latents(channels, size)
    teacher = build_backbone(groups[0][0][0], data).to(device).requires_grad_(False).eval()
    if options.compile:
        teacher.compile_blocks()
    began = 0.0

    def progress(step: int) -> None:
        nonlocal began
        if step == steps_of.WARM_UP and not began:  # only for the first group; the others continue without waiting
            steps_of.synchronise(device)
            gate.wait()
            began = time.perf_counter()

    for runs in groups[rank]:
        context = Context(device, compile=options.compile, progress=progress)
        nothing = [None] * len(runs)
        steps = runs[0].steps
        train_together(runs, steps, data=data, context=context, starts=nothing, teacher=lambda _: teacher)
    steps_of.synchronise(device)
    out.put(time.perf_counter() - began)


def rate(groups: list[list[tuple[Run, ...]]], options: argparse.Namespace) -> float:
    """Student-steps a second of all processes together."""
    context = mp.get_context("spawn")
    gate, out = context.Barrier(len(groups)), context.SimpleQueue()
    mp.spawn(work, (groups, options, gate, out), nprocs=len(groups))
    longest = max(out.get() for _ in groups)
    # The steps before the clock started belong to the first group of each process.
    untimed = sum(steps_of.WARM_UP * len(mine[0]) for mine in groups)
    return (sum(run.steps for mine in groups for runs in mine for run in runs) - untimed) / longest


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=["SiT-S/2"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latent", type=int, nargs=2, metavar=("CHANNELS", "SIZE"), help="default: the family's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--projector", type=int, default=2048)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU, for all processes together")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    mps = ", MPS" if os.path.exists(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) else ""
    ratios: dict[str, dict[str, float]] = {}
    for name in options.backbone:
        students = guided(name, options)
        alone = [(run,) for run in students]
        ways = {"in turn": [alone]}
        for processes in (2, options.trials):
            ways[f"{processes} side by side"] = [alone[rank::processes] for rank in range(processes)]
        ways["cohort"] = [[students]]
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.repeats):
            for way, groups in ways.items():
                rates[way].append(rate(groups, options))
        middle = {way: statistics.median(measured) for way, measured in rates.items()}
        title = f"{options.trials} students of {name}, batch {options.batch}, {options.device}{mps}"
        table = Table("way", "student-steps/s", "x in turn", title=title)
        for way, measured in middle.items():
            table.add_row(way, f"{measured:.2f}", f"{measured / middle['in turn']:.2f}")
        Console().print(table)
        ratios[name] = {way: measured / middle["in turn"] for way, measured in middle.items()}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
