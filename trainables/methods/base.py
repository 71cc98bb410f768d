"""What all methods share: the batch they see, the face they show, and the parts that several are made of."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.interpolant import Path


@dataclass(frozen=True)
class Batch:
    """One rank's share of a step. t=0 is data, t=1 is noise."""

    latents: Tensor  # (B, C, H, W) clean, scaled
    noise: Tensor  # (B, C, H, W)
    x_t: Tensor  # (B, C, H, W)
    velocity: Tensor  # (B, C, H, W) the target
    t: Tensor  # (B,)
    labels: Tensor  # (B,) the true classes
    y: Tensor  # (B,) what the student is told: the null class where the label is dropped
    offset: Tensor  # (B,) uniform in [0, 1), for a method's own use
    images: Tensor | None = None  # (B, 3, h, w) uint8, where the method looks at pictures


@dataclass(frozen=True)
class View:
    """A second look at the networks, for methods whose target is made of another input than the student's."""

    average: Any  # the frozen average of the student's weights: a backbone, of which a method asks for `features`
    path: Path  # on which the student's x_t lies


class Method(nn.Module, ABC):
    """A loss on hidden states. Frozen networks that it looks at stay outside its parameters and buffers."""

    taps: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        """The unweighted scalar loss, a mean over the batch."""


def negative_cosine(states: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine similarity of (B, T, D) with (B, T, D), in float32, as a mean over tokens and batch."""
    aligned = F.normalize(states.float(), dim=-1) * F.normalize(target.float(), dim=-1)  # (B, T, D)
    return -aligned.sum(dim=-1).mean()


def projector(width_in: int, hidden: int, width_out: int, generator: torch.Generator) -> nn.Sequential:
    """Linear-SiLU-Linear-SiLU-Linear (REPA models/sit.py, `build_mlp`), xavier uniform with zero biases."""
    mlp = nn.Sequential(
        nn.Linear(width_in, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, width_out)
    )
    init_linear(mlp, generator)
    return mlp


def init_linear(mlp: nn.Sequential, generator: torch.Generator) -> None:
    """Xavier uniform weights and zero biases, drawn in the layers' order."""
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
