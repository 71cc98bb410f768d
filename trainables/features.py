"""What a frozen backbone's blocks see, in numbers and pictures: the features behind Self-Transcendence's Figures 1, 2,
9 and 10 (arXiv 2601.07773). Pure functions; what is random comes in from outside or from a seed.
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
BATCH = 64  # images at once through a backbone
_LOW, _HIGH = 0.01, 0.99  # quantiles of a component that become 0 and 1


class Separability(NamedTuple):
    """How well features keep classes apart; both by cosine distance."""

    neighbour_accuracy: float  # share of points whose 5 nearest others say their class; 0 to 1
    silhouette: float  # how much nearer the own class is than the next one; -1 to 1


class Scene(NamedTuple):
    """Images to look at, evenly from their classes, and the one noise that all checkpoints see them in."""

    images: Tensor  # (N, 3, h, w) uint8
    latents: Tensor  # (N, C, H, W) float32, as the backbones see them
    labels: Tensor  # (N,) int64
    noise: Tensor  # (N, C, H, W) standard normal

    def first(self, count: int) -> Scene:
        """The first `count` images, still evenly from their classes."""
        return Scene(*(part[:count] for part in self))


def scene(data: str, autoencoder: Autoencoder, *, count: int, most_classes: int, seed: int) -> Scene:
    """Up to `count` images of a data set's test split and its first `most_classes` classes, by turns of the classes.

    Raises:
        LookupError: no such data set, or one that this package does not ship.
    """
    images, labels = load_images(data, "test")
    order = torch.randperm(len(labels), generator=generator(seed, "features-order"))
    order = order[labels[order] < most_classes]
    # The how-many-eth of its class each image is; a stable sort by that takes the classes by turns.
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
    """Hidden states {block: (B, T, D)} of latents (B, C, H, W) noised to one time t in [0, 1]; at 0 they are clean.

    Args:
        noise: (B, C, H, W) standard normal.
        blocks: counted from 1, read after the block.

    Raises:
        ValueError: no such block.
    """
    times = latents.new_full((len(latents),), t)
    x_t, _ = interpolate(latents, noise, times, path)
    hidden: dict[int, Tensor] = backbone(x_t, times, labels, taps=blocks).hidden
    return hidden


def pca_rgb(features: Tensor, grid: int) -> Tensor:
    """Tokens as colours: (N, T, D) with T = grid * grid -> (N, grid, grid, 3) in [0, 1].

    Red, green and blue are the first three principal components over all tokens given, each stretched so that its 1st
    and 99th percentiles are 0 and 1. A component's sign is free; it is taken so that the rarer side is the bright one
    (positive skewness), which does not depend on the basis of the features: the same structure gives the same colours.

    Raises:
        ValueError: T is not grid * grid, or D is below 3.
    """
    count, tokens, width = features.shape
    if tokens != grid**2 or width < 3:
        raise ValueError(f"features {tuple(features.shape)} are not (N, {grid}*{grid}, D) with D of 3 or more")
    points = features.detach().reshape(-1, width).double()  # (N*T, D)
    points = points - points.mean(dim=0)
    _, axes = torch.linalg.eigh(points.T @ points)  # (D, D), by growing variance
    scores = points @ axes[:, -3:].flip(1)  # (N*T, 3)
    scores = torch.where(scores.pow(3).sum(dim=0) < 0, -scores, scores)
    low, high = torch.quantile(scores, torch.tensor([_LOW, _HIGH], dtype=scores.dtype, device=scores.device), dim=0)
    span = (high - low).clamp_min(torch.finfo(scores.dtype).tiny)  # a constant component is black, not NaN
    return ((scores - low) / span).clamp(0, 1).float().reshape(count, grid, grid, 3)


def guiding_features(
    backbone: Any, x_t: Tensor, t: Tensor, labels: Tensor, block: int, guidance_scale: float
) -> Tensor:
    """What a teacher would show its student, f_u + scale (f_c - f_u) after `block`, averaged over tokens: (B, D).

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
    """`guiding_features` (N, D) of a scene at one time t in [0, 1]."""
    guiding = []
    for latents, labels, noise in zip(*(part.split(BATCH) for part in shown[1:]), strict=True):
        times = latents.new_full((len(latents),), t)
        x_t, _ = interpolate(latents, noise, times, path)
        guiding.append(guiding_features(backbone, x_t, times, labels, block, guidance_scale))
    return torch.cat(guiding)


def separability(features: Tensor, labels: Tensor) -> Separability:
    """How far apart classes lie among features (N, D) with labels (N,).

    Accuracy is leave-one-out over the 5 nearest others (fewer where there are fewer), by majority; where classes tie,
    the one with the larger similarity wins.

    Raises:
        ValueError: fewer than two classes, or every point a class of its own.
    """
    classes, own = labels.cpu().unique(return_inverse=True)
    if not 1 < len(classes) < len(own):
        raise ValueError(f"{len(classes)} classes among {len(own)} points: separability needs 2 or more, with company")
    points = F.normalize(features.detach().cpu().double(), dim=1)
    similarity = points @ points.T  # (N, N)
    nearest, which = similarity.fill_diagonal_(-torch.inf).topk(min(NEIGHBOURS, len(own) - 1), dim=1)  # (N, k)
    # One vote each; similarities, at most 1, only break ties.
    votes = torch.zeros(len(own), len(classes), dtype=torch.float64)
    votes.scatter_add_(1, own[which], 1 + nearest / (4 * NEIGHBOURS))
    accuracy = (votes.argmax(dim=1) == own).double().mean().item()
    return Separability(accuracy, float(silhouette_score(points.numpy(), own.numpy(), metric="cosine")))


def tsne(features: Tensor, seed: int) -> Tensor:
    """Points (N, 2) on a plane whose neighbours are those among features (N, D), by cosine; the seed fixes them.

    Distances and directions on the plane mean nothing beyond who is near whom.

    Raises:
        ValueError: fewer than four points.
    """
    if len(features) < 4:
        raise ValueError(f"t-SNE of {len(features)} points: give 4 or more")
    perplexity = min(30.0, (len(features) - 1) / 3)
    points = F.normalize(features.detach().cpu().double(), dim=1).numpy()
    plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(points)
    return torch.from_numpy(plane).float()
