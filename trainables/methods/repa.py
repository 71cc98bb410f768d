"""Align one block with a frozen encoder's features of the clean image (REPA, arXiv 2410.06940; repository: loss.py).

    L = - mean over batch and tokens of cos( projector(h_n), f )

h_n is the state after block n at x_t, f the encoder's patch tokens of the clean image, one for each token of the
backbone. As in the reference both are normalised with F.normalize and multiplied; here always in float32. Departures:
there is one encoder instead of a list, and it gets the stored image from which the latents were made.
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
    """Aligns one block with an image encoder's patch tokens.

    Args:
        width: width of the student, D.
        block: the student block that is read.
        encoder: frozen, in evaluation mode, with as many tokens as the student.
        projector_width: hidden width of the projector.
        generator: for the projector's weights.
    """

    encoder: Encoder

    def __init__(self, *, width: int, block: int, encoder: Encoder, projector_width: int, generator: torch.Generator):
        super().__init__()
        self.taps = (block,)
        self.projector = projector(width, projector_width, encoder.width, generator)
        # Not a submodule: DDP, the optimizer and checkpoints must leave it out.
        object.__setattr__(self, "encoder", encoder)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        if batch.images is None:
            raise ValueError("repa needs the clean images, and this batch has none")
        with torch.no_grad():
            target = self.encoder(batch.images)  # (B, T, encoder's width)
        state = hidden[self.taps[0]]  # (B, T, D)
        if state.shape[1] != target.shape[1]:
            raise ValueError(f"the encoder gives {target.shape[1]} tokens, the backbone {state.shape[1]}")
        return negative_cosine(self.projector(state), target)
