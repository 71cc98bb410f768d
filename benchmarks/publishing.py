"""What checkpoints cost training: committed by a thread while it continues, or with a stop for each.

    python benchmarks/publishing.py --backbone SiT-S/2 --latent 4 16 --batch 4 --every-s 5 --seconds 30

Three trainings of the same steps, in turn, `--repeats` times: without a checkpoint; with one every `--every-s` seconds,
committed by `raysweep.execution.checkpointer`; and with a stop for each, which is saved, committed, and read back with
its SHA-256 to go on from it. Printed are shares of the time without checkpoints. What a checkpoint costs does not
depend on the interval: the share at `launch.checkpoint_every_s` (600 s) is the share times `--every-s` / 600.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import step as steps_of

from raysweep.execution.checkpointer import Checkpointer
from raysweep.planning.simulation import trust_names
from raysweep.store.manifest import TrainingFacts
from raysweep.store.store import Store
from trainables.config import BACKBONES, NoTerm, Phase, Run
from trainables.datasets.latent_set import LatentSet
from trainables.training.checkpoint import Checkpoint
from trainables.training.loop import Context, train

EVERY_S = 600  # launch.checkpoint_every_s


def by_thread(run: Run, data: LatentSet, device: torch.device, every: int, store: Store) -> None:
    """Checkpoints are committed by a thread, as in a lane."""
    checkpointer = Checkpointer(store, [run], 0, lambda run, step: TrainingFacts(between=step < run.steps))
    context = Context(device, should_checkpoint=lambda step: step % every == 0, on_checkpoint=checkpointer.begin)
    checkpointer.finish([train(run, run.steps, data=data, context=context)])
    checkpointer.close()


def with_stops(run: Run, data: LatentSet, device: torch.device, every: int, store: Store) -> None:
    """Training stops at each checkpoint and continues from the committed files."""
    start, begin = None, 0
    while begin < run.steps:
        end = min(begin + every, run.steps)
        outcome = train(run, end, data=data, context=Context(device), start=start)
        checkpointer = Checkpointer(store, [run], begin, lambda run, step: TrainingFacts(between=step < run.steps))
        checkpointer.finish([outcome])
        checkpointer.close()
        checkpoint = store.find(run, end)
        assert checkpoint is not None
        start, begin = Checkpoint.load(store.open(checkpoint), end), end


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="SiT-S/2", metavar="NAME")
    parser.add_argument("--latent", type=int, nargs=2, default=(4, 16), metavar=("CHANNELS", "SIZE"))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--every-s", type=float, default=5, help="of training, between checkpoints")
    parser.add_argument("--seconds", type=float, default=30, help="of training, about")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for training")
    parser.add_argument("--storage", help="the folder for checkpoints (default: a temporary one)")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trust_names()  # the latents are random
    device, data = torch.device(options.device), steps_of.random_latents(*options.latent)

    def run(steps: int) -> Run:
        return Run(backbone=options.backbone, batch_size=options.batch, phases=[Phase(until=steps, term=NoTerm())])

    pace = train(run(8), 8, data=data, context=Context(device)).seconds / 8
    every, steps = (max(1, round(seconds / pace)) for seconds in (options.every_s, options.seconds))
    took: dict[str, list[float]] = defaultdict(list)
    for _ in range(options.repeats):
        for way, go in {"none": None, "by a thread": by_thread, "with a stop for each": with_stops}.items():
            with tempfile.TemporaryDirectory(dir=options.storage) as folder:
                began = time.perf_counter()
                if go:
                    go(run(steps), data, device, every, Store(folder))
                else:
                    train(run(steps), steps, data=data, context=Context(device))
                took[way].append(time.perf_counter() - began)
    base, shares = statistics.median(took["none"]), {}
    table = Table(
        "checkpoints", "seconds", "share", f"at every {EVERY_S} s", title=f"{options.backbone}, every {every} steps"
    )
    for way, measured in took.items():
        share = statistics.median(measured) / base - 1
        shares[way] = {"share": share, "share_at_600_s": share * options.every_s / EVERY_S}
        table.add_row(way, f"{base * (1 + share):.2f}", f"{share:.1%}", f"{share * options.every_s / EVERY_S:.2%}")
    Console().print(table)
    print(json.dumps(shares))


if __name__ == "__main__":
    main()
