"""Probe a snapshot: draw samples from its EMA weights, compute their features, compare them with the real images.

Noise and labels come from the probe's own seed, chunk by chunk, so that every snapshot of a study gets the same ones on
any number of ranks. The ranks take chunks in turn.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path as File
from typing import Any, Protocol

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn

from trainables import sampling
from trainables.config import GRID_COLUMNS, ProbeSpec, error_name
from trainables.datasets.autoencoders import decode
from trainables.draws import generator
from trainables.evaluation.detectors import Detector, DetectorOutput
from trainables.evaluation.estimate import Estimate
from trainables.evaluation.reference import Reference
from trainables.interpolant import Path
from trainables.process_group import ProcessGroup

GRID_ROWS = 4  # of the sample grid: samples of one class in a column


@dataclass
class ProbeResult:
    """The result of a probe.

    Args:
        metrics: metrics and their standard errors, by full name.
        influence: (N,) float32, the influence of each sample on the deciding metric (`Estimate`); None if the metric is
            NaN.
        grid: the first images of the first classes, (rows * columns, 3, H, W) uint8, row by row.
        columns: of the grid, one per class.
    """

    metrics: dict[str, float]
    influence: Tensor | None
    grid: Tensor
    columns: int

    def save(self, folder: File) -> dict[str, File]:
        """Write the grid as a PNG and the influences as an .npy file; returns the files by their endings."""
        files = {"png": folder / "grid.png"}
        save_grid(self.grid, files["png"], self.columns)
        if self.influence is not None:
            files["npy"] = folder / "influence.npy"
            np.save(files["npy"], self.influence.numpy(), allow_pickle=False)
        return files


class Shards(Protocol):
    """The finished chunks of a probe as safetensors bytes, by number: a dict, or a store that outlives the process."""

    def get(self, number: int, /) -> bytes | None: ...
    def __setitem__(self, number: int, content: bytes, /) -> None: ...


@dataclass(frozen=True)
class Chunk:
    """Consecutive samples of a probe; `first` is the index of the first sample."""

    first: int
    labels: Tensor  # (B,) int64, the classes in turn
    noise: Tensor  # (B, C, H, W) standard normal


def chunk(spec: ProbeSpec, number: int, latent_shape: tuple[int, ...], num_classes: int) -> Chunk:
    """Chunk `number` of a probe: `batch_size` samples, fewer in the last one."""
    first = number * spec.batch_size
    count = min(spec.batch_size, spec.samples - first)
    noise = torch.randn(count, *latent_shape, generator=generator(spec.seed, "probe", number))
    return Chunk(first, torch.arange(first, first + count) % num_classes, noise)


@torch.no_grad()
def sample(backbone: Any, spec: ProbeSpec, part: Chunk, device: torch.device, path: Path = "linear") -> Tensor:
    """Normalised latents (B, C, H, W) float32 of one chunk. `path` is the path on which the backbone was trained."""
    labels = part.labels.to(device)

    def network(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out: Tensor = backbone(x, t, y).velocity
        return out

    low, high = spec.guidance_interval
    guided = sampling.classifier_free_guidance(network, backbone.num_classes, spec.guidance_scale, low, high)

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return guided(x, t, labels)

    noise = part.noise.to(device)
    if spec.sampler == "euler_maruyama":
        number = part.first // spec.batch_size

        def draws(step: int) -> Tensor:
            source = generator(spec.seed, "probe-sde", number, step)
            return torch.randn(part.noise.shape, generator=source, dtype=torch.float64).to(device)

        return sampling.euler_maruyama(velocity, noise, spec.steps, path=path, draws=draws).float()
    solver = {"euler": sampling.euler, "heun": sampling.heun}[spec.sampler]
    return solver(velocity, noise, spec.steps, timestep_shift=spec.timestep_shift).float()


def probe(
    backbone: nn.Module,
    spec: ProbeSpec,
    *,
    autoencoder: Any,
    detector: Detector,
    reference: Reference,
    latent_shape: tuple[int, ...],
    num_classes: int,
    device: torch.device,
    path: Path = "linear",
    rank: int = 0,
    world_size: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    shards: Shards | None = None,
) -> ProbeResult:
    """The metrics of a frozen backbone; NaN if a sample is not finite. All ranks call this and get the same result.

    Args:
        reference: statistics of the real images from the same detector.
        latent_shape: (C, H, W).
        path: the path on which the backbone was trained.
        progress: called with the number of samples drawn so far.
        shards: finished chunks, which are not drawn again. New chunks are added.
    """
    chunks = -(-spec.samples // spec.batch_size)
    shards = {} if shards is None else shards
    mine: list[dict[str, Tensor]] = []
    for number in range(rank, chunks, world_size):
        shard = _read(shards.get(number))
        if shard is None:
            part = chunk(spec, number, latent_shape, num_classes)
            latents = sample(backbone, spec, part, device, path)
            shard = _shard(latents, part, num_classes, autoencoder, detector)
            shards[number] = safetensors.torch.save({name: tensor.contiguous() for name, tensor in shard.items()})
        mine.append(shard)
        progress((number + 1) * spec.batch_size)

    gathered = ProcessGroup(rank, world_size).gather(mine)
    in_order = [gathered[number % world_size][number // world_size] for number in range(chunks)]
    whole = {name: torch.cat([shard[name] for shard in in_order]) for name in in_order[0]}
    metrics, influence = dict.fromkeys(spec.reported, math.nan), None
    if whole["finite"].all():
        output = DetectorOutput(whole["features"], whole["probs"], whole.get("spatial"))
        estimates = reference.estimates_of(output, spec.metrics)
        for metric, estimate in estimates.items():
            name = spec.name(metric)
            metrics |= {name: estimate.value, error_name(name): estimate.se}
        deciding = estimates[spec.metrics[0]]
        assert isinstance(deciding, Estimate), "the deciding metric is fid or kid, which have influences"
        influence = deciding.influence.float().cpu()
    return ProbeResult(metrics, influence, whole["pictures"], min(num_classes, GRID_COLUMNS))


def save_grid(grid: Tensor, path: File, columns: int, scale: int = 2) -> None:
    """Write images (rows * columns, 3, H, W) uint8 as one PNG, with one class per column."""
    rows = len(grid) // columns
    tiles = grid[: rows * columns].reshape(rows, columns, *grid.shape[1:])  # (rows, columns, 3, H, W)
    sheet = tiles.permute(0, 3, 1, 4, 2).reshape(rows * grid.shape[2], columns * grid.shape[3], 3)
    picture = Image.fromarray(sheet.cpu().numpy())
    picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST).save(path)


def _shard(latents: Tensor, part: Chunk, num_classes: int, autoencoder: Any, detector: Detector) -> dict[str, Tensor]:
    """What is kept of a chunk: the detector's output, the images of the grid, and whether all latents are finite."""
    # uint8 images cannot hold values that are not finite; `finite` below records whether there are any.
    images = decode(autoencoder, latents.nan_to_num())
    output = detector(images).cpu()
    number_of = part.first + torch.arange(len(images))
    shown = (number_of < GRID_ROWS * num_classes) & (part.labels < GRID_COLUMNS)
    shard = {"features": output.features, "probs": output.probs, "pictures": images[shown.to(images.device)].cpu()}
    shard["finite"] = latents.isfinite().all().cpu()[None]
    return shard if output.spatial is None else shard | {"spatial": output.spatial}


def _read(content: bytes | None) -> dict[str, Tensor] | None:
    return None if content is None else safetensors.torch.load(content)
