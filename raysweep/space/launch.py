"""The `launch` part of a search space: where trials run, and on how much of a cluster. It never changes a trial."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from trainables.config import Spec, WrongKey

Count = Annotated[int, Field(gt=0)]


class Launch(Spec):
    """Where trials run. A lane is a group of workers that trains one stretch after another by DDP."""

    workers: Count | tuple[Count, Count] = 2  # of a lane; [fewest, most]: it shrinks and grows with the cluster
    lanes: Count = 1  # groups of workers
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1  # as Ray counts them
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0  # as Ray counts them
    concurrent_trials: Count = 8  # trials that may be under way; they queue for the lanes
    micro_batch: Count | None = None  # images that a worker puts through the network at once; default: its whole share
    cohort: Count = 1  # students of one teacher that a lane trains in lockstep, at most: the teacher looks once for all
    compile: bool | None = None  # blocks, by torch.compile; default: on GPUs. Changes rounding, as other hardware does
    checkpoint_blocks: bool = False  # compute activations again instead of keeping them
    hold_data: bool = False  # in the GPU's memory, where it fits: nothing is read while training
    checkpoint_every_s: Annotated[float, Field(gt=0)] = 600  # of training, beside the checkpoints at rungs and ends
    timeout_s: Annotated[float, Field(ge=1)] = 600  # how long workers wait for each other before they start anew
    start_timeout_s: Annotated[float, Field(ge=1)] = 900  # how long a lane's workers may take to come up, with nodes
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"  # of a lane's workers
    grace_s: Annotated[float, Field(ge=0)] = 30  # how long an interrupted sweep waits for lanes to publish

    @property
    def fewest(self) -> int:
        """The workers without which a lane does not start."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @property
    def most(self) -> int:
        """The workers that a lane has where the cluster has room."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @model_validator(mode="after")
    def _check_workers(self) -> Launch:
        if self.fewest > self.most:
            raise WrongKey("workers", f"the fewest come first: [{self.most}, {self.fewest}]")
        return self
