"""Inception Score (Salimans et al. 2016)."""

from __future__ import annotations

import torch
from torch import Tensor


def inception_score(probs: Tensor, splits: int = 10) -> tuple[float, float]:
    """exp of the mean KL divergence of rows from their marginal: mean and standard deviation over `splits` parts.

    Parts are consecutive rows, as in torch-fidelity: the classes must be spread evenly over the rows.

    Args:
        probs: (N, K), each row a distribution over classes.

    Raises:
        ValueError: fewer rows than parts.
    """
    if not 1 <= splits <= len(probs):
        raise ValueError(f"{len(probs)} rows cannot be cut into {splits} parts")
    scores = torch.stack([_score(part) for part in probs.double().tensor_split(splits)])
    return scores.mean().item(), scores.std(correction=0).item()


def _score(probs: Tensor) -> Tensor:
    marginal = probs.mean(dim=0)
    divergence = torch.xlogy(probs, probs) - torch.xlogy(probs, marginal)  # 0 log 0 = 0
    return divergence.sum(dim=1).mean().exp()
