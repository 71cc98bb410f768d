"""Backbones by name, new or with a reference repository's weights. The clock is converted here and nowhere else.

Every backbone maps (x_t, t, y, taps) to (velocity, {block: hidden}) with t=0 data and t=1 noise, and has `features`,
`depth`, `width`, `num_tokens`, `patch_size`, `in_channels`, `num_classes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainables.backbones.sit import BackboneOutput, SiT
from trainables.draws import generator
from trainables.spec import BACKBONES


def create(
    name: str, *, seed: int = 0, in_channels: int = 4, input_size: int = 32, num_classes: int = 1000, **overrides: Any
) -> SiT:
    """A new backbone on the CPU, e.g. "SiT-B/2"; its weights follow from (seed, name, shape) alone.

    Args:
        in_channels: channels of a latent.
        input_size: height and width of a latent.
        overrides: other arguments of the model, such as `depth`, `hidden_size`, `num_heads`.

    Raises:
        ValueError: no such backbone.
    """
    if name not in BACKBONES:
        raise ValueError(f"no backbone '{name}'; known: {', '.join(BACKBONES)}")
    size = BACKBONES[name]
    named = {"depth": size.depth, "hidden_size": size.width, "num_heads": size.heads, "patch_size": size.patch}
    shape = {"in_channels": in_channels, "input_size": input_size, "num_classes": num_classes}
    model = _uninitialised(SiT, named | shape | overrides)
    model.init_weights(generator(seed, "backbone", name))
    return model


class Reference(NamedTuple):
    """How a repository's weights become ours."""

    model: type[SiT]
    reversed_clock: bool = False  # t=0 is noise there, and velocity = latents - noise
    unused: tuple[str, ...] = ()  # prefixes of tensors that a backbone has no place for


REFERENCES = {
    "repa": Reference(SiT, unused=("projectors.",)),  # sihyun-yu/REPA models/sit.py
    "sit": Reference(SiT, reversed_clock=True),  # willisma/SiT models.py
}


def from_reference(state_dict: Mapping[str, Tensor], source: str, **config: Any) -> SiT:
    """A backbone with a reference's weights, on the CPU, in float32 and on our clock: v(x, t) = -v_theirs(x, 1 - t).

    Args:
        source: which repository's model the weights belong to, a key of `REFERENCES`.
        config: the model's arguments. `learn_sigma` is allowed and not needed: the weights show it.

    Raises:
        ValueError: no such source.
        RuntimeError: the weights do not fit the model; names the tensors.
    """
    if source not in REFERENCES:
        raise ValueError(f"no reference '{source}'; known: {', '.join(REFERENCES)}")
    reference = REFERENCES[source]
    shape = {key: value for key, value in config.items() if key != "learn_sigma"}
    model = _uninitialised(reference.model, shape | {"reversed_clock": reference.reversed_clock})
    state = {
        name: _velocity_rows(tensor, model, reference) if name.startswith("final_layer.linear.") else tensor
        for name, tensor in state_dict.items()
        if not name.startswith(reference.unused)
    }
    model.load_state_dict(state)
    return model


def _velocity_rows(output: Tensor, model: SiT, reference: Reference) -> Tensor:
    """Weight or bias (p*p*C or p*p*2C, ...) of a reference's last layer -> (p*p*C, ...), those of our velocity.

    learn_sigma puts C unused channels behind the velocity's at every position in the patch. The velocity's sign folds
    in without rounding; time would not, so that the time embedder turns it (`reversed_clock`).
    """
    positions = model.patch_size**2
    if len(output) == positions * 2 * model.in_channels:
        output = output.unflatten(0, (positions, -1))[:, : model.in_channels].flatten(0, 1)
    return -output if reference.reversed_clock else output


def _uninitialised(model: type[SiT], config: Mapping[str, Any]) -> SiT:
    """The model on the CPU with memory as it comes: nothing is drawn, so torch's global generator stays where it is."""
    with torch.device("meta"):
        empty = model(**config)
    return empty.to_empty(device="cpu")


__all__ = ["BACKBONES", "REFERENCES", "BackboneOutput", "Reference", "SiT", "create", "from_reference"]
