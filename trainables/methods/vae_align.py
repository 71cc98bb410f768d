"""Align one block with the clean VAE latent (Self-Transcendence, arXiv 2601.07773, Eq. 1).

    L = mean over batch, tokens and channels of ( projector(h_k) - z )^2

h_k is the state after block k (in the paper the middle block), z the clean, normalised latent cut into the patches of
the input tokens. The paper gives neither reduction nor weight; here the mean, and 0.5 as for the guided feature.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.methods.base import Batch, Method, projector


def patchify(latents: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, T, p*p*C), rows first, channels last: the order of the backbone's own output tokens."""
    batch, channels, height, width = latents.shape
    grid = latents.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


class VaeAlign(Method):
    """Aligns one block with the clean latent.

    Args:
        width: width of the student, D.
        block: the student block that is read.
        patch, channels: patch size p and channels C of the latents.
        projector_width: hidden width of the projector.
        generator: for the projector's weights.
    """

    def __init__(
        self, *, width: int, block: int, patch: int, channels: int, projector_width: int, generator: torch.Generator
    ):
        super().__init__()
        self.taps = (block,)
        self.patch = patch
        self.projector = projector(width, projector_width, patch * patch * channels, generator)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: Any = None) -> Tensor:
        predicted = self.projector(hidden[self.taps[0]])  # (B, T, p*p*C)
        return F.mse_loss(predicted, patchify(batch.latents, self.patch))
