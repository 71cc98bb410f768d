"""Samples a second of a probe's samplers, plainly and compiled, at the best batch size: without decoder and detector.

    python benchmarks/sampling.py --backbone SiT-B/2 --batches 64 128 256 --precision bf16 --device cuda
    python benchmarks/sampling.py --backbone SiT-T/2 --latent 8 8 --threads 2

`trainables.evaluation.probing.sample` draws one chunk at each batch size with few steps to find the fastest size.
Each sampler then draws a whole chunk of that size with all its steps. `x` is relative to the 250-step SDE of the
plain network at the same batch size. Figures are medians over `--repeats` rounds, with all rows in each round.
Samples of the compiled network are compared with those of the plain one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from trainables import backbones
from trainables.config import BACKBONES, ProbeSpec
from trainables.evaluation.probing import chunk, sample

SAMPLERS = {
    "SDE, 250 steps": ("euler_maruyama", 250),
    "SDE, 50 steps": ("euler_maruyama", 50),
    "Heun, 25 steps": ("heun", 25),
    "Euler, 50 steps": ("euler", 50),
    "Euler, 3 steps": ("euler", 3),
}
FEW = 4  # steps, to compare batch sizes
CLASSES = 10


def network(options: argparse.Namespace, compiled: bool) -> backbones.Backbone:
    """A backbone whose output layers are not zero, as after some training."""
    channels, size = options.latent
    made = backbones.create(options.backbone, in_channels=channels, input_size=size, num_classes=CLASSES)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.named_parameters():
        if "adaLN_modulation" in name or name.startswith("final_layer"):
            torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    made = made.to(options.device).requires_grad_(False).eval()
    if compiled:
        made.compile_blocks()
    return made


def draw(
    made: backbones.Backbone, kind: str, steps: int, batch: int, options: argparse.Namespace
) -> tuple[float, Tensor]:
    """Seconds for one chunk, and what was drawn."""
    channels, size = options.latent
    size_of = {"samples": batch, "batch_size": batch, "metrics": ["fid"]}  # which asks for the fewest samples
    spec = ProbeSpec(detector="effnet_lite0", sampler=kind, steps=steps, **size_of)
    part = chunk(spec, 0, (channels, size, size), CLASSES)
    device = torch.device(options.device)
    began = time.perf_counter()
    with torch.autocast(device.type, torch.bfloat16, enabled=options.precision == "bf16"):
        drawn = sample(made, spec, part, device).cpu()
    return time.perf_counter() - began, drawn


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="SiT-B/2", metavar="NAME")
    parser.add_argument("--latent", type=int, nargs=2, default=(4, 32), metavar=("CHANNELS", "SIZE"))
    parser.add_argument("--batches", type=int, nargs="+", default=[18, 36, 72, 144])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave the compiled network out")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = (False, True) if options.compile else (False,)
    networks = {compiled: network(options, compiled) for compiled in ways}
    rates: dict[int, float] = {}
    for batch in options.batches:
        draw(networks[False], "euler", FEW, batch, options)
        took = [draw(networks[False], "euler", FEW, batch, options)[0] for _ in range(options.repeats)]
        rates[batch] = batch * FEW / statistics.median(took)
    best = max(rates, key=rates.__getitem__)
    text = ", ".join(f"{batch}: {rate:.0f}" for batch, rate in rates.items())
    print(f"network evaluations of one image a second, by batch: {text}; taken: {best}")
    if options.compile:
        draw(networks[True], "euler", FEW, best, options)  # which takes half a minute once
    seconds: dict[tuple[str, bool], list[float]] = defaultdict(list)
    apart = 0.0
    for _ in range(options.repeats):
        for name, (kind, steps) in SAMPLERS.items():
            drawn = {}
            for compiled, made in networks.items():
                took_s, drawn[compiled] = draw(made, kind, steps, best, options)
                seconds[name, compiled].append(took_s)
            apart = max(apart, float((drawn[ways[-1]] - drawn[False]).norm() / drawn[False].norm()))
    table = Table(
        "sampler", "samples/s", "x", "compiled", "x", title=f"{options.backbone}, batch {best}, {options.device}"
    )
    base, results = statistics.median(seconds["SDE, 250 steps", False]), {}
    for name in SAMPLERS:
        middle = [statistics.median(seconds[name, which]) for which in ways]
        results[name] = {
            "samples_per_s": [best / taken_s for taken_s in middle],
            "x": [base / taken_s for taken_s in middle],
        }
        cells = [(f"{best / taken_s:.2f}", f"{base / taken_s:.1f}") for taken_s in middle]
        table.add_row(name, *(cell for pair in cells for cell in pair))
    Console().print(table)
    print(f"compiled samples differ by at most {apart:.1e} of their norm")
    print(json.dumps({"batch": best, "samplers": results, "apart": apart}))


if __name__ == "__main__":
    main()
