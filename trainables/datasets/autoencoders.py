"""Images to latents and back, through an AutoencoderKL of diffusers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from torch import Tensor

from trainables.datasets import catalog, ldm
from trainables.errors import one_line

BATCH = 64  # images per call of the encoder

Autoencoder = Any  # a diffusers.AutoencoderKL, whose members mypy does not see


class Normalisation(NamedTuple):
    """From an autoencoder's latents to a backbone's: (latent - shift) * scale, per channel."""

    shift: Tensor  # (C, 1, 1) or ()
    scale: Tensor  # (C, 1, 1) or ()

    def apply(self, latents: Tensor) -> Tensor:
        """Latents (..., C, h, w) of the autoencoder -> latents of the backbone."""
        return (latents - self.shift.to(latents)) * self.scale.to(latents)

    def undo(self, latents: Tensor) -> Tensor:
        """Latents (..., C, h, w) of the backbone -> latents of the autoencoder."""
        return latents / self.scale.to(latents) + self.shift.to(latents)


def normalisation(autoencoder: Autoencoder) -> Normalisation:
    """The normalisation that the autoencoder's configuration gives.

    SD-VAE has a `scaling_factor`, SD3's also a `shift_factor`, and VA-VAE the mean and standard deviation of each
    channel (`latents_mean`, `latents_std`).

    Raises:
        ValueError: the configuration has both `latents_mean` and `shift_factor`.
    """
    config = autoencoder.config
    mean, std, shift = (config.get(key) for key in ("latents_mean", "latents_std", "shift_factor"))
    if mean and shift:
        raise ValueError("the autoencoder's config has both latents_mean and shift_factor; remove one of them")

    def of_channels(values: Any, missing: float) -> Tensor:
        values = torch.tensor(values or missing, dtype=torch.float32)
        return values.reshape(-1, 1, 1) if values.dim() else values

    return Normalisation(of_channels(mean or shift, 0.0), config.scaling_factor / of_channels(std, 1.0))


def load_autoencoder(path: str | Path | None = None) -> Autoencoder:
    """A frozen autoencoder in evaluation mode from a local folder or diffusers' cache; default: the embedded one.

    Raises:
        OSError: there is none. This function never downloads.
    """
    autoencoder: Autoencoder = diffusers.AutoencoderKL.from_pretrained(
        path or catalog.files("emoji9")[1],
        local_files_only=True,
        use_safetensors=True,
        low_cpu_mem_usage=False,  # otherwise diffusers prints a notice where accelerate is missing
    )
    # A third faster on a CPU. Only for the decoder, so that encoded latents keep their bits.
    autoencoder.decoder.to(memory_format=torch.channels_last)
    return autoencoder.requires_grad_(False).eval()


def open_autoencoder(given: str) -> Autoencoder:
    """A frozen autoencoder in evaluation mode, from one of several forms.

    Args:
        given: a folder in diffusers' format, or a pipeline's folder with a `vae` in it; a checkpoint of the
            latent-diffusion code base, such as VA-VAE's; or a name on the Hugging Face hub, which is downloaded.

    Raises:
        ValueError: there is none, or it cannot be read.
    """
    place = Path(given).expanduser()
    if place.is_file() and place.suffix in ldm.ENDINGS:
        return ldm.load(place).requires_grad_(False).eval()
    inside = "vae" if (place / "vae" / "config.json").is_file() else ""
    if place.exists() and not (place / inside / "config.json").is_file():
        raise ValueError(f"{given}: no config.json; give diffusers' folder, or a checkpoint ({', '.join(ldm.ENDINGS)})")
    try:
        autoencoder: Autoencoder = diffusers.AutoencoderKL.from_pretrained(
            str(place) if place.exists() else given, subfolder=inside, low_cpu_mem_usage=False
        )
    except Exception as error:  # diffusers and the hub's client raise errors of many kinds
        reason = f"no autoencoder in this place, nor one of this name on the hub ({one_line(error)})"
        raise ValueError(f"{given}: {reason}") from None
    return autoencoder.float().requires_grad_(False).eval()


def autoencoder_identity(autoencoder: Autoencoder) -> str:
    """SHA-256 (hex) of an autoencoder's configuration and weights. It does not depend on the files that they came
    from."""
    config = {name: value for name, value in autoencoder.config.items() if not name.startswith("_")}
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(autoencoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encode(autoencoder: Autoencoder, images: Tensor, batch_size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the autoencoder's posterior, before normalisation.

    Args:
        images: (N, 3, H, W) uint8, RGB.

    Returns:
        Two tensors (N, C, h, w) float32, on the device of `images`.
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
    """Images of normalised latents.

    Args:
        latents: (N, C, h, w), normalised as for the backbones.

    Returns:
        (N, 3, H, W) uint8, RGB, on the device of `latents`. Values are truncated, not rounded, as in the images behind
        REPA's FIDs (REPA generate.py).
    """
    images, as_encoded = [], normalisation(autoencoder)
    for batch in latents.split(batch_size):
        own = as_encoded.undo(batch.to(autoencoder.device, torch.float32))
        pixels = (autoencoder.decode(own).sample + 1) / 2
        images.append((255 * pixels).clamp(0, 255).to(latents.device, torch.uint8))
    return torch.cat(images).contiguous()


def normalised_by(autoencoder: Autoencoder, mean: list[float], std: list[float]) -> None:
    """Set an autoencoder's normalisation to the mean and standard deviation of each channel, in place of its own."""
    autoencoder.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=1.0, shift_factor=None)


def save_autoencoder(autoencoder: Autoencoder, folder: Path) -> list[str]:
    """Write an autoencoder in diffusers' format; returns the names of the files."""
    autoencoder.save_pretrained(folder)
    return sorted(file.name for file in folder.iterdir())
