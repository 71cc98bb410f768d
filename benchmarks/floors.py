"""Lower bounds of the time of a training step, by operations and by bytes, for each backbone on a device.

    python benchmarks/floors.py [--backbone SiT-B/2 …] [--batch 256] [--tflops 989 --tb-s 3.35]    an H100 (SXM), bf16
    python benchmarks/floors.py --measure cpu --precision fp32 --batch 16                          this machine's rates

Operations: a step is three forwards (backward is two), a multiply-add two operations; guided by block m of n, 2 m / n
forwards more, and three of the projector. Bytes: what must cross the memory at least once, caches or no caches.

* parameters: AdamW reads parameter, gradient and two moments and writes all but the gradient (28 bytes each), the norm
  reads the gradient, clipping reads and writes it (12), backward writes it (4), the average is read and written beside
  the parameter (12), forward and backward read a copy in the products' precision, which is written once.
* activations: backward reads what forward wrote, once each, in the products' precision: per token and block 18 widths
  (two normalised inputs, q, k, v, what attention gives, the MLP's inner state before and after its function, both
  outputs), and the residual stream once in float32.

A step takes at least the larger bound. A step without any overlap takes their sum.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import step as steps_of

from trainables.backbones.costs import Cost, cost
from trainables.config import BACKBONES, BackboneSize

USUAL = ["SiT-S/2", "SiT-B/2", "SiT-L/2", "SiT-XL/2", "LightningDiT-B/1", "LightningDiT-XL/1"]
PROJECTOR = 2048


def operations(size: BackboneSize, counted: Cost, batch: int, guided: bool) -> float:
    """Operations of one step."""
    forwards = 3 * counted.multiply_adds
    if guided:
        forwards += 2 * (2 * size.depth // 3) / size.depth * counted.multiply_adds
        forwards += 3 * counted.tokens * (2 * size.width * PROJECTOR + PROJECTOR**2)
    return 2 * batch * forwards


def moved(size: BackboneSize, counted: Cost, batch: int, width: int) -> tuple[float, float]:
    """Bytes that one step moves: of parameters and of activations; `width` is the bytes of a value in a product."""
    copies = 3 * width if width < 4 else 8
    parameters = counted.parameters * (28 + 12 + 4 + 12 + copies)
    activations = batch * counted.tokens * size.depth * size.width * 2 * (18 * width + 4)
    return parameters, activations


def measured_rates(device: torch.device, precision: str) -> tuple[float, float]:
    """Operations a second of a large product, and bytes a second of a large copy."""
    size = 2**30 if device.type == "cuda" else 2**26
    source, target = (torch.empty(size, dtype=torch.float32, device=device) for _ in range(2))
    best = 0.0
    for _ in range(5):
        steps_of.synchronise(device)
        began = time.perf_counter()
        target.copy_(source)
        steps_of.synchronise(device)
        best = max(best, 8 * size / (time.perf_counter() - began))
    return 2 * steps_of.measured_peak(device, precision), best


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", nargs="+", choices=BACKBONES, default=USUAL, metavar="NAME")
    parser.add_argument("--latent", type=int, nargs=2, metavar=("CHANNELS", "SIZE"), help="default: the family's")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--tflops", type=float, default=989, help="of dense products in that precision")
    parser.add_argument("--tb-s", type=float, default=3.35, help="of the memory")
    parser.add_argument("--measure", metavar="DEVICE", help="measure both rates there instead")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rates = options.tflops * 1e12, options.tb_s * 1e12
    if options.measure:
        rates = measured_rates(torch.device(options.measure), options.precision)
    title = f"batch {options.batch}, {options.precision}, {rates[0] / 1e12:.3g} Tflop/s, {rates[1] / 1e12:.3g} TB/s"
    heads = ("backbone", "Tflop", "ms", "guided", "GB, weights", "states", "ms", "ms / ms")
    table, results = Table(*heads, title=title), {}
    for name in options.backbone:
        channels, side = options.latent or steps_of.LATENTS[BACKBONES[name].family]
        size, counted = BACKBONES[name], cost(name, (channels, side, side))
        plain, guided = (operations(size, counted, options.batch, guided) for guided in (False, True))
        parameters, activations = moved(size, counted, options.batch, 4 if options.precision == "fp32" else 2)
        by_operations, by_bytes = 1e3 * plain / rates[0], 1e3 * (parameters + activations) / rates[1]
        results[name] = {"operations_ms": by_operations, "guided_ms": 1e3 * guided / rates[0], "bytes_ms": by_bytes}
        cells = [f"{plain / 1e12:.3g}", f"{by_operations:.3g}", f"x {guided / plain:.2f}", f"{parameters / 1e9:.3g}"]
        cells += [f"{activations / 1e9:.3g}", f"{by_bytes:.3g}", f"{by_operations / by_bytes:.1f}"]
        table.add_row(name, *cells)
    Console().print(table)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
