"""Push the features of a batch's images apart in one block (Diffuse and Disperse, arXiv 2506.09027; DispLoss
transport.py).

    z_i = h_i / sqrt(T D), flattened; d_ij = |z_i - z_j|^2; c_ij the cosine of z_i and z_j; E the mean over all i and j

    infonce_l2       log E exp(-d_ij / temperature)
    infonce_cosine   log E exp( c_ij / temperature)
    hinge            E max(0, margin - d_ij)^2
    covariance       sum over channels m != n of Cov_mn(z)^2

h_i is the state of image i after the block. E runs over the full B x B matrix including the diagonal, as in the
released code. That code has only infonce_l2 and divides by T D; the scale of z applies this division to the other
forms too, so that the squared covariance of h is divided by (T D)^2. Departure: B is the global batch, as the features
of all ranks are gathered. The reference compares within a rank, so its loss depends on the number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F

from trainables.methods.base import Batch, Method, View

Variant = Literal["infonce_l2", "infonce_cosine", "hinge", "covariance"]


class Dispersive(Method):
    """Disperses the features of one block.

    Args:
        block: the student block that is read.
        variant: form of the loss.
        temperature: of the two InfoNCE forms.
        margin: of the hinge form.
    """

    def __init__(self, *, block: int, variant: Variant = "infonce_l2", temperature: float = 1.0, margin: float = 1.0):
        super().__init__()
        self.taps = (block,)
        self.variant = variant
        self.temperature = temperature
        self.margin = margin

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: View | None = None) -> Tensor:
        z = gathered(hidden[self.taps[0]].flatten(1).float())  # (B, T*D)
        with torch.autocast(z.device.type, enabled=False):  # autocast would compute the products in bf16
            if self.variant == "infonce_cosine":
                unit = F.normalize(z, dim=1)
                return log_mean_exp(unit @ unit.T / self.temperature)
            centred = (z - z.mean(dim=0)) / math.sqrt(z.shape[1])
            gram = centred @ centred.T  # (B, B)
            if self.variant == "covariance":
                return off_diagonal_covariance(centred, gram)
            distances = squared_distances(gram)
            if self.variant == "hinge":
                return F.relu(self.margin - distances).square().mean()
            return log_mean_exp(-distances / self.temperature)


def gathered(z: Tensor) -> Tensor:
    """The features (B, T*D) of all ranks, in the order of ranks."""
    several_ranks = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return _AllGather.apply(z) if several_ranks else z


class _AllGather(torch.autograd.Function):
    """Gathers features so that gradients are right under DDP.

    Every rank computes the same loss of all features. DDP later takes the mean of the ranks' gradients, so the gradient
    of a rank's own features has to be the sum over all ranks.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        parts = [torch.empty_like(z) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, z.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone(memory_format=torch.contiguous_format)  # not autograd's own tensor
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


def squared_distances(gram: Tensor) -> Tensor:
    """Squared distances (B, B) from the inner products of features, which should be centred against cancellation.

    A matrix product saves memory: the backward passes of torch.pdist and torch.cdist hold B x B x T*D numbers on a GPU.
    """
    norms = gram.diagonal()  # (B,) from the Gram matrix, so that the distance to itself is exactly zero
    return (norms[:, None] + norms[None, :] - 2 * gram).clamp(min=0)


def off_diagonal_covariance(centred: Tensor, gram: Tensor) -> Tensor:
    """The sum of all squared covariances minus that of the squared variances.

    |X'X| = |XX'| in Frobenius norm, so the Gram matrix (B^2 entries) replaces the covariance matrix ((T*D)^2 entries).
    """
    variances = centred.square().sum(dim=0)  # (T*D,)
    return (gram.square().sum() - variances.square().sum()) / (len(gram) - 1) ** 2


def log_mean_exp(x: Tensor) -> Tensor:
    """Logarithm of the mean of exp over all entries, computed stably."""
    return x.flatten().logsumexp(dim=0) - math.log(x.numel())
