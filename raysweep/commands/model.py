"""`raysweep model NAME`: count a backbone's parameters and GFLOPs without building it."""

from __future__ import annotations

import argparse
import json
import re

from rich.console import Console
from rich.table import Table

from raysweep.commands.common import Parser, guarded, number_type
from raysweep.errors import UserError
from trainables.backbones.costs import Cost, Latent, cost
from trainables.config import BACKBONES

LATENTS: dict[str, Latent] = {"SiT": (4, 32, 32), "LightningDiT": (32, 16, 16)}  # shapes (C, H, W) for 256 px images


def main(arguments: list[str] | None = None) -> int:
    """Count and print; returns the exit code: 0 done, 2 the user's mistake."""
    return guarded(show, parser().parse_args(arguments))


def show(options: argparse.Namespace, console: Console) -> None:
    """Count and print."""
    latent, counted = count(options)
    if options.json:
        question = {"model": options.model, "latent": latent, "classes": options.classes}
        print(json.dumps(question | counted._asdict() | {"gflops": counted.multiply_adds / 1e9}))
    else:
        Console().print(table(options.model, latent, options.classes, counted))


def count(options: argparse.Namespace) -> tuple[Latent, Cost]:
    """The latents' shape and the cost.

    Raises:
        UserError: no such backbone, or latents that it cannot read.
    """
    if options.model not in BACKBONES:
        raise UserError(f"no backbone '{options.model}'; known: {', '.join(BACKBONES)}")
    latent = parse_latent(options.latent) if options.latent else LATENTS[BACKBONES[options.model].family]
    try:
        return latent, cost(options.model, latent, options.classes)
    except ValueError as error:
        raise UserError(f"--latent: {error}") from None


def parse_latent(text: str) -> Latent:
    """Read a shape (C, H, W) written as 4x32x32.

    Raises:
        UserError: it is written in another way.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--latent: '{text}' is not a shape; write CHANNELSxHEIGHTxWIDTH, e.g. 4x32x32")
    channels, height, width = map(int, match.groups())
    return channels, height, width


def table(model: str, latent: Latent, classes: int, counted: Cost) -> Table:
    """One row for the backbone as trained here, and one with the additional outputs of learn_sigma."""
    counts = Table(title=f"{model}, latents {'x'.join(map(str, latent))}, {classes} classes")
    for column in ("", "parameters", "fixed", "GFLOPs*", "tokens"):
        counts.add_column(column, justify="right" if column else "left", no_wrap=True)
    rows = [
        ("as trained here", counted.parameters, counted.multiply_adds),
        ("with learn_sigma", counted.parameters_with_sigma, counted.multiply_adds_with_sigma),
    ]
    for label, parameters, multiply_adds in rows:
        counts.add_row(
            label, f"{parameters:,}", f"{counted.fixed:,}", f"{multiply_adds / 1e9:.2f}", f"{counted.tokens}"
        )
    counts.caption = "* 10⁹ multiply-adds of one image's forward pass, which papers call GFLOPs"
    return counts


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep model", description=__doc__)
    parser.add_argument("model", metavar="NAME", help="name of the backbone, e.g. SiT-XL/2")
    parser.add_argument(
        "--latent", metavar="CxHxW", help="shape of the latents (default: 4x32x32; for LightningDiT 32x16x16)"
    )
    parser.add_argument(
        "--classes", type=number_type(1, kind=int), default=1000, metavar="N", help="number of classes (default: 1000)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser
