"""Images to latents and back, through an AutoencoderKL of diffusers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from trainables import (
    catalog,
    torchvision_guard,  # noqa: F401  diffusers' models import torchvision, on the first touch of an attribute
)

Autoencoder = Any  # a diffusers.AutoencoderKL, whose members mypy does not see


class Normalisation(NamedTuple):
    """What lies between an autoencoder's latents and a backbone's: (latent - shift) * scale, for each channel."""

    shift: Tensor  # (C, 1, 1) or ()
    scale: Tensor  # (C, 1, 1) or ()

    def apply(self, latents: Tensor) -> Tensor:
        """(..., C, h, w) of the autoencoder -> as the backbone sees them."""
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    def undo(self, latents: Tensor) -> Tensor:
        """The way back."""
        return latents / self.scale.to(latents) + self.shift.to(latents)


def normalisation(autoencoder: Autoencoder) -> Normalisation:
    """What the autoencoder's configuration says: SD-VAE has a `scaling_factor`, SD3's a `shift_factor` too, and VA-VAE
    the mean and standard deviation of each channel (`latents_mean`, `latents_std`).

    Raises:
        ValueError: both kinds of shift.
    """
    config = autoencoder.config
    mean, std, shift = (config.get(key) for key in ("latents_mean", "latents_std", "shift_factor"))
    if mean and shift:
        raise ValueError("the autoencoder's config has both latents_mean and shift_factor; one of them must go")

    def of_channels(values: Any, missing: float) -> Tensor:
        values = torch.tensor(values or missing, dtype=torch.float32)
        return values.reshape(-1, 1, 1) if values.dim() else values

    return Normalisation(of_channels(mean or shift, 0.0), config.scaling_factor / of_channels(std, 1.0))


def load_autoencoder(path: str | Path | None = None) -> Autoencoder:
    """A frozen autoencoder in evaluation mode from a local folder (or diffusers' cache); default: the embedded one.

    Raises:
        OSError: nothing to load there; never downloads.
    """
    autoencoder: Autoencoder = diffusers.AutoencoderKL.from_pretrained(
        path or catalog.files("emoji9")[1],
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,  # else a notice is printed where accelerate is missing
    )
    autoencoder.decoder.to(memory_format=torch.channels_last)  # a third faster on a CPU; the encoder's bits stay
    return autoencoder.requires_grad_(False).eval()


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor, batch_size: int = 64) -> tuple[Tensor, Tensor]:
    """The posterior's (mean, std) of images, not yet normalised.

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
def decode(autoencoder: Autoencoder, latents: Tensor, batch_size: int = 32) -> Tensor:
    """Images of scaled latents.

    Args:
        latents: (N, C, h, w), as the backbones see them: normalised.

    Returns:
        (N, 3, H, W) uint8, RGB, where `latents` are. Cut off, not rounded, as the images behind published FIDs are
        (REPA generate.py).
    """
    images, as_encoded = [], normalisation(autoencoder)
    for batch in latents.split(batch_size):
        own = as_encoded.undo(batch.to(autoencoder.device, torch.float32))
        pixels = (autoencoder.decode(own).sample + 1) / 2
        images.append((255 * pixels).clamp(0, 255).to(latents.device, torch.uint8))
    return torch.cat(images).contiguous()
