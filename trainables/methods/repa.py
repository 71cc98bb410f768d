"""Align one block with a frozen encoder's view of the clean image (REPA, arXiv 2410.06940; repository: loss.py).

    L = - mean over batch and tokens of cos( projector(h_n), f )

h_n is the state after block n at x_t, f the encoder's patch tokens of the clean image, one for each token of the
backbone. As in the reference both are normalised with F.normalize and multiplied; here always in float32. Departures:
one encoder instead of a list of them, and the encoder sees the stored picture, from which the latents were made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from trainables.methods.base import Batch, Method, View, negative_cosine, projector


class Encoder(Protocol):
    """images (B, 3, h, w) uint8 -> patch tokens (B, T, width), rows first."""

    width: int

    def __call__(self, images: Tensor) -> Tensor: ...


class Repa(Method):
    """`width`: the student's; `block`: where it is read; `encoder`: frozen, in evaluation mode."""

    encoder: Encoder

    def __init__(self, *, width: int, block: int, encoder: Encoder, projector_width: int, generator: torch.Generator):
        super().__init__()
        self.taps = (block,)
        self.projector = projector(width, projector_width, encoder.width, generator)
        # Not a submodule: DDP, the optimizer and the checkpoint must not see it.
        object.__setattr__(self, "encoder", encoder)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        if batch.images is None:
            raise ValueError("repa looks at the clean images, and this batch holds none")
        with torch.no_grad():
            target = self.encoder(batch.images)  # (B, T, encoder's width)
        state = hidden[self.taps[0]]  # (B, T, D)
        if state.shape[1] != target.shape[1]:
            raise ValueError(f"the encoder gives {target.shape[1]} tokens, the backbone {state.shape[1]}")
        return negative_cosine(self.projector(state), target)
