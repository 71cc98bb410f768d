"""The path between data and noise (SiT, arXiv 2401.08740), on one clock: t=0 is data, t=1 is noise.

    x_t = alpha(t) latents + sigma(t) noise        velocity = alpha'(t) latents + sigma'(t) noise

Nothing here draws random numbers; they are arguments.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Path = Literal["linear", "cosine"]
TimeKind = Literal["uniform", "log_normal"]


class PathCoefficients(NamedTuple):
    """alpha, sigma and their derivatives by t, with the shape and dtype of t."""

    alpha: Tensor
    sigma: Tensor
    d_alpha: Tensor
    d_sigma: Tensor


def path_coefficients(t: Tensor, path: Path = "linear") -> PathCoefficients:
    """Coefficients at times `t` in [0, 1], of any shape (REPA loss.py, `interpolant`).

    Raises:
        ValueError: there is no such path.
    """
    if path == "linear":
        one = torch.ones_like(t)
        return PathCoefficients(1 - t, t, -one, one)
    if path == "cosine":
        angle, rate = t * (math.pi / 2), math.pi / 2
        return PathCoefficients(angle.cos(), angle.sin(), -rate * angle.sin(), rate * angle.cos())
    raise ValueError(f"no path '{path}'; known: linear, cosine")


def interpolate(latents: Tensor, noise: Tensor, t: Tensor, path: Path = "linear") -> tuple[Tensor, Tensor]:
    """x_t and velocity, both (B, ...) like `latents` and `noise`, for one time per image, `t` (B,).

    On the linear path the velocity is noise - latents at all times.
    """
    of_image = t.reshape(-1, *[1] * (latents.dim() - 1))  # (B, 1, ...)
    alpha, sigma, d_alpha, d_sigma = path_coefficients(of_image, path)
    return alpha * latents + sigma * noise, d_alpha * latents + d_sigma * noise


def sample_time(draws: Tensor, kind: TimeKind = "uniform") -> Tensor:
    """Training times in [0, 1], of the shape of `draws` (REPA loss.py).

    Args:
        draws: for `uniform` uniform in [0, 1), which are the times themselves; for `log_normal` standard normal n, with
            sigma = exp(n) and t = sigma / (1 + sigma).

    Raises:
        ValueError: there is no such kind.
    """
    if kind == "uniform":
        return draws
    if kind == "log_normal":
        return torch.sigmoid(draws)  # the same ratio, without overflow of exp(n)
    raise ValueError(f"no time sampling '{kind}'; known: uniform, log_normal")
