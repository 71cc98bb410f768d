"""Backbone and method as one module: what DDP wraps, so that every gradient, the projector's too, is reduced."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainables.data import LatentSet
from trainables.draws import Draws
from trainables.interpolant import interpolate, sample_time
from trainables.methods import Batch, Method
from trainables.spec import Recipe


class Losses(NamedTuple):
    """Scalars: the weighted sum that is minimised, and its two unweighted terms."""

    total: Tensor
    diffusion: Tensor
    method: Tensor


class TrainingStep(nn.Module):
    """The loss of one batch. The method's weight is applied here and nowhere else."""

    def __init__(self, backbone: nn.Module, method: Method, weight: float):
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.weight = weight

    def forward(self, batch: Batch) -> Losses:
        velocity, hidden = self.backbone(batch.x_t, batch.t, batch.y, taps=self.method.taps)
        diffusion = (velocity.float() - batch.velocity).square().mean()
        method = self.method(hidden, batch)
        return Losses(diffusion + self.weight * method, diffusion.detach(), method.detach())


def make_batch(recipe: Recipe, draws: Draws, data: LatentSet, device: torch.device) -> Batch:
    """The batch that `draws` picks from `data`: latents from the posterior, x_t on the path, labels dropped."""
    latents = data.sample(draws.indices, draws.posterior).to(device, non_blocking=True)
    labels = data.labels[draws.indices]
    y = torch.where(draws.dropped < recipe.label_dropout, data.num_classes, labels)
    t = sample_time(draws.time, recipe.time).to(device, non_blocking=True)
    x_t, velocity = interpolate(latents, draws.noise.to(device, non_blocking=True), t, path=recipe.path)
    return Batch(
        latents=latents,
        x_t=x_t,
        velocity=velocity,
        t=t,
        labels=labels.to(device, non_blocking=True),
        y=y.to(device, non_blocking=True),
    )
