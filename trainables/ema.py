"""Exponential moving average of a backbone's parameters, from step 0 on (REPA train.py, `update_ema`)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def shadow(model: nn.Module) -> nn.Module:
    """A frozen copy in evaluation mode: the average before the first update."""
    return copy.deepcopy(model).requires_grad_(False).eval()


@torch.no_grad()
def update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, for all parameters at once."""
    averages: list[Tensor] = list(average.parameters())
    values: list[Tensor] = list(model.parameters())
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, values, alpha=1 - decay)
