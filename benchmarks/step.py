"""The training step against REPA's, guided and in cohorts, side by side on one machine: seconds, ratios, utilisation.

    python benchmarks/step.py --backbone SiT-B/2 SiT-XL/2 --batch 256 --precision bf16 --device cuda
    python benchmarks/step.py --backbone SiT-T/2 --latent 8 8 --batch 16 --precision fp32 --projector 256 --threads 2

Rows of a backbone, all on the same random latents:

* `reference`: REPA's step as benchmarks/reference.py re-creates it, plain SiT.
* `none`, `vae_align`, `self_guided`: runs of `trainables.train` itself, in which draws, clipping, AdamW and EMA are.
* `self_guided, teacher bf16`: the teacher's matrix products in another precision than the student's.
* `cohort of K`: that many guided students in lockstep; seconds are of one of them.

Each of ours plainly and with compiled blocks. Times are medians over steps, and over `--repeats` rounds in which every
row is measured in turn; ratios are medians over rounds of the ratio in each. `x reference` is how many times as fast as
the reference a row is, `of plain` what it costs in steps without a method, compiled or not as it is. Utilisation counts
three forwards of the student, and while guided 2 m / n of the teacher (block m of n, two branches, shared by a cohort),
not the projector; it is against the product of two square matrices measured on the spot in the same precision. Losses
of `none` are compared with the reference's, step by step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import reference

from trainables.backbones.costs import cost
from trainables.config import BACKBONES, NoTerm, Phase, Recipe, Run, SelfGuidedTerm, TeacherRef, VaeAlignTerm
from trainables.datasets.autoencoders import Normalisation
from trainables.datasets.latent_files import Held
from trainables.datasets.latent_set import LatentSet
from trainables.training.loop import Context, Outcome, build_backbone, train_together

WARM_UP = 3  # steps that are not timed
IMAGES = 512
LATENTS = {"SiT": (4, 32), "LightningDiT": (32, 16)}


@dataclass(frozen=True)
class Row:
    """What is measured: runs in lockstep, compiled or not."""

    name: str
    runs: tuple[Run, ...]
    compiled: bool

    @property
    def forwards(self) -> float:
        """Forwards of the backbone in the step of one student."""
        pair = getattr(self.runs[0].phases[0].term, "layers", None)
        return 3 + (2 * pair[0] / self.runs[0].size.depth / len(self.runs) if pair else 0)


def random_latents(channels: int, size: int) -> LatentSet:
    """Posteriors of noise, of as many classes as there are images."""
    shape = (IMAGES, channels, size, size)
    moments = torch.stack([torch.randn(shape), torch.full(shape, 0.1)], dim=1)
    unit = Normalisation(torch.tensor(0.0), torch.tensor(1.0))
    return LatentSet(Held({"latent": moments, "label": torch.arange(IMAGES)}), IMAGES, shape[1:], 1000, unit)


def rows(
    recipe: Recipe, steps: int, projector: int, cohort: int, compiled: Sequence[bool] = (False, True)
) -> list[Row]:
    """The same recipe with each method that the paper times, plainly and compiled."""
    own = recipe.model_dump()
    plain = Run(**own, phases=[Phase(until=steps, term=NoTerm())])
    aligned = Run(**own, phases=[Phase(until=steps, term=VaeAlignTerm(), projector_width=projector)])

    def guided(scale: float, precision: Any = None) -> Run:
        term = SelfGuidedTerm(guidance_scale=scale).resolved(recipe.size)
        teacher = TeacherRef(run=aligned, step=1, precision=precision)
        return Run(**own, phases=[Phase(until=steps, term=term, projector_width=projector, teacher=teacher)])

    scales = [30.0 + number for number in range(cohort)]
    kinds = {
        "none": [plain],
        "vae_align": [aligned],
        "self_guided": [guided(30.0)],
        f"cohort of {cohort}": [guided(scale) for scale in scales],
    }
    if recipe.precision == "fp32":
        kinds["self_guided, teacher bf16"] = [guided(30.0, "bf16")]
        kinds[f"cohort of {cohort}, teacher bf16"] = [guided(scale, "bf16") for scale in scales]
    return [Row(name, tuple(runs), which) for which in compiled for name, runs in kinds.items()]


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(row: Row, data: LatentSet, device: torch.device) -> tuple[float, dict[int, float]]:
    """Of one student, the median over all steps but the first few; and the losses of the first student, as means over
    the steps that end where it is said."""
    marks: list[float] = []

    def progress(step: int) -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    teacher = build_backbone(row.runs[0], data).to(device).requires_grad_(False).eval()
    if row.compiled:
        teacher.compile_blocks()
    context = Context(device, compile=row.compiled, progress=progress)
    nothing = [None] * len(row.runs)
    steps = row.runs[0].steps
    (first, *_) = train_together(row.runs, steps, data=data, context=context, starts=nothing, teacher=lambda _: teacher)
    assert isinstance(first, Outcome)
    took = [after - before for before, after in zip(marks[WARM_UP:], marks[WARM_UP + 1 :], strict=False)]
    return statistics.median(took) / len(row.runs), {
        int(point["step"]): point["loss_diffusion"] for point in first.curve
    }


def measured_peak(device: torch.device, precision: str) -> float:
    """Multiply-adds a second of a large matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        best = max(best, side**3 / (time.perf_counter() - began))
    return best


def measure(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All rows of one backbone."""
    device = torch.device(options.device)
    channels, size = options.latent or LATENTS[BACKBONES[name].family]
    data = random_latents(channels, size)
    steps = options.steps + WARM_UP
    recipe = Recipe(backbone=name, batch_size=options.batch, precision=options.precision)
    ways = (False, True) if options.compile else (False,)
    every = rows(recipe, steps, options.projector, options.cohort, ways)
    took: dict[Row, list[float]] = defaultdict(list)
    theirs: list[float] = []
    their_losses: list[float] = []
    losses: dict[bool, dict[int, float]] = {}
    memory: dict[Row, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        reference.write_files(data.columns.take("latent", torch.arange(IMAGES)), Path(folder))
        files = reference.Files(Path(folder), data.labels(torch.arange(IMAGES)))
        for number in range(options.repeats):
            network = build_backbone(every[0].runs[0], data).to(device)
            trained = list(reference.train(every[0].runs[0], network, files, device, steps))
            theirs.append(statistics.median(seconds for seconds, _ in trained[WARM_UP:]))
            their_losses = [loss for _, loss in trained]
            for row in every[:: 1 if number % 2 else -1]:  # reversed every other round
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(device)
                seconds, mine = seconds_per_step(row, data, device)
                took[row].append(seconds)
                if row.name == "none":
                    losses[row.compiled] = mine
                if device.type == "cuda":
                    memory[row] = torch.cuda.max_memory_allocated(device) / 2**30
    peak, forward = measured_peak(device, options.precision), cost(name, (channels, size, size)).multiply_adds
    plain = {row.compiled: took[row] for row in every if row.name == "none"}
    results = [{"row": "reference", "ms": 1e3 * statistics.median(theirs), "x_reference": 1.0}]
    for row in every:
        seconds = statistics.median(took[row])
        figures = {"row": row.name + (", compiled" if row.compiled else ""), "ms": 1e3 * seconds}
        figures |= {"x_reference": middle(theirs, took[row]), "of_plain": middle(took[row], plain[row.compiled])}
        figures |= {"utilisation": row.forwards * forward * options.batch / seconds / peak}
        results.append(figures | ({"memory_gib": memory[row]} if row in memory else {}))
    for compiled, mine in losses.items():
        begins = [0, *mine]
        theirs_then = [statistics.fmean(their_losses[begin:end]) for begin, end in pairwise(begins)]
        apart = max(abs(a - b) / b for a, b in zip(mine.values(), theirs_then, strict=True))
        results.append({"row": "losses apart" + (", compiled" if compiled else ""), "share": apart})
    return results


def middle(these: list[float], those: list[float]) -> float:
    """The median of the ratios round by round: a machine that is slow for a while is slow for both."""
    return statistics.median(this / that for this, that in zip(these, those, strict=True))


def show(name: str, results: list[dict[str, Any]], options: argparse.Namespace) -> None:
    title = f"{name}, batch {options.batch}, {options.precision}, {options.device}: medians of {options.repeats} rounds"
    table = Table("a step of one student", "ms", "x reference", "of plain", "utilisation", "GiB", title=title)
    for figures in results:
        if "ms" in figures:
            cells = [f"{figures['ms']:.1f}", f"{figures['x_reference']:.2f}"]
            cells += [f"{figures[key]:{form}}" if key in figures else "" for key, form in SHOWN.items()]
            table.add_row(figures["row"], *cells)
    Console().print(table)
    for figures in results:
        if "share" in figures:
            Console().print(f"{figures['row']}: at most {figures['share']:.1e} of themselves, of the reference's")


SHOWN = {"of_plain": ".2f", "utilisation": ".0%", "memory_gib": ".1f"}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=["SiT-B/2"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latent", type=int, nargs=2, metavar=("CHANNELS", "SIZE"), help="default: the family's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--projector", type=int, default=2048, help="hidden width of the methods' projector")
    parser.add_argument("--cohort", type=int, default=4)
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled rows out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    figures = {}
    for name in options.backbone:
        figures[name] = measure(name, options)
        show(name, figures[name], options)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
