"""A lane: a group of workers that Ray Train keeps together and that trains one stretch after another by DDP.

Starting processes and forming a process group costs far more than a short stretch, so it is paid once a lane and not
once a trial. The only module that knows Ray Train; it imports torch, so the driver never imports it.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train.v2.api.config import FailureConfig

from raysweep.dispatch import Assignment, probe_key
from raysweep.space import Launch
from raysweep.store import Damaged, Store
from trainables.spec import TeacherRef
from trainables.stage import Bench
from trainables.train import Context, NonFiniteLoss

PATIENCE_S = 5.0  # how long a worker waits for work before it shows its fellows that it is alive
ANSWER_S = 120.0  # how long the dispatcher may take to answer
REPORT_EVERY_S = 0.5
RESTARTS = 50  # of a worker group; each stretch has its own, smaller limit


@dataclass(frozen=True)
class LaneConfig:
    """What a lane's processes need to know. `dispatcher` is an actor's handle."""

    lane: int
    storage: str
    launch: Launch
    dispatcher: Any
    run_name: str


def fit(config: LaneConfig) -> None:
    """Keep the lane's workers running until the dispatcher says stop.

    Raises:
        ray.train.TrainingFailedError: the group could not be started, or died too often.
    """
    launch = config.launch
    resources = {"CPU": launch.cpus_per_worker} | ({"GPU": launch.gpus_per_worker} if launch.gpus_per_worker else {})
    with tempfile.TemporaryDirectory() as scratch:  # Train keeps nothing of ours: checkpoints live in the store
        ray.train.torch.TorchTrainer(
            work,
            train_loop_config={"config": config},
            torch_config=ray.train.torch.TorchConfig(timeout_s=600),
            scaling_config=ray.train.ScalingConfig(
                num_workers=launch.workers, use_gpu=bool(launch.gpus_per_worker), resources_per_worker=resources
            ),
            run_config=ray.train.RunConfig(
                name=config.run_name,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=RESTARTS, controller_failure_limit=3),
            ),
        ).fit()


def work(train_loop_config: dict[str, Any]) -> None:
    """What each worker of a lane does: take an assignment, do it together with the others, ask for the next."""
    config: LaneConfig = train_loop_config["config"]
    place = ray.train.get_context()
    torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    context = Context(ray.train.torch.get_device(), place.get_world_rank(), place.get_world_size())
    _Worker(config, context).run()


class _Worker:
    def __init__(self, config: LaneConfig, context: Context):
        self.config, self.context = config, context
        self.store = Store(config.storage)
        self.bench = Bench(context, self.store.cache)
        self.leads = context.rank == 0
        # Assignments are Python objects; NCCL moves tensors only.
        several = context.world_size > 1
        self.group = dist.new_group(backend="gloo", timeout=timedelta(seconds=ANSWER_S * 2)) if several else None

    def run(self) -> None:
        if self.leads:
            self._tell("join")
        while (assignment := self._next()) != "stop":
            if isinstance(assignment, Assignment):
                self._carry_out(assignment)

    def _tell(self, method: str, *arguments: Any) -> Any:
        call = getattr(self.config.dispatcher, method)
        return ray.get(call.remote(self.config.lane, *arguments), timeout=ANSWER_S)

    def _next(self) -> Any:
        box = [self._tell("next", PATIENCE_S) if self.leads else None]
        if self.group:
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def _carry_out(self, assignment: Assignment) -> None:
        """Do it and say how it went. What every worker sees alike is an answer; anything else restarts the group."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = (self._train if assignment.kind == "train" else self._probe)(assignment, Path(folder))
        except NonFiniteLoss as error:
            self._answer("failed", str(error))
        except (Damaged, KeyError) as error:
            self._answer("damaged", str(error))
        else:
            self._answer("done", result)

    def _answer(self, method: str, result: Any) -> None:
        if self.leads:
            self._tell(method, result)

    def _train(self, assignment: Assignment, folder: Path) -> None:
        run, store = assignment.run, self.store
        start = None
        if assignment.begin:
            found = store.find(run, assignment.begin)
            if found is None:
                raise KeyError(f"the checkpoint at step {assignment.begin} is gone")
            start = (store.open(found.key), assignment.begin)

        def teacher_folder(teacher: TeacherRef) -> Path:
            found = store.find(teacher.run, teacher.step)
            if found is None:
                raise KeyError(f"the teacher's checkpoint at step {teacher.step} is gone")
            return store.open(found.key)

        self._show_progress(assignment.begin)
        outcome = self.bench.train(run, assignment.end, start, teacher_folder)
        if self.leads:
            outcome.checkpoint.save(folder)
            facts = {
                "from_step": assignment.begin,
                "curve": outcome.curve,
                "seconds": outcome.seconds,
                "workers": self.context.world_size,
                "device": str(self.context.device),
                "versions": {"torch": torch.__version__, "python": platform.python_version()},
            }
            store.publish(run, assignment.end, folder, facts)

    def _probe(self, assignment: Assignment, folder: Path) -> None:
        run, step, spec = assignment.run, assignment.end, assignment.probe
        found = self.store.find(run, step)
        if found is None or spec is None:
            raise KeyError(f"the checkpoint at step {step} is gone")
        self._show_progress(0)
        began = time.perf_counter()
        picture = folder / "grid.png" if self.leads else None
        metrics = self.bench.probe(run, spec, self.store.open(found.key), picture)
        if self.leads:
            key = probe_key(run, step, spec)
            facts = {"checkpoint": found.key, "step": step, "probe": spec.model_dump(mode="json")}
            facts |= {"metrics": metrics, "seconds": time.perf_counter() - began}
            self.store.put_record("probes", key, {"key": key, **facts}, picture)

    def _show_progress(self, begin: int) -> None:
        """From now on, tell the dispatcher now and then how far the work is. Nothing waits for it."""
        began = last = time.monotonic()

        def progress(done: int) -> None:
            nonlocal last
            now = time.monotonic()
            if self.leads and now - last > REPORT_EVERY_S:
                last = now
                self.config.dispatcher.progress.remote(self.config.lane, done, (done - begin) / (now - began))

        self.context = replace(self.context, progress=progress)
        self.bench.context = self.context
