"""Images to latents and back, through an AutoencoderKL of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from trainables import (
    catalog,
    torchvision_guard,  # noqa: F401  diffusers' models import torchvision, on the first touch of an attribute
)

Autoencoder = Any  # a diffusers.AutoencoderKL, whose members mypy does not see


def load_autoencoder(path: str | Path | None = None) -> Autoencoder:
    """A frozen autoencoder in evaluation mode from a local folder (or diffusers' cache); default: the embedded one.

    Raises:
        OSError: nothing to load there; never downloads.
        ValueError: its latents are normalised by more than a scaling factor.
    """
    autoencoder: Autoencoder = diffusers.AutoencoderKL.from_pretrained(
        path or catalog.files("emoji9")[1],
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,  # else a notice is printed where accelerate is missing
    )
    unknown = [key for key in ("shift_factor", "latents_mean", "latents_std") if autoencoder.config.get(key)]
    if unknown:
        raise ValueError(f"{path}: latents with {', '.join(unknown)} are not supported, only with scaling_factor")
    return autoencoder.requires_grad_(False).eval()


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """The posterior's (mean, std) of images, not yet scaled.

    Args:
        images: (N, 3, H, W) uint8, RGB.

    Returns:
        Twice (N, C, h, w) float32, where `images` are.
    """
    means, stds = [], []
    for batch in images.split(batch_size):
        pixels = batch.to(autoencoder.device).float() / 127.5 - 1
        posterior = autoencoder.encode(pixels).latent_dist
        means.append(posterior.mean.to(images.device))
        stds.append(posterior.std.to(images.device))
    return torch.cat(means), torch.cat(stds)


@torch.no_grad()
def decode(autoencoder: Autoencoder, latents: Tensor, batch_size: int = 64) -> Tensor:
    """Images of scaled latents.

    Args:
        latents: (N, C, h, w), as the backbones see them: times the autoencoder's scaling factor.

    Returns:
        (N, 3, H, W) uint8, RGB, where `latents` are. Cut off, not rounded, as the images behind published FIDs are
        (REPA generate.py).
    """
    images = []
    for batch in latents.split(batch_size):
        unscaled = batch.to(autoencoder.device, torch.float32) / autoencoder.config.scaling_factor
        pixels = (autoencoder.decode(unscaled).sample + 1) / 2
        images.append((255 * pixels).clamp(0, 255).to(latents.device, torch.uint8))
    return torch.cat(images)
