"""Inception Score (Salimans et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor

from trainables.evaluation.estimate import Estimate
from trainables.evaluation.frechet import Array


def inception_score(probs: Array, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of the rows from their mean, as mean and standard deviation over `splits` parts.

    Parts are consecutive rows, so the classes must be spread evenly over the rows, or the rows shuffled. torch-fidelity
    uses 10 parts of shuffled rows, ADM's evaluator parts of 5,000 rows.

    Args:
        probs: (N, K), tensor or NumPy array; each row is a distribution over classes.

    Raises:
        ValueError: fewer rows than parts.
    """
    scores = torch.stack([score for score, _ in _parts(torch.as_tensor(probs), splits)])
    return scores.mean().item(), scores.std(correction=0).item()


def inception_score_estimate(probs: Tensor, splits: int = 10) -> Estimate:
    """The mean of `inception_score` with its standard error, for probs (N, K).

    The standard deviation over parts is not a standard error: parts have fewer rows, so their scores scatter more.
    """
    parts = _parts(probs, splits)
    value = torch.stack([score for score, _ in parts]).mean()
    # A row influences only the score of its own part, which has a share of 1 / splits in the mean.
    influence = torch.cat([part * len(probs) / (splits * len(part)) for _, part in parts])
    return Estimate(value.item(), influence)


def _parts(probs: Tensor, splits: int) -> list[tuple[Tensor, Tensor]]:
    """The score of each part, and the influence of its rows on that score."""
    rows = len(probs)
    if not 1 <= splits <= rows:
        raise ValueError(f"{rows} rows cannot be cut into {splits} parts")
    probs = probs.double()
    bounds = [part * rows // splits for part in range(splits + 1)]
    return [_score(probs[begin:end]) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]


def _score(probs: Tensor) -> tuple[Tensor, Tensor]:
    marginal = probs.mean(dim=0)
    divergence = (torch.xlogy(probs, probs) - torch.xlogy(probs, marginal)).sum(dim=1)  # 0 log 0 = 0
    mean = divergence.mean()
    # The derivative through the marginal is zero: the mean divergence is stationary in it.
    return mean.exp(), mean.exp() * (divergence - mean)
