"""The diffusion loss alone, as in SiT (arXiv 2401.08740)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from trainables.methods.base import Batch, Method


class NoMethod(Method):
    """Reads no block and returns zero."""

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: Any = None) -> Tensor:
        return batch.latents.new_zeros(())
