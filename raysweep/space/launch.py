"""The `launch` part of a search space: where trials run and how much of a cluster they use. It does not change results
beyond rounding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.config import Spec, WrongKey

Count = Annotated[int, Field(gt=0)]


class Launch(Spec):
    """Where trials run. A lane is a worker group that trains one segment after another with DDP."""

    workers: Count | tuple[Count, Count] = 2
    """Workers of a lane. `[fewest, most]` lets it shrink and grow with the cluster."""
    lanes: Count = 1
    """Number of lanes (worker groups) that train side by side."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """CPUs that each worker claims from Ray."""
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs that each worker claims from Ray."""
    concurrent_trials: Count = 8
    """Trials that may be under way at once; they queue for the lanes."""
    micro_batch: Count | None = None
    """Largest number of images that a worker puts through the network at once. Default: its whole share of the
    batch.
    """
    cohort: Count = 1
    """Most students of one teacher that a lane trains in lockstep. The teacher runs once per batch for all of them."""
    compile: bool | None = None
    """Compile the blocks with torch.compile. Default: on GPUs. Changes rounding, as other hardware does."""
    checkpoint_blocks: bool = False
    """Recompute activations in the backward pass instead of keeping them in memory."""
    hold_data: bool = False
    """Keep the data set in GPU memory where it fits, so that training reads nothing."""
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 600
    """Seconds of training between checkpoints, besides those at rungs and ends."""
    timeout_s: Annotated[float, Field(ge=1)] = 600
    """Seconds that workers wait for each other before they restart. A lane silent for twice as long is ended."""
    start_timeout_s: Annotated[float, Field(ge=1)] = 900
    """Seconds that a lane's workers may take to start, new nodes included."""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """How Ray places a lane's workers on nodes."""
    grace_s: Annotated[float, Field(ge=0)] = 30
    """Seconds that an interrupted sweep waits for its lanes to commit checkpoints."""

    @property
    def fewest(self) -> int:
        """The fewest workers with which a lane starts."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The most workers of a lane, which it has if the cluster has the resources."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _check_workers(self) -> Launch:
        if self.fewest > self.most:
            raise WrongKey("workers", f"the fewest come first; write [{self.most}, {self.fewest}]")
        return self
