"""Backbones by name, new or with the weights of a reference repository. Only this package converts clocks.

Every backbone maps (x_t, t, y, taps) to (velocity, {block: hidden}) with t=0 data and t=1 noise, and has `features`,
`depth`, `width`, `num_tokens`, `patch_size`, `in_channels`, `num_classes`.
"""

from __future__ import annotations

from typing import Any

import torch

from trainables.backbones.base import Backbone, BackboneOutput
from trainables.backbones.lightningdit import LightningDiT
from trainables.backbones.references import REFERENCES, Reference, from_reference, guess_source, reference_config
from trainables.backbones.sit import SiT
from trainables.config import BACKBONES
from trainables.draws import generator

FAMILIES: dict[str, type[SiT] | type[LightningDiT]] = {"SiT": SiT, "LightningDiT": LightningDiT}


def create(
    name: str, *, seed: int = 0, in_channels: int = 4, input_size: int = 32, num_classes: int = 1000, **overrides: Any
) -> Backbone:
    """A new backbone on the CPU, e.g. "SiT-B/2". Its weights depend on (seed, name, shape) alone.

    Args:
        in_channels: channels of a latent.
        input_size: height and width of a latent.
        overrides: other arguments of the model, such as `depth`, `hidden_size`, `num_heads`.

    Raises:
        ValueError: there is no such backbone, or sizes do not divide.
    """
    shape = {"in_channels": in_channels, "input_size": input_size, "num_classes": num_classes}
    # Nothing is drawn here, so torch's global generator stays as it is.
    model = blueprint(name, **shape | overrides).to_empty(device="cpu")
    model.init_weights(generator(seed, "backbone", name))
    return model


def blueprint(name: str, **config: Any) -> Backbone:
    """The backbone on the meta device, which has shapes but no memory or weights.

    Args:
        config: arguments of the model, which override those of the name.

    Raises:
        ValueError: there is no such backbone, or sizes do not divide.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone '{name}'; known: {', '.join(BACKBONES)}")
    size = BACKBONES[name]
    named = {"depth": size.depth, "hidden_size": size.width, "num_heads": size.heads, "patch_size": size.patch}
    with torch.device("meta"):
        return FAMILIES[size.family](**named | config)


__all__ = [
    "BACKBONES",
    "FAMILIES",
    "REFERENCES",
    "Backbone",
    "BackboneOutput",
    "LightningDiT",
    "Reference",
    "SiT",
    "blueprint",
    "create",
    "from_reference",
    "guess_source",
    "reference_config",
]
