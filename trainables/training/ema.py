"""Exponential moving average of a backbone's parameters, from step 0 on (REPA train.py, `update_ema`)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def shadow(model: Network) -> Network:
    """A frozen copy of `model` in evaluation mode: the average before the first update."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """average <- average + (1 - decay) (value - average), for all parameters in one fused call."""
    torch._foreach_lerp_(list(averages), list(values), 1 - decay)
