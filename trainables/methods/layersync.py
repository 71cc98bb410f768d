"""Align shallow blocks with deep blocks of the same network (LayerSync, arXiv 2510.12581; transport/transport.py).

    L = - sum over pairs (m, n) of  mean over batch and tokens of cos( h_n, stopgrad(h_m) )

h_m is the state after the deep block m, which guides the shallow block n of the same forward pass. There is neither a
projector nor another network. Departures: with several pairs the reference counts only the last one; here all pairs
count. Pairs are written (shallow, deep) there and (deep, shallow) here, as block m guides block n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from trainables.methods.base import Batch, Method, View, negative_cosine


class LayerSync(Method):
    """Aligns pairs of blocks.

    Args:
        layers: pairs (m, n): block m guides block n.

    Raises:
        ValueError: there is no pair, or a block would guide itself.
    """

    def __init__(self, *, layers: Sequence[tuple[int, int]]):
        super().__init__()
        if not layers or any(deep == shallow for deep, shallow in layers):
            raise ValueError(f"layersync needs pairs of two different blocks, got {list(layers)}")
        self.layers = tuple((deep, shallow) for deep, shallow in layers)
        self.taps = tuple(sorted({block for pair in self.layers for block in pair}))

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        # The target is detached; otherwise the deep block would also move toward the shallow one.
        losses = [negative_cosine(hidden[shallow], hidden[deep].detach()) for deep, shallow in self.layers]
        return torch.stack(losses).sum()
