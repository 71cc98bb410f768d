"""What a backbone costs, counted without memory: parameters, tables, and the multiply-adds of a forward pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from trainables.backbones import blueprint

Latent = tuple[int, int, int]  # C, H, W


class Cost(NamedTuple):
    """For one image. Matrix products and convolutions are what is counted, attention's two among them."""

    tokens: int
    parameters: int  # trained
    fixed: int  # tables that are not
    multiply_adds: int
    # As in the repositories that predict a variance as well, and do not use it: twice the output channels.
    parameters_with_sigma: int
    multiply_adds_with_sigma: int


def cost(name: str, latent: Latent, num_classes: int = 1000) -> Cost:
    """The cost of the backbone `name` at latents of this shape.

    Raises:
        ValueError: no such backbone, latents that are not square, or that do not divide into its patches.
    """
    channels, height, width = latent
    if height != width:
        raise ValueError(f"latents are square here, not {height} by {width}")
    model = blueprint(name, in_channels=channels, input_size=height, num_classes=num_classes)
    inputs = [torch.empty(1, *latent, device="meta"), torch.empty(1, device="meta")]  # (1, C, H, W), (1,)
    labels = torch.empty(1, dtype=torch.int64, device="meta")  # (1,)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(*inputs, labels)
    multiply_adds = counter.get_total_flops() // 2
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sigma = model.patch_size**2 * channels  # the further outputs for each token
    return Cost(
        tokens=model.num_tokens,
        parameters=parameters,
        fixed=sum(buffer.numel() for buffer in model.buffers()),
        multiply_adds=multiply_adds,
        parameters_with_sigma=parameters + sigma * (model.width + 1),
        multiply_adds_with_sigma=multiply_adds + sigma * model.width * model.num_tokens,
    )
