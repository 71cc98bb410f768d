"""What all methods share: their input, their interface, and parts that several of them use."""

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
    """One rank's share of a training batch. t=0 is data, t=1 is noise."""

    latents: Tensor  # (B, C, H, W) clean, normalised
    noise: Tensor  # (B, C, H, W)
    x_t: Tensor  # (B, C, H, W)
    velocity: Tensor  # (B, C, H, W) the target of the diffusion loss
    t: Tensor  # (B,)
    labels: Tensor  # (B,) the true classes
    y: Tensor  # (B,) the student's labels: the null class where the label is dropped
    offset: Tensor  # (B,) uniform in [0, 1), for a method's own use
    images: Tensor | None = None  # (B, 3, h, w) uint8, for methods with an image encoder


@dataclass(frozen=True)
class View:
    """The EMA network and the path, for methods that compute a target from an input of their own."""

    average: Any  # the frozen EMA network, a backbone whose `features` a method reads
    path: Path  # the path on which the student's x_t lies


class Method(nn.Module, ABC):
    """A loss on hidden states. Frozen networks that a method uses are not its parameters, buffers or submodules."""

    taps: tuple[int, ...] = ()

    @abstractmethod
    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        """The unweighted scalar loss, as a mean over the batch."""


def negative_cosine(states: Tensor, target: Tensor) -> Tensor:
    """Minus the cosine similarity of states and target, both (B, T, D), in float32, averaged over tokens and batch."""
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
    """Xavier uniform weights, drawn in the order of the layers, and zero biases."""
    for layer in mlp:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
            nn.init.zeros_(layer.bias)
