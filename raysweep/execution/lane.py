"""A lane: a group of workers that Ray Train keeps together and that trains one task after another by DDP.

Starting processes and forming a process group takes far longer than a short task. Lanes stay up, so this happens once
per lane and not once per trial. This is the only module that uses Ray Train. It imports torch, so the driver never
imports it.
"""

from __future__ import annotations

import tempfile
from typing import Any

import ray.train
import ray.train.torch
from ray.train.v2.api.config import FailureConfig

from raysweep.cluster.connection import worker_resources
from raysweep.execution.tasks import LaneConfig

RESTARTS = 50  # of a worker group; the attempts at one task have a smaller limit


def fit(config: LaneConfig) -> None:
    """Keep the lane's workers running until the pool says `stop`.

    Raises:
        ray.train.TrainingFailedError: the group could not be started, or died too often.
    """
    launch = config.launch
    with tempfile.TemporaryDirectory() as scratch:  # Train stores nothing for us: checkpoints are in the store
        ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"config": config},
            torch_config=ray.train.torch.TorchConfig(timeout_s=int(launch.timeout_s)),
            scaling_config=ray.train.ScalingConfig(
                num_workers=launch.workers,
                use_gpu=bool(launch.gpus_per_worker),
                resources_per_worker=worker_resources(launch),
                placement_strategy=launch.placement_strategy,
            ),
            run_config=ray.train.RunConfig(
                name=f"raysweep-{config.session}-lane{config.lane}",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=3),
            ),
        ).fit()


def work(train_loop_config: dict[str, Any]) -> None:
    """The main function of a worker's process."""
    from raysweep.execution.worker import run_worker  # imports training code, which Train's controller does not need

    context = ray.train.get_context()
    run_worker(
        train_loop_config["config"], ray.train.torch.get_device(), context.get_world_rank(), context.get_world_size()
    )
