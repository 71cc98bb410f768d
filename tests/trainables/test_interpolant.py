"""Laws of the path and of the training times."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from trainables.interpolant import Path, interpolate, path_coefficients, sample_time

PATHS = st.sampled_from(["linear", "cosine"])
TIMES = st.floats(0, 1)


def at(t: float) -> Tensor:
    return torch.tensor([t], dtype=torch.float64)


@given(path=PATHS)
def test_the_clock_starts_at_data_and_ends_at_noise(path: Path) -> None:
    latents, noise = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    begins, _ = interpolate(latents, noise, torch.zeros(2, dtype=torch.float64), path)
    ends, _ = interpolate(latents, noise, torch.ones(2, dtype=torch.float64), path)
    torch.testing.assert_close(begins, latents)
    torch.testing.assert_close(ends, noise)


@given(t=st.floats(1e-4, 1 - 1e-4), path=PATHS)
def test_derivatives_are_those_of_the_coefficients(t: float, path: Path) -> None:
    step = 1e-6
    here, before, after = (path_coefficients(at(time), path) for time in (t, t - step, t + step))
    torch.testing.assert_close(here.d_alpha, (after.alpha - before.alpha) / (2 * step), rtol=0, atol=1e-8)
    torch.testing.assert_close(here.d_sigma, (after.sigma - before.sigma) / (2 * step), rtol=0, atol=1e-8)


@given(t=TIMES)
def test_the_linear_path_mixes_to_one_and_the_cosine_path_keeps_the_variance(t: float) -> None:
    linear, cosine = path_coefficients(at(t), "linear"), path_coefficients(at(t), "cosine")
    assert (linear.alpha + linear.sigma).item() == pytest.approx(1)
    assert (cosine.alpha.square() + cosine.sigma.square()).item() == pytest.approx(1)


def test_the_linear_velocity_is_noise_minus_latents_at_each_images_own_time() -> None:
    latents, noise, t = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8), torch.tensor([0.0, 0.25, 1.0])
    x_t, velocity = interpolate(latents, noise, t)
    assert torch.equal(velocity, noise - latents)
    torch.testing.assert_close(x_t[1], 0.75 * latents[1] + 0.25 * noise[1])


@given(n=st.floats(-200, 200))
def test_log_normal_times_are_sigma_over_one_plus_sigma(n: float) -> None:
    t, opposite = sample_time(at(n), "log_normal").item(), sample_time(at(-n), "log_normal").item()
    assert t == pytest.approx(math.exp(n) / (1 + math.exp(n)))
    assert t + opposite == pytest.approx(1)
    assert 0 <= t <= 1


def test_uniform_times_are_the_draws() -> None:
    draws = torch.rand(5)
    assert torch.equal(sample_time(draws, "uniform"), draws)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="no path 'spiral'; known: linear, cosine"):
        path_coefficients(torch.zeros(1), "spiral")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="known: uniform, log_normal"):
        sample_time(torch.zeros(1), "beta")  # type: ignore[arg-type]
