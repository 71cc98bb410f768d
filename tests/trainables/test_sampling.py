"""Samplers against Gaussian data, whose velocity and flow are known in closed form."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainables.interpolant import Path, path_coefficients
from trainables.sampling import VelocityFn, classifier_free_guidance, euler, euler_maruyama, heun

MEAN, STD = 1.5, 0.4


def exact_velocity(path: Path = "linear") -> VelocityFn:
    """E[velocity | x_t] for data drawn from N(MEAN, STD^2)."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, d_alpha, d_sigma = path_coefficients(t.double().reshape(-1, 1, 1, 1), path)
        centred = (x - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)
        latents, noise = MEAN + alpha * STD**2 * centred, sigma * centred
        return d_alpha * latents + d_sigma * noise

    return velocity


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact_latents(noise: Tensor) -> Tensor:
    """The probability flow carries quantiles to quantiles."""
    return MEAN + STD * noise


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
def test_ode_samplers_converge_at_their_order(sampler: Callable[..., Tensor], order: int) -> None:
    noise = normal(8, 1, 2, 2)
    errors = [
        (sampler(exact_velocity(), noise, steps) - exact_latents(noise)).abs().max().item() for steps in (20, 40, 80)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


@pytest.mark.parametrize(("sampler", "order"), [(euler, 1), (heun, 2)])
@pytest.mark.parametrize("shift", [0.3, 2.0])
def test_shifted_steps_keep_the_order(sampler: Callable[..., Tensor], order: int, shift: float) -> None:
    noise = normal(8, 1, 2, 2)
    errors = [
        (sampler(exact_velocity(), noise, steps, timestep_shift=shift) - exact_latents(noise)).abs().max().item()
        for steps in (40, 80, 160)
    ]
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


def times_of(num_steps: int, **options: float) -> list[float]:
    """The times at which the velocity is asked for, and where the last step ends: a state of unit speed is its time."""
    seen: list[float] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        return torch.ones_like(x)

    end = euler(velocity, torch.ones(1, 1, 1, 1), num_steps, **options)  # 1 + the sum of all t' - t
    return [*seen, end.item()]


def test_shifted_times_are_lightningdits_on_our_clock() -> None:
    """transport/integrators.py: s' = shift s / (1 + (shift - 1) s) of equally spaced s, where s is 0 at noise."""
    s = torch.linspace(0, 1, 9, dtype=torch.float64)
    theirs = 0.3 * s / (1 + (0.3 - 1) * s)
    assert times_of(8, timestep_shift=0.3) == pytest.approx((1 - theirs).tolist(), abs=1e-7)


@settings(deadline=None, max_examples=50)
@given(num_steps=st.integers(1, 60), shift=st.floats(0.01, 100))
def test_shifted_times_fall_from_one_to_zero(num_steps: int, shift: float) -> None:
    times = times_of(num_steps, timestep_shift=shift)
    assert times[0] == 1
    assert times[-1] == pytest.approx(0, abs=1e-12)
    assert times == sorted(times, reverse=True)
    asked: list[Tensor] = []
    heun(lambda x, t: asked.append(t) or x, torch.ones(1, 1, 1, 1), num_steps, timestep_shift=shift)
    assert len(asked) == 2 * num_steps - 1  # the last step is known by ending at 0, to the last bit


@pytest.mark.parametrize("sampler", [euler, heun])
def test_a_shift_of_one_is_none_and_none_below_zero_is_taken(sampler: Callable[..., Tensor]) -> None:
    noise = normal(2, 1, 2, 2)
    for steps in (1, 7, 50, 249):
        x = noise
        for t, t_next in pairwise(torch.linspace(1, 0, steps + 1, dtype=torch.float64).tolist()):
            x = x + (t_next - t) * x.float().double()
        assert torch.equal(euler(lambda x, t: x, noise, steps, timestep_shift=1.0), x)
    assert torch.equal(sampler(lambda x, t: x, noise, 9, timestep_shift=1.0), sampler(lambda x, t: x, noise, 9))
    for shift in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="timestep_shift is"):
            sampler(lambda x, t: x, noise, 9, timestep_shift=shift)


@pytest.mark.parametrize("path", ["linear", "cosine"])
def test_the_sde_ends_in_the_data_distribution(path: Path) -> None:
    noise = normal(20_000, 1, 1, 1)
    latents = euler_maruyama(
        exact_velocity(path), noise, 100, path=path, draws=lambda step: normal(20_000, 1, 1, 1, seed=step + 1)
    )
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.01)
    assert latents.std().item() == pytest.approx(STD, rel=0.03)

    # The first noise is forgotten at the rate w/2 over the variance: this pins the strength of both drift and draws.
    t = torch.linspace(0.04, 1, 1000, dtype=torch.float64)
    alpha, sigma, _, _ = path_coefficients(t, path)
    kept = torch.exp(-torch.trapezoid(t / (alpha**2 * STD**2 + sigma**2), t)).item()
    correlation = torch.corrcoef(torch.stack([latents.flatten(), noise.flatten()]))[0, 1].item()
    assert correlation == pytest.approx(kept, abs=0.03)


def test_the_sde_is_the_references_formula() -> None:
    """REPA samplers.py written out for the linear path."""
    noise, draws, times = normal(2, 1, 2, 2), normal(4, 2, 1, 2, 2, seed=1), [1, 0.76, 0.52, 0.28, 0.04, 0]
    x = noise
    for step, (t, t_next) in enumerate(zip(times, times[1:], strict=False)):
        v = exact_velocity()(x.float(), torch.full((2,), t)).double()
        score = (-(1 - t) * v - x) / (t**2 + (1 - t) * t)
        x = x + (v - t * score) * (t_next - t)
        if step < 4:
            x = x + (2 * t) ** 0.5 * (t - times[step + 1]) ** 0.5 * draws[step]
    sampled = euler_maruyama(exact_velocity(), noise, 5, draws=draws)
    torch.testing.assert_close(sampled, x, rtol=0, atol=1e-9)


def test_draws_may_be_a_tensor_or_a_function_of_the_step() -> None:
    noise, draws = normal(2, 1, 2, 2), normal(6, 2, 1, 2, 2, seed=1)
    from_tensor = euler_maruyama(exact_velocity(), noise, 7, draws=draws)
    assert torch.equal(from_tensor, euler_maruyama(exact_velocity(), noise, 7, draws=lambda step: draws[step]))
    with pytest.raises(ValueError, match="9 steps need 8 draws, not 6"):
        euler_maruyama(exact_velocity(), noise, 9, draws=draws)


@pytest.mark.parametrize(
    ("sampler", "evaluations"), [(euler, 5), (heun, 9), (euler_maruyama, 5)], ids=["euler", "heun", "euler_maruyama"]
)
def test_the_network_sees_float32_and_the_state_keeps_its_dtype(
    sampler: Callable[..., Tensor], evaluations: int
) -> None:
    seen: list[tuple[torch.dtype, torch.dtype, torch.Size]] = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x.dtype, t.dtype, t.shape))
        assert not torch.is_grad_enabled()
        return x

    assert sampler(velocity, torch.randn(3, 1, 2, 2), 5).dtype == torch.float64
    assert seen == [(torch.float32, torch.float32, torch.Size([3]))] * evaluations
    assert sampler(velocity, torch.randn(3, 1, 2, 2), 5, state_dtype=torch.float32).dtype == torch.float32
    with pytest.raises(ValueError, match="num_steps is 0"):
        sampler(velocity, torch.randn(3, 1, 2, 2), 0)


# --- guidance: a network that answers with its label, so that every mixture can be read off ---------------------------

NULL = 7


def of_label(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x * torch.where(y == NULL, 0.5, y + 1.0)[:, None, None, None]


X, Y = normal(3, 2, 2, 2).float(), torch.tensor([0, 1, 2])
CONDITIONAL, UNCONDITIONAL = of_label(X, torch.ones(3), Y), of_label(X, torch.ones(3), torch.full_like(Y, NULL))


def test_scale_one_is_the_conditional_and_scale_zero_the_unconditional_velocity() -> None:
    t = torch.rand(3)
    assert torch.equal(classifier_free_guidance(of_label, NULL, 1.0)(X, t, Y), CONDITIONAL)
    assert torch.equal(classifier_free_guidance(of_label, NULL, 0.0)(X, t, Y), UNCONDITIONAL)


@settings(deadline=None)
@given(scale=st.floats(-4, 30))
def test_guidance_is_affine_in_its_scale_on_all_channels(scale: float) -> None:
    guided = classifier_free_guidance(of_label, NULL, scale)(X, torch.rand(3), Y)
    torch.testing.assert_close(guided, UNCONDITIONAL + scale * (CONDITIONAL - UNCONDITIONAL), rtol=1e-5, atol=1e-4)


def test_guidance_acts_within_its_interval_alone_and_costs_nothing_outside() -> None:
    sizes: list[int] = []

    def counted(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        sizes.append(len(x))
        return of_label(x, t, y)

    guide = classifier_free_guidance(counted, NULL, 2.0, low=0.25, high=0.75)
    mixed = guide(X, torch.tensor([0.2, 0.25, 0.8]), Y)
    assert torch.equal(mixed[[0, 2]], CONDITIONAL[[0, 2]])
    torch.testing.assert_close(mixed[1], 2 * CONDITIONAL[1] - UNCONDITIONAL[1])
    assert torch.equal(guide(X, torch.full((3,), 0.9), Y), CONDITIONAL)
    assert sizes == [6, 3]
