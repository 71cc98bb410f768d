"""The cost of a backbone, counted on the meta device: parameters, tables, and multiply-adds of a forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones import blueprint

Latent = tuple[int, int, int]  # C, H, W


class Cost(NamedTuple):
    """The cost for one image. Matrix products (including both of attention) and convolutions are counted."""

    tokens: int
    parameters: int  # trained
    fixed: int  # values of tables, which are not trained
    multiply_adds: int
    # With learn_sigma, as in repositories that also predict an unused variance: twice the output channels.
    parameters_with_sigma: int
    multiply_adds_with_sigma: int


def cost(name: str, latent: Latent, num_classes: int = 1000) -> Cost:
    """The cost of the backbone `name` for latents of this shape.

    Raises:
        ValueError: there is no such backbone, or the latents are not square or not divisible into its patches.
    """
    channels, height, width = latent
    if height != width:
        raise ValueError(f"latents must be square, not {height} by {width}")
    model = blueprint(name, in_channels=channels, input_size=height, num_classes=num_classes)
    inputs = [torch.empty(1, *latent, device="meta"), torch.empty(1, device="meta")]  # (1, C, H, W), (1,)
    labels = torch.empty(1, dtype=torch.int64, device="meta")  # (1,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs, labels)
    multiply_adds = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sigma = model.patch_size**2 * channels  # additional outputs per token
    return Cost(
        tokens=model.num_tokens,
        parameters=parameters,
        fixed=sum(buffer.numel() for buffer in model.buffers()),
        multiply_adds=multiply_adds,
        parameters_with_sigma=parameters + sigma * (model.width + 1),
        multiply_adds_with_sigma=multiply_adds + sigma * model.width * model.num_tokens,
    )
