"""What all methods share: the batch they see, the face they show, and REPA's projector."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step. t=0 is data, t=1 is noise."""

    latents: Tensor  # (B, C, H, W) clean, scaled
    x_t: Tensor  # (B, C, H, W)
    velocity: Tensor  # (B, C, H, W) the target
    t: Tensor  # (B,)
    labels: Tensor  # (B,) the true classes
    y: Tensor  # (B,) what the student is told: the null class where the label is dropped


class Method(nn.Module, ABC):
    """A loss on hidden states. Frozen networks that it looks at stay outside its parameters and buffers."""

    taps: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: Any = None) -> Tensor:
        """The unweighted scalar loss, a mean over the batch."""


def projector(width_in: int, hidden: int, width_out: int, generator: torch.Generator) -> nn.Sequential:
    """Linear-SiLU-Linear-SiLU-Linear (REPA models/sit.py, `build_mlp`), xavier uniform with zero biases."""
    mlp = nn.Sequential(
        nn.Linear(width_in, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width_out)
    )
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
    return mlp
