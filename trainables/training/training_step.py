"""Backbone and method as one module for DDP, which then reduces the gradients of the projector too."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.config import Recipe
from trainables.datasets.latent_set import MIRRORED_BELOW, LatentSet
from trainables.draws import Draws
from trainables.interpolant import interpolate, sample_time
from trainables.methods import Batch, Method, View


class Losses(NamedTuple):
    """Scalars: the weighted sum, which is minimised, and its two unweighted terms, detached."""

    total: Tensor
    diffusion: Tensor
    method: Tensor


class TrainingStep(nn.Module):
    """The loss of one batch. The method's weight is applied here and nowhere else.

    Args:
        velocity_cosine: weight of LightningDiT's second loss, 1 - cos(velocity, target) over channels, as a mean over
            pixels.
    """

    def __init__(self, backbone: nn.Module, method: Method, velocity_cosine: float = 0.0):
        super().__init__()
        self.backbone = backbone
        self.method = method
        self.velocity_cosine = velocity_cosine

    def forward(self, batch: Batch, weight: float = 0.0, view: View | None = None) -> Losses:
        velocity, hidden = self.backbone(batch.x_t, batch.t, batch.y, taps=self.method.taps)
        diffusion = diffusion_loss(velocity.float(), batch.velocity, self.velocity_cosine)
        method = self.method(hidden, batch, view)
        return Losses(diffusion + weight * method, diffusion.detach(), method.detach())


def diffusion_loss(velocity: Tensor, target: Tensor, velocity_cosine: float = 0.0) -> Tensor:
    """Mean squared error of velocities (B, C, H, W), plus LightningDiT's weighted mean of 1 - cos over channels."""
    loss = (velocity - target).square().mean()
    if velocity_cosine:
        loss = loss + velocity_cosine * (1 - F.cosine_similarity(velocity, target, dim=1)).mean()
    return loss


def make_batch(recipe: Recipe, draws: Draws, data: LatentSet, device: torch.device) -> Batch:
    """The batch that `draws` selects from `data`: latents sampled from the posterior, x_t on the path, labels
    dropped."""
    mirror = draws.flipped < MIRRORED_BELOW if recipe.horizontal_flip else None
    latents = _onto(device, data.sample(draws.indices, draws.posterior, mirror))
    images = data.images(draws.indices, mirror)
    labels = data.labels(draws.indices)
    y = torch.where(draws.dropped < recipe.label_dropout, data.num_classes, labels)
    t = _onto(device, sample_time(draws.time, recipe.time))
    noise = _onto(device, draws.noise)
    x_t, velocity = interpolate(latents, noise, t, path=recipe.path)
    return Batch(
        latents=latents,
        noise=noise,
        x_t=x_t,
        velocity=velocity,
        t=t,
        labels=_onto(device, labels),
        y=_onto(device, y),
        offset=_onto(device, draws.offset),
        images=None if images is None else _onto(device, images),
    )


def _onto(device: torch.device, tensor: Tensor) -> Tensor:
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()  # a copy from pageable memory waits for all kernels before it
    return tensor.to(device, non_blocking=True)


def split(batch: Batch, size: int) -> list[Batch]:
    """Split a batch into pieces of at most `size` images, in order."""
    columns = {name: tensor.split(size) for name, tensor in vars(batch).items() if tensor is not None}
    return [Batch(**dict(zip(columns, pieces, strict=True))) for pieces in zip(*columns.values(), strict=True)]
