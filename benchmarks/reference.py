"""REPA's training step as its repository describes it (train.py, loss.py, dataset.py), for a comparison side by side.

What is re-created is how its authors run it: an eager network under autocast, AdamW as torch makes it by default,
gradients clipped by torch, an EMA that walks through the parameters one by one, three `.item()` a step for the log, and
a loader of four processes that read a file an image. The network's layers are ours, uncompiled, which are the same
operations as timm's. Times, noise and dropped labels are handed in, drawn beforehand, so that losses can be compared:
of that work the reference is relieved, and of the PNG that its loader decodes for every image.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from trainables.config import Run
from trainables.draws import Draws, batch_indices, draw

WORKERS = 4  # REPA's --num-workers
Sample = tuple[Tensor, int]


class Files(Dataset[Sample]):
    """One `.npy` an image: mean and deviation of its latent (2, C, H, W)."""

    def __init__(self, folder: Path, labels: Tensor):
        self.folder, self.labels = folder, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        return torch.from_numpy(np.load(self.folder / f"{index:06d}.npy")), int(self.labels[index])


def write_files(latents: Tensor, folder: Path) -> None:
    """Latents (N, 2, C, H, W) as a file each."""
    for index, latent in enumerate(latents):
        np.save(folder / f"{index:06d}.npy", latent.numpy())


def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """One parameter after the other, by name."""
    averages = dict(average.named_parameters())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            averages[name].mul_(decay).add_(parameter.data, alpha=1 - decay)


def loader(run: Run, files: Files, steps: int) -> DataLoader[Sample]:
    """Batches of the images that our run sees, in its order."""
    order = [batch_indices(run.seed, step, run.batch_size, len(files)).tolist() for step in range(steps)]
    return DataLoader(files, batch_sampler=order, num_workers=WORKERS, pin_memory=torch.cuda.is_available())


def train(
    run: Run, backbone: nn.Module, files: Files, device: torch.device, steps: int
) -> Iterator[tuple[float, float]]:
    """Train plain SiT for some steps; yields the seconds that each took, and its loss."""
    average = copy.deepcopy(backbone).requires_grad_(False).eval()
    spec = run.optimizer
    betas = spec.beta1, spec.beta2
    optimizer = torch.optim.AdamW(backbone.parameters(), spec.lr, betas, spec.eps, spec.weight_decay)
    shape = (backbone.in_channels, *[backbone.grid * backbone.patch_size] * 2)
    size = {"batch_size": run.batch_size, "num_images": len(files), "latent_shape": shape}
    drawn: list[Draws] = [draw(run.seed, step, **size) for step in range(steps)]
    began = time.perf_counter()
    for step, (moments, labels) in enumerate(loader(run, files, steps)):
        draws = drawn[step]
        moments, labels = moments.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        given = [tensor.to(device) for tensor in (draws.posterior, draws.noise, draws.time, draws.dropped)]
        posterior, noise, t, dropped = given
        mean, std = moments.unbind(1)
        latents = mean + std * posterior
        y = torch.where(dropped < run.label_dropout, backbone.num_classes, labels)
        at = t.view(-1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            predicted = backbone((1 - at) * latents + at * noise, t, y).velocity
            loss = ((predicted - (noise - latents)) ** 2).mean(dim=(1, 2, 3))
        loss_mean = loss.mean()
        loss_mean.backward()
        norm = nn.utils.clip_grad_norm_(backbone.parameters(), spec.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        update_average(average, backbone, run.ema_decay)
        logged = {"loss": loss_mean.item(), "proj_loss": 0.0, "grad_norm": norm.item()}
        now = time.perf_counter()
        yield now - began, logged["loss"]
        began = now
