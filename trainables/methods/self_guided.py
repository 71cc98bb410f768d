"""Pull a block toward a frozen teacher's guided feature (Self-Transcendence, arXiv 2601.07773, Eq. 3 and 4).

    f_g = f_u + omega (f_c - f_u)          L = mean over batch, tokens and channels of ( projector(h_n) - f_g )^2

f_c and f_u are the teacher's states after block m for the true label and for the null class, at the student's own x_t
and t: classifier-free guidance in feature space. The true label is used also where the student's is dropped. Open in
the paper, options here: the target enters as it is or layer-normalised (`target_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from trainables.methods.base import Batch, Method, projector


class Teacher(Protocol):
    """What is asked of a teacher: a backbone's `features`, which stops at the block that is read."""

    width: int
    num_classes: int

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, block: int) -> Tensor: ...


@torch.no_grad()
def guided_feature(
    teacher: Teacher, x_t: Tensor, t: Tensor, labels: Tensor, *, block: int, guidance_scale: float
) -> Tensor:
    """f_g (B, T, D): both branches in one batch of 2B, up to block `block` and no further."""
    null = torch.full_like(labels, teacher.num_classes)
    both = teacher.features(torch.cat([x_t, x_t]), torch.cat([t, t]), torch.cat([labels, null]), block)  # (2B, T, D)
    conditional, unconditional = both.chunk(2)
    # lerp is exact at both ends: scale 0 gives f_u and scale 1 gives f_c to the last bit.
    return torch.lerp(unconditional.float(), conditional.float(), guidance_scale)


class SelfGuided(Method):
    """`width`: the student's; `layers`: teacher block m -> student block n; `teacher`: frozen, in evaluation mode."""

    teacher: Teacher

    def __init__(
        self,
        *,
        width: int,
        teacher: Teacher,
        layers: tuple[int, int],
        guidance_scale: float,
        projector_width: int,
        generator: torch.Generator,
        target_norm: Literal["none", "layer"] = "none",
    ):
        super().__init__()
        self.teacher_block, student_block = layers
        self.taps = (student_block,)
        self.guidance_scale = guidance_scale
        self.target_norm = target_norm
        self.projector = projector(width, projector_width, teacher.width, generator)
        # Not a submodule: DDP, the optimizer and the checkpoint must not see it.
        object.__setattr__(self, "teacher", teacher)

    def forward(self, hidden: Mapping[int, Tensor], batch: Batch, view: Any = None) -> Tensor:
        target = guided_feature(
            self.teacher, batch.x_t, batch.t, batch.labels, block=self.teacher_block, guidance_scale=self.guidance_scale
        )
        if self.target_norm == "layer":
            target = F.layer_norm(target, target.shape[-1:])
        return F.mse_loss(self.projector(hidden[self.taps[0]]).float(), target)
