"""Samplers from noise to latents (REPA samplers.py), on the clock t=1 noise, t=0 data.

A velocity function takes x (B, C, H, W) and t (B,), both float32, and returns (B, C, H, W); it includes labels and
guidance. The state is kept in float64, so that rounding does not add up over hundreds of steps.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from trainables.interpolant import Path, path_coefficients

VelocityFn = Callable[[Tensor, Tensor], Tensor]
LabelledVelocityFn = Callable[[Tensor, Tensor, Tensor], Tensor]
NoiseDraws = Tensor | Callable[[int], Tensor]

LAST_NOISY_TIME = 0.04  # the SDE's last step, without noise, goes from here to 0, where the score diverges


@torch.no_grad()
def euler(
    velocity_fn: VelocityFn,
    noise: Tensor,
    num_steps: int,
    *,
    draws: NoiseDraws | None = None,
    state_dtype: torch.dtype = torch.float64,
    timestep_shift: float = 1.0,
) -> Tensor:
    """Probability-flow ODE by Euler's method in `num_steps` steps of one evaluation.

    Args:
        noise: (B, C, H, W) standard normal, the state at t=1.
        draws: unused; present so that all samplers have the same arguments.
        timestep_shift: 1 makes the steps equal; less makes them shorter near the noise. LightningDiT
            (transport/integrators.py) uses 0.3. Its num_steps counts grid points, ours steps: its 250 are our 249.

    Returns:
        Latents (B, C, H, W) in `state_dtype`.

    Raises:
        ValueError: num_steps is below 1, or the shift is not positive.
    """
    x = noise.to(state_dtype)
    for t, t_next in pairwise(_times(num_steps, timestep_shift)):
        x = x + (t_next - t) * _velocity(velocity_fn, x, t)
    return x


@torch.no_grad()
def heun(
    velocity_fn: VelocityFn,
    noise: Tensor,
    num_steps: int,
    *,
    draws: NoiseDraws | None = None,
    state_dtype: torch.dtype = torch.float64,
    timestep_shift: float = 1.0,
) -> Tensor:
    """Like `euler`, by Heun's method, which averages the slopes at both ends: 2 * num_steps - 1 evaluations.

    The last step is Euler's, since the velocity is not trained at t=0.
    """
    x = noise.to(state_dtype)
    for t, t_next in pairwise(_times(num_steps, timestep_shift)):
        slope = _velocity(velocity_fn, x, t)
        if t_next > 0:
            ahead = x + (t_next - t) * slope
            slope = (slope + _velocity(velocity_fn, ahead, t_next)) / 2
        x = x + (t_next - t) * slope
    return x


@torch.no_grad()
def euler_maruyama(
    velocity_fn: VelocityFn,
    noise: Tensor,
    num_steps: int,
    *,
    path: Path = "linear",
    draws: NoiseDraws | None = None,
    state_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Reverse SDE with diffusion w(t) = 2t by Euler-Maruyama: dx = (v - w/2 score) dt + sqrt(w) dW.

    There are `num_steps` evaluations, at equally spaced times from 1 to 0.04. The last step, to 0, adds no noise.

    Args:
        noise: (B, C, H, W) standard normal, the state at t=1.
        path: the path on which the velocity was trained; the score depends on both.
        draws: the standard normal noise of steps 0 to num_steps - 2, as a function of the step or a tensor
            (num_steps - 1, B, C, H, W). None: drawn from torch's global generator.

    Returns:
        Latents (B, C, H, W) in `state_dtype`.

    Raises:
        ValueError: num_steps is below 1, or the tensor of draws is for another number of steps.
    """
    _check_steps(num_steps)
    if isinstance(draws, Tensor) and len(draws) != num_steps - 1:
        raise ValueError(f"{num_steps} steps need {num_steps - 1} draws, not {len(draws)}")
    x = noise.to(state_dtype)
    times = torch.linspace(1, LAST_NOISY_TIME, num_steps, dtype=torch.float64).tolist()
    for step, (t, t_next) in enumerate(pairwise(times)):
        drift = _drift(velocity_fn, x, t, path)
        spread = (2 * t * (t - t_next)) ** 0.5  # sqrt(w |dt|)
        x = x + (t_next - t) * drift + spread * _standard_normal(draws, step, x)
    return x - times[-1] * _drift(velocity_fn, x, times[-1], path)


def classifier_free_guidance(
    velocity_fn: LabelledVelocityFn, null_class: int, scale: float, low: float = 0.0, high: float = 1.0
) -> LabelledVelocityFn:
    """v_u + scale (v_c - v_u) for times within [low, high], v_c elsewhere; all channels (arXiv 2207.12598, 2404.07724).

    The SDE's drift is affine in the velocity, so this equals REPA's guidance of the drift.

    Args:
        velocity_fn: (x, t, y) -> velocity. Called once for 2B inputs, or for B if no time is guided.
        null_class: the label of the unconditional velocity.
        scale: 1 gives the conditional velocity, 0 the unconditional one.
        low, high: the interval of guided times; t=0 is data.
    """

    def guided(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        inside = (t >= low) & (t <= high)  # (B,)
        if scale == 1 or not inside.any():
            return velocity_fn(x, t, y)
        labels = torch.cat([y, torch.full_like(y, null_class)])  # (2B,)
        conditional, unconditional = velocity_fn(torch.cat([x, x]), torch.cat([t, t]), labels).chunk(2)
        scales = torch.where(inside, scale, 1.0).to(conditional.dtype)  # (B,)
        return torch.lerp(unconditional, conditional, scales.reshape(-1, *[1] * (x.dim() - 1)))

    return guided


def _check_steps(num_steps: int) -> None:
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}, must be 1 or more")


def _times(num_steps: int, shift: float) -> list[float]:
    """num_steps + 1 times from exactly 1 to exactly 0.

    On LightningDiT's clock, s = 1 - t, an equally spaced s becomes shift s / (1 + (shift - 1) s). This is the same on
    our clock, in a form that is exact at both ends and for shift 1.
    """
    _check_steps(num_steps)
    if not shift > 0:
        raise ValueError(f"timestep_shift is {shift}, must be above 0")
    equal = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    return [t / (t + shift * (1 - t)) for t in equal]


def _velocity(velocity_fn: VelocityFn, x: Tensor, t: float) -> Tensor:
    """Call the network in float32 and return its velocity in the dtype of the state."""
    times = torch.full((len(x),), t, dtype=torch.float32, device=x.device)
    return velocity_fn(x.float(), times).to(x.dtype)


def _drift(velocity_fn: VelocityFn, x: Tensor, t: float, path: Path) -> Tensor:
    """v - w/2 score, with w = 2t and the score that the velocity implies on this path (REPA samplers.py)."""
    velocity = _velocity(velocity_fn, x, t)
    alpha, sigma, d_alpha, d_sigma = (c.item() for c in path_coefficients(torch.tensor(t, dtype=torch.float64), path))
    ratio = alpha / d_alpha
    score = (ratio * velocity - x) / (sigma**2 - ratio * d_sigma * sigma)
    return velocity - t * score


def _standard_normal(draws: NoiseDraws | None, step: int, x: Tensor) -> Tensor:
    if draws is None:
        return torch.randn_like(x)
    return (draws[step] if isinstance(draws, Tensor) else draws(step)).to(x)
