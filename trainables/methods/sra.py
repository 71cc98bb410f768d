"""Align a block with a deeper block of the EMA network at less noise (SRA, arXiv 2505.02831; SiT-SRA/loss.py).

    t' = clamp(t - t_offset u, 0, 1)       L = mean over batch, tokens and channels of d( head(h_n), f_m )

h_n is the student's state after block n at (x_t, t); f_m is the EMA network's state after block m at (x_t', t'), with
the same latents, noise and (dropped) label. u is uniform, one for each image. t' is nearer to the data, which is a
smaller t on this clock. d is the smooth L1 distance with beta 0.05, or l1, l2, or minus the cosine per token. Only the
student's state passes through the head, Linear(D, 2D)-SiLU-Linear(2D, D).

Departures: u comes with the batch instead of from global state, and distances are computed in float32. The head starts
with xavier uniform weights and zero biases, drawn from `generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.interpolant import interpolate
from trainables.methods.base import Batch, Method, View, init_linear, negative_cosine

Distance = Literal["smooth_l1", "l1", "l2", "cosine"]
DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "smooth_l1": partial(F.smooth_l1_loss, beta=0.05),
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "cosine": negative_cosine,
}


class Sra(Method):
    """Aligns one block with the EMA network.

    Args:
        width: width of the student, D.
        layers: (m, n): block m of the EMA network guides student block n.
        generator: for the head's weights.
        t_offset: largest difference between t and t'.
        distance: between the tokens of the two blocks.
    """

    def __init__(
        self,
        *,
        width: int,
        layers: tuple[int, int],
        generator: torch.Generator,
        t_offset: float = 0.2,
        distance: Distance = "smooth_l1",
    ):
        super().__init__()
        self.average_block, student_block = layers
        self.taps = (student_block,)
        self.t_offset = t_offset
        self.distance = DISTANCES[distance]
        self.head = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        init_linear(self.head, generator)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        if view is None:
            raise ValueError("sra needs the EMA network, and no view is given")
        earlier = (batch.t - self.t_offset * batch.offset).clamp(0, 1)  # (B,)
        with torch.no_grad():
            x_earlier, _ = interpolate(batch.latents, batch.noise, earlier, path=view.path)
            target = view.average.features(x_earlier, earlier, batch.y, self.average_block)  # (B, T, D)
        return self.distance(self.head(hidden[self.taps[0]]).float(), target.float())
