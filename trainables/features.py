"""Analyses of a frozen backbone's features, as in Figures 1, 2, 9 and 10 of Self-Transcendence (arXiv 2601.07773).

Functions are pure: randomness is an argument or comes from a seed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from trainables.datasets import catalog
from trainables.datasets.autoencoders import Autoencoder, encode, normalisation
from trainables.datasets.latent_set import load_images
from trainables.draws import generator
from trainables.interpolant import Path, interpolate
from trainables.methods.self_guided import guided_feature

NEIGHBOURS = 5
BATCH = 64  # images per call of a backbone
_LOW, _HIGH = 0.01, 0.99  # quantiles of a component that are mapped to 0 and 1


class Separability(NamedTuple):
    """How well features separate classes, by cosine distance."""

    neighbour_accuracy: float  # share of points whose class wins the vote of their 5 nearest neighbours; 0 to 1
    silhouette: float  # mean silhouette coefficient: how much nearer the own class is than the next one; -1 to 1


class Scene(NamedTuple):
    """Images drawn evenly from their classes, with the noise that is added to them, the same for every checkpoint."""

    images: Tensor  # (N, 3, h, w) uint8
    latents: Tensor  # (N, C, H, W) float32, normalised
    labels: Tensor  # (N,) int64
    noise: Tensor  # (N, C, H, W) standard normal

    def first(self, count: int) -> Scene:
        """The first `count` images, which are also drawn evenly from their classes."""
        return Scene(*(part[:count] for part in self))


def scene(data: str, autoencoder: Autoencoder, *, count: int, most_classes: int, seed: int) -> Scene:
    """Up to `count` images of the first `most_classes` classes of a data set's test split, the classes in turn.

    Raises:
        LookupError: there is no such data set, or it is not embedded in this package.
    """
    images, labels = load_images(data, "test")
    order = torch.randperm(len(labels), generator=generator(seed, "features-order"))
    order = order[labels[order] < most_classes]
    # The rank of each image within its class. A stable sort by it takes the classes in turn.
    classes = F.one_hot(labels[order], catalog.find(data).num_classes)
    turn = (classes.cumsum(dim=0) * classes).sum(dim=1)
    order = order[turn.argsort(stable=True)][:count]
    mean, _ = encode(autoencoder, images[order])
    noise = torch.randn(mean.shape, generator=generator(seed, "features-noise"))
    latents = normalisation(autoencoder).apply(mean)
    device = autoencoder.device
    return Scene(images[order], latents.to(device), labels[order].to(device), noise.to(device))


@torch.no_grad()
def block_features(
    backbone: Any,
    latents: Tensor,
    labels: Tensor,
    t: float,
    blocks: Collection[int],
    noise: Tensor,
    path: Path = "linear",
) -> dict[int, Tensor]:
    """Hidden states {block: (B, T, D)} of latents (B, C, H, W) at time t in [0, 1]; t=0 is clean data.

    Args:
        noise: (B, C, H, W) standard normal.
        blocks: counted from 1 and read after the block.

    Raises:
        ValueError: there is no such block.
    """
    times = latents.new_full((len(latents),), t)
    x_t, _ = interpolate(latents, noise, times, path)
    hidden: dict[int, Tensor] = backbone(x_t, times, labels, taps=blocks).hidden
    return hidden


def pca_rgb(features: Tensor, grid: int) -> Tensor:
    """Colours of tokens: (N, T, D) with T = grid * grid -> (N, grid, grid, 3) in [0, 1].

    Red, green and blue are the first three principal components over all tokens, scaled so that the 1st and 99th
    percentiles are 0 and 1. The sign of a component is chosen for positive skewness (the rarer side is bright), which
    does not depend on the basis of the features.

    Raises:
        ValueError: T is not grid * grid, or D is below 3.
    """
    count, tokens, width = features.shape
    if tokens != grid**2 or width < 3:
        raise ValueError(f"features {tuple(features.shape)} are not (N, {grid}*{grid}, D) with D of 3 or more")
    points = features.detach().reshape(-1, width).double()  # (N*T, D)
    points = points - points.mean(dim=0)
    _, axes = torch.linalg.eigh(points.T @ points)  # (D, D), by increasing variance
    scores = points @ axes[:, -3:].flip(1)  # (N*T, 3)
    scores = torch.where(scores.pow(3).sum(dim=0) < 0, -scores, scores)
    low, high = torch.quantile(scores, torch.tensor([_LOW, _HIGH], dtype=scores.dtype, device=scores.device), dim=0)
    span = (high - low).clamp_min(torch.finfo(scores.dtype).tiny)  # a constant component is black, not NaN
    return ((scores - low) / span).clamp(0, 1).float().reshape(count, grid, grid, 3)


def guiding_features(
    backbone: Any, x_t: Tensor, t: Tensor, labels: Tensor, block: int, guidance_scale: float
) -> Tensor:
    """A teacher's guided feature f_u + scale (f_c - f_u) after `block`, averaged over tokens: (B, D).

    Args:
        x_t: (B, C, H, W).
        t: (B,).
        labels: (B,) the true classes.
    """
    guided = guided_feature(backbone, x_t, t, labels, block=block, guidance_scale=guidance_scale)
    return guided.mean(dim=1)


def scene_guidance(
    backbone: Any, shown: Scene, t: float, block: int, guidance_scale: float, path: Path = "linear"
) -> Tensor:
    """`guiding_features` (N, D) of a scene at time t in [0, 1]."""
    guiding = []
    for latents, labels, noise in zip(*(part.split(BATCH) for part in shown[1:]), strict=True):
        times = latents.new_full((len(latents),), t)
        x_t, _ = interpolate(latents, noise, times, path)
        guiding.append(guiding_features(backbone, x_t, times, labels, block, guidance_scale))
    return torch.cat(guiding)


def separability(features: Tensor, labels: Tensor) -> Separability:
    """How well features (N, D) separate classes with labels (N,).

    The accuracy is that of a leave-one-out majority vote of the 5 nearest neighbours (or all, if fewer). Ties are
    broken by similarity.

    Raises:
        ValueError: there are fewer than two classes, or every point is a class of its own.
    """
    classes, own = labels.cpu().unique(return_inverse=True)
    if not 1 < len(classes) < len(own):
        raise ValueError(
            f"{len(classes)} classes among {len(own)} points; separability needs 2 or more, and fewer than points"
        )
    points = F.normalize(features.detach().cpu().double(), dim=1)
    similarity = points @ points.T  # (N, N)
    nearest, which = similarity.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, len(own) - 1), dim=1)  # (N, k)
    # One vote each; similarities, at most 1, only break ties.
    votes = torch.zeros(len(own), len(classes), dtype=torch.float64)
    votes.scatter_add_(1, own[which], 1 + nearest / (4 * NEIGHBOURS))
    accuracy = (votes.argmax(dim=1) == own).double().mean().item()
    return Separability(accuracy, float(silhouette_score(points.numpy(), own.numpy(), metric="cosine")))


def tsne(features: Tensor, seed: int) -> Tensor:
    """Points (N, 2) of a t-SNE of features (N, D) by cosine distance.

    Only neighbourhoods on the plane are meaningful, not distances or directions.

    Raises:
        ValueError: there are fewer than four points.
    """
    if len(features) < 4:
        raise ValueError(f"t-SNE of {len(features)} points: give 4 or more")
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = F.normalize(features.detach().cpu().double(), dim=1).numpy()
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return torch.from_numpy(plane).float()
