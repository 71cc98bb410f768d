"""Training steps a second, memory and model FLOPs utilisation, with and without guidance, side by side on one machine.

    python benchmarks/step.py --backbone SiT-B/2 SiT-XL/2 --batch 256 --precision bf16 --device cuda

Each row is a run of `trainables.train` itself on random latents: draws, step, clipping, AdamW and EMA are all in it. A
step counts three forwards of the student (backward is two), and while it is guided 2 m / n forwards of the teacher
(block m of n, conditional and unconditional). Utilisation is against the product of two square matrices measured on the
spot, in the same precision; medians over `--repeats`. `ratio` is against the row of the same backbone without a method.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainables.backbones.cost import cost
from trainables.data import LatentSet
from trainables.encode import Normalisation
from trainables.spec import BACKBONES, NoTerm, Phase, Recipe, Run, SelfGuidedTerm, TeacherRef, VaeAlignTerm
from trainables.train import Context, build_backbone, train

WARM_UP = 3  # steps that are not timed
LATENTS = {"SiT": (4, 32), "LightningDiT": (32, 16)}


def random_latents(channels: int, size: int, count: int = 1024) -> LatentSet:
    shape = (count, channels, size, size)
    unit = Normalisation(torch.tensor(0.0), torch.tensor(1.0))
    return LatentSet(torch.randn(shape), torch.full(shape, 0.1), torch.arange(count) % 1000, 1000, unit)


def runs(recipe: Recipe, steps: int) -> dict[str, Run]:
    """The same recipe with each method that the paper times."""
    own = recipe.model_dump()
    aligned = Run(**own, phases=[Phase(until=steps, term=VaeAlignTerm(), projector_width=2048)])
    guided = Phase(
        until=steps,
        term=SelfGuidedTerm().resolved(recipe.size),
        projector_width=2048,
        teacher=TeacherRef(run=aligned, step=1),
    )
    return {
        "none": Run(**own, phases=[Phase(until=steps, term=NoTerm())]),
        "vae_align": aligned,
        "self_guided": Run(**own, phases=[guided]),
    }


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_step(run: Run, data: LatentSet, context: Context) -> float:
    """Of all steps but the first few, in one go."""
    marks: list[float] = []

    def progress(step: int) -> None:
        if step in (WARM_UP, run.steps):
            synchronise(context.device)
            marks.append(time.perf_counter())

    teacher = build_backbone(run, data).to(context.device).requires_grad_(False).eval()
    timed = Context(context.device, checkpoint_blocks=context.checkpoint_blocks, progress=progress)
    train(run, run.steps, data=data, context=timed, teacher=lambda _: teacher)
    return (marks[1] - marks[0]) / (run.steps - WARM_UP)


def measured_peak(device: torch.device, precision: str) -> float:
    """Multiply-adds a second of a large matrix product, the best of a few."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16" and device.type == "cuda" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(10):
        synchronise(device)
        began = time.perf_counter()
        a @ b
        synchronise(device)
        best = max(best, side**3 / (time.perf_counter() - began))
    return best


def measure(options: argparse.Namespace) -> list[dict[str, float | str]]:
    device = torch.device(options.device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    peak = measured_peak(device, options.precision)
    rows: list[dict[str, float | str]] = []
    for name in options.backbone:
        channels, size = options.latent or LATENTS[BACKBONES[name].family]
        data = random_latents(channels, size)
        recipe = Recipe(backbone=name, batch_size=options.batch, precision=options.precision)
        forward = cost(name, (channels, size, size)).multiply_adds
        plain = None
        for method, run in runs(recipe, options.steps + WARM_UP).items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            context = Context(device, checkpoint_blocks=options.checkpoint_blocks)
            seconds = statistics.median(seconds_per_step(run, data, context) for _ in range(options.repeats))
            plain = plain or seconds
            pair = getattr(run.phases[0].term, "layers", None)
            forwards = 3 + (2 * pair[0] / BACKBONES[name].depth if pair else 0)
            row = {"backbone": name, "method": method, "batch": options.batch, "precision": options.precision}
            row |= {"steps_per_s": round(1 / seconds, 3), "ratio": round(seconds / plain, 3)}
            row["utilisation"] = round(forwards * forward * options.batch / seconds / peak, 3)
            if device.type == "cuda":
                row["memory_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 1)
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=["SiT-B/2"], metavar="NAME")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--latent", type=int, nargs=2, metavar=("CHANNELS", "SIZE"), help="default: the family's")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--checkpoint-blocks", action="store_true")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
