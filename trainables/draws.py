"""All random numbers of a training step, from (seed, step) only.

Draws are made on the CPU for the global batch, and each rank takes its slice. The same seed gives every trial the same
images, times and noise, on any number of ranks and wherever training resumed. Each purpose has its own generator, so
that a new purpose does not shift the others. Noise has one generator per `CHUNK` images, so that a rank draws little
more than its own share.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor


def generator(*identity: int | str) -> torch.Generator:
    """A CPU generator seeded by the SHA-256 of `identity`, e.g. `generator(seed, "noise", step)`."""
    digest = hashlib.sha256("/".join(map(str, identity)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


CHUNK = 16  # images whose noise comes from one generator; changing it changes the bits of every run


class Draws(NamedTuple):
    """The randomness of one step, B = this rank's share of the batch."""

    indices: Tensor  # (B,) int64, the images of the batch
    time: Tensor  # (B,) uniform in [0, 1), or standard normal for log-normal times
    noise: Tensor  # (B, C, H, W) standard normal, the diffusion noise
    posterior: Tensor  # (B, C, H, W) standard normal, the autoencoder's own noise
    dropped: Tensor  # (B,) uniform in [0, 1): a label is dropped where this is below the dropout rate
    flipped: Tensor  # (B,) uniform in [0, 1): an image is mirrored below 1/2, where the recipe mirrors
    offset: Tensor  # (B,) uniform in [0, 1), for a method's own use


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_images: int) -> Tensor:
    return torch.randperm(num_images, generator=generator(seed, "order", epoch))


def batch_indices(seed: int, step: int, batch_size: int, num_images: int) -> Tensor:
    """Images (batch_size,) int64 of step `step`. Steps walk through one permutation of the set per epoch."""
    first = step * batch_size
    positions = torch.arange(first, first + batch_size)
    epochs = positions // num_images
    within = positions % num_images
    indices = torch.empty(batch_size, dtype=torch.int64)
    for epoch in epochs.unique().tolist():
        mine = epochs == epoch
        indices[mine] = _order(seed, epoch, num_images)[within[mine]]
    return indices


def share_of(batch_size: int, rank: int, world_size: int) -> slice:
    """The consecutive images of a batch that belong to a rank. Shares of ranks differ by at most one image.

    Raises:
        ValueError: there are more ranks than images in a batch.
    """
    if world_size > batch_size:
        raise ValueError(f"a batch of {batch_size} is too small for {world_size} ranks")
    return slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


def draw_images(
    seed: int, step: int, *, batch_size: int, num_images: int, rank: int = 0, world_size: int = 1
) -> tuple[Tensor, Tensor]:
    """`indices` and `flipped` of `draw`, without the noise: the images that a step will read."""
    mine = share_of(batch_size, rank, world_size)
    flipped = torch.rand(batch_size, generator=generator(seed, "flip", step))
    return batch_indices(seed, step, batch_size, num_images)[mine], flipped[mine]


def draw(
    seed: int,
    step: int,
    *,
    batch_size: int,
    num_images: int,
    latent_shape: tuple[int, ...],
    normal_time: bool = False,
    rank: int = 0,
    world_size: int = 1,
) -> Draws:
    """This rank's slice (`share_of`) of the draws of the step that leads from `step` to `step + 1`.

    Raises:
        ValueError: there are more ranks than images in a batch.
    """
    mine = share_of(batch_size, rank, world_size)

    def noise(purpose: str) -> Tensor:
        return _noise((seed, purpose, step), mine, batch_size, latent_shape)

    def uniform(purpose: str) -> Tensor:
        return torch.rand(batch_size, generator=generator(seed, purpose, step))[mine]

    indices, flipped = draw_images(
        seed, step, batch_size=batch_size, num_images=num_images, rank=rank, world_size=world_size
    )
    return Draws(
        indices=indices,
        time=torch.randn(batch_size, generator=generator(seed, "time", step))[mine] if normal_time else uniform("time"),
        noise=noise("noise"),
        posterior=noise("posterior"),
        dropped=uniform("label-dropout"),
        flipped=flipped,
        offset=uniform("method"),
    )


def _noise(identity: tuple[int | str, ...], mine: slice, batch_size: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape) for the images `mine` of a batch; draws only the chunks that hold them."""
    first, end = mine.start // CHUNK, -(-mine.stop // CHUNK)
    parts = [
        torch.randn(min(CHUNK, batch_size - number * CHUNK), *shape, generator=generator(*identity, number))
        for number in range(first, end)
    ]
    drawn = parts[0] if len(parts) == 1 else torch.cat(parts)
    return drawn[mine.start - first * CHUNK : mine.stop - first * CHUNK]
