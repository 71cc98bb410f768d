"""What a backbone costs, counted without building it."""

from __future__ import annotations

import argparse
import json
import re

from rich.console import Console
from rich.table import Table

from raysweep.errors import UserError
from trainables.backbones.cost import Cost, Latent, cost
from trainables.spec import BACKBONES

LATENTS: dict[str, Latent] = {"SiT": (4, 32, 32), "LightningDiT": (32, 16, 16)}  # of each family's autoencoder, 256 px


def show(options: argparse.Namespace) -> None:
    """Count, then print."""
    latent, counted = count(options)
    if options.json:
        asked = {"model": options.model, "latent": latent, "classes": options.classes}
        print(json.dumps(asked | counted._asdict() | {"gflops": counted.multiply_adds / 1e9}))
    else:
        Console().print(table(options.model, latent, options.classes, counted))


def count(options: argparse.Namespace) -> tuple[Latent, Cost]:
    """The latents' shape and the cost.

    Raises:
        UserError: no such backbone, or latents that it cannot read.
    """
    if options.model not in BACKBONES:
        raise UserError(f"--model: no backbone '{options.model}'; known: {', '.join(BACKBONES)}")
    if options.classes < 1:
        raise UserError(f"--classes: {options.classes} is no number of classes, which is 1 or more")
    latent = parse_latent(options.latent) if options.latent else LATENTS[BACKBONES[options.model].family]
    try:
        return latent, cost(options.model, latent, options.classes)
    except ValueError as error:
        raise UserError(f"--latent: {error}") from None


def parse_latent(text: str) -> Latent:
    """A shape written 4x32x32.

    Raises:
        UserError: anything else.
    """
    match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)", text)
    if not match:
        raise UserError(f"--latent: '{text}' is no shape; write CHANNELSxHEIGHTxWIDTH, e.g. 4x32x32")
    channels, height, width = map(int, match.groups())
    return channels, height, width


def table(model: str, latent: Latent, classes: int, counted: Cost) -> Table:
    """One row without and one with the further outputs of learn_sigma."""
    shown = Table(title=f"{model}, latents {'x'.join(map(str, latent))}, {classes} classes")
    for column in ("", "parameters", "fixed", "GFLOPs*", "tokens"):
        shown.add_column(column, justify="right" if column else "left", no_wrap=True)
    rows = [
        ("as trained here", counted.parameters, counted.multiply_adds),
        ("with learn_sigma", counted.parameters_with_sigma, counted.multiply_adds_with_sigma),
    ]
    for label, parameters, multiply_adds in rows:
        shown.add_row(label, f"{parameters:,}", f"{counted.fixed:,}", f"{multiply_adds / 1e9:.2f}", f"{counted.tokens}")
    shown.caption = "* 10⁹ multiply-adds of one image's forward pass, as published"
    return shown
