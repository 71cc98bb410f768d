"""The work of a lane's workers: take a task, do it together with the other ranks, ask for the next one.

Only workers import this module, because it imports torch and the training code.
"""

from __future__ import annotations

import contextlib
import resource
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from platform import python_version
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError
from ray.util import get_current_placement_group

from raysweep.execution.actor import call
from raysweep.execution.checkpointer import Checkpointer, Facts
from raysweep.execution.ranks import Pauses, Ranks
from raysweep.execution.tasks import LaneConfig, Tally, Task, describe
from raysweep.store import history
from raysweep.store.files import sha256_of
from raysweep.store.history import probe_key
from raysweep.store.manifest import DataFiles, Platform, TrainingFacts
from raysweep.store.probe_shards import Shards
from raysweep.store.records import Certificate, FailureRecord, ProbeRecord
from raysweep.store.store import CheckpointDamaged, CheckpointMissing, Store, StoredCheckpoint
from trainables import node_cache
from trainables.config import Run, TeacherRef
from trainables.datasets import catalog
from trainables.training.loop import Context, NonFiniteLoss, Outcome
from trainables.training.worker_cache import WorkerCache

IDLE_S = 5.0  # how long rank 0 waits for a task before it sends the other ranks a sign of life
ANSWER_S = 120.0  # how long the dispatcher's actor may take to answer
REPORT_EVERY_S = 0.5
NO_MEMORY = ("out of memory", "can't allocate memory")  # in torch's messages on a GPU, and on the CPU

Result = TypeVar("Result")


def run_worker(config: LaneConfig, device: torch.device, rank: int, world_size: int) -> None:
    """Work as one rank of a lane until the pool says `stop`."""
    torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    launch = config.launch
    context = Context(
        device,
        rank,
        world_size,
        checkpoint_blocks=launch.checkpoint_blocks,
        compile=device.type == "cuda" if launch.compile is None else launch.compile,
        hold_data=launch.hold_data,
    )
    _Worker(config, context).run()


class _Progress:
    """Reports to the pool from time to time how far a task is. No call waits for an answer.

    Args:
        begin: the step, or the number of samples, at which the task begins.

    Attributes:
        stop_at: the step at which to stop, by the latest answer; 0: at once. None: at the end of the task.
    """

    def __init__(self, config: LaneConfig, begin: int):
        self.stop_at: int | None = None
        self._config, self._begin = config, begin
        self._began = self._last = time.monotonic()
        self._answer: Any = None  # under way

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._last < REPORT_EVERY_S:
            return
        if self._answer is not None:
            answered, _ = ray.wait([self._answer], timeout=0)
            if not answered:
                return
            with contextlib.suppress(RayActorError):
                self.stop_at = ray.get(self._answer)
        self._last = now
        rate = (done - self._begin) / (now - self._began)
        self._answer = self._config.actor.pool.remote("progress", self._config.lane, done, rate)


class _Worker:
    def __init__(self, config: LaneConfig, context: Context):
        self.config, self.context = config, context
        self.store = Store(config.storage, config.mark)
        self.worker_cache = WorkerCache(context, self.store.cache)
        self.leads = context.rank == 0
        self.tally = Tally(uuid.uuid4().hex, 0)
        self.ranks = Ranks(context.rank, context.world_size, config.launch.timeout_s)

    def run(self) -> None:
        if self.leads:
            group = get_current_placement_group()
            self._call("join", group.id.hex() if group else None)
        while (tasks := self.ranks.share(self._call("next", IDLE_S, self.tally) if self.leads else None)) != "stop":
            if tasks == "wait":
                self.worker_cache.reference(*self.config.reference)
            else:
                self._carry_out(tasks)

    # --- with the pool

    def _call(self, method: str, *arguments: Any) -> Any:
        return call(self.config.actor, "pool", method, self.config.lane, *arguments, timeout_s=ANSWER_S)

    def _report(self, method: str, argument: Any) -> None:
        """Report to the pool, from rank 0, what all ranks know."""
        if self.leads:
            self._call(method, argument)

    def _carry_out(self, tasks: list[Task]) -> None:
        """Do the tasks and report the result. A failure that all ranks have is reported once. Any other failure ends
        this process, so that Ray Train restarts the group."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                result = self._do(tasks, Path(folder))
        except NonFiniteLoss as error:
            self._together(partial(self._record_failure, tasks[0], error))
            self._report("failed", f"{error}, twice")
        except (CheckpointDamaged, CheckpointMissing) as error:
            self._report("damaged", str(error))
        except Exception as error:
            if out_of_memory(error):  # perhaps only on this rank; the others wait until the group ends
                self._call("out_of_memory")
            elif not isinstance(error, RuntimeError | RayActorError):  # another worker's death raises these too
                self._call("note", f"{describe(tasks)}: {type(error).__name__}: {error}")
            raise
        else:
            self._report("done", result)
        finally:
            node_cache.release()

    def _do(self, tasks: list[Task], folder: Path) -> list[int | None] | None:
        kind = tasks[0].kind
        if kind == "train":
            return self._train(tasks)
        if kind == "probe":
            self._probe(tasks[0], folder)
        else:
            self._replay(tasks[0], folder)
        return None

    # --- with the store

    def _together(self, action: Callable[[], Result]) -> Result:
        """Use the storage on every rank. While it is unusable, all ranks wait and repeat the action."""
        return self.ranks.together(action, partial(self._report, "note"))

    def _on_lead(self, action: Callable[[], object]) -> None:
        """Use the storage on rank 0. The other ranks wait, and raise the same errors."""
        self._together(lambda: action() if self.leads else None)

    def _stored(self, run: Run, step: int) -> StoredCheckpoint:
        checkpoint = self.store.find(run, step)
        if checkpoint is None:
            raise CheckpointMissing(f"the checkpoint at step {step} is gone")
        return checkpoint

    def _folder(self, run: Run, step: int) -> Path:
        """A folder of this machine with the files of a run's checkpoint."""
        return self._together(lambda: self.store.open(self._stored(run, step)))

    # --- training

    def _train(self, tasks: list[Task]) -> list[int | None]:
        """Train and commit. Returns the step that each task has reached: less than its end if the pool has asked to
        stop; None if the loss is not finite and the task was trained in a cohort. Adds what was trained to the
        tally."""
        taken, device = time.time(), self.context.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        task, pauses = tasks[0], Pauses(self.ranks, self.config.launch.checkpoint_every_s)

        def facts(run: Run, step: int) -> TrainingFacts:
            return TrainingFacts(
                memory_mib=peak_memory_mib(device),
                taken=taken,
                time=time.time(),
                platform=self._platform(task),
                session=self.config.session,
                between=step not in (task.end, pauses.stop_at),
                cohort=len(tasks),
                data=DataFiles(run.data, catalog.parts(run.data)),
            )

        results = self._train_once(tasks, facts, pauses)
        if len(results) == 1 and isinstance(results[0], NonFiniteLoss):  # a fault of the hardware would not recur
            self._report("note", f"{results[0]}; tried once more from step {task.begin}")
            results = self._train_once(tasks, facts, pauses)
            if isinstance(results[0], NonFiniteLoss):
                raise results[0]
        reached = [result.checkpoint.step if isinstance(result, Outcome) else None for result in results]
        steps = sum(step - task.begin for step in reached if step is not None)
        self.tally = self.tally._replace(steps=self.tally.steps + steps)
        return reached

    def _train_once(self, tasks: list[Task], facts: Facts, pauses: Pauses) -> list[Outcome | NonFiniteLoss]:
        checkpointer = Checkpointer(self.store, [task.run for task in tasks], tasks[0].begin, facts)
        try:
            results = self._advance(tasks, checkpointer, pauses)
            finite = [result for result in results if isinstance(result, Outcome)]
            self._on_lead(lambda: checkpointer.finish(finite))
            return results
        finally:
            checkpointer.close()

    def _advance(
        self, tasks: list[Task], checkpointer: Checkpointer | None = None, pauses: Pauses | None = None
    ) -> list[Outcome | NonFiniteLoss]:
        """Train from the tasks' begin to their end. With a checkpointer, save checkpoints in between, and stop if the
        pool asks for it."""
        begin, end = tasks[0].begin, tasks[0].end
        runs = [task.run for task in tasks]
        self.context = replace(self.context, micro_batch=tasks[0].micro_batch)
        progress = self._show_progress(begin)
        if checkpointer and pauses:
            self.worker_cache.context = self._saving(checkpointer, pauses, progress)
        try:
            starts = [(self._folder(run, begin), begin) if begin else None for run in runs]
            return self.worker_cache.train(runs, end, starts, self._teacher_folder)
        finally:
            self.ranks.last_agreed()

    def _teacher_folder(self, teacher: TeacherRef) -> Path:
        return self._folder(teacher.run, teacher.step)

    def _saving(self, checkpointer: Checkpointer, pauses: Pauses, progress: _Progress) -> Context:
        """The context of a training whose ranks agree when to save a checkpoint, every `launch.checkpoint_every_s`, and
        at which step to stop."""

        def should_save(step: int) -> bool:
            return pauses.should_save(step, progress.stop_at, checkpointer.idle)

        def save(outcomes: list[Outcome]) -> None:
            if self.leads:
                checkpointer.begin(outcomes)

        return replace(self.context, should_checkpoint=should_save, should_stop=pauses.should_stop, on_checkpoint=save)

    def _show_progress(self, begin: int) -> _Progress:
        """Have rank 0 report to the pool, from now on, how far the task is."""
        progress = _Progress(self.config, begin)
        self.context = replace(self.context, progress=progress if self.leads else lambda done: None)
        self.worker_cache.context = self.context
        return progress

    def _platform(self, task: Task) -> Platform:
        return Platform(
            workers=self.context.world_size,
            micro_batch=task.micro_batch,
            compiled=self.context.compile,
            device=str(self.context.device.type),
            versions={"torch": torch.__version__, "python": python_version()},
        )

    def _record_failure(self, task: Task, error: NonFiniteLoss) -> None:
        if self.leads:
            run, platform = task.run.model_dump(mode="json"), self._platform(task)
            record = FailureRecord(error.step, error.terms, error.before, task.begin, run, platform)
            self.store.put_record(task.lease, record)

    # --- replays and probes

    def _replay(self, task: Task, folder: Path) -> None:
        """Train again to a checkpoint, without the stop at the previous one, and record whether the bits are the same.
        A checkpoint from other hardware or versions is not compared, because its last bits may differ."""
        original = self._together(lambda: self._stored(task.run, task.end))
        platform = self._platform(task)
        certificate = Certificate(original.key, task.end, task.begin, platform, exact=None)
        if differs := platform.differences(original.manifest.training.platform):
            certificate = replace(certificate, reason=f"made with other {' and '.join(differs)}")
        else:
            (outcome,) = self._advance([task])
            if isinstance(outcome, NonFiniteLoss):
                raise outcome
            if self.leads:
                outcome.checkpoint.save(folder)
                files = {file.name: sha256_of(file) for file in folder.iterdir()}
                exact = files == original.manifest.checksums
                certificate = replace(certificate, exact=exact, files=files, seconds=outcome.seconds)
        self._on_lead(lambda: self.store.put_record(original.key, certificate))

    def _probe(self, task: Task, folder: Path) -> None:
        run, step, spec = task.run, task.end, task.probe
        assert spec is not None
        self._show_progress(0)
        began = time.perf_counter()
        snapshot = self._folder(run, step)
        key = probe_key(run, step, spec)
        shards = Shards(self.store.files, f"{key}-{self.context.device.type}-{torch.__version__}")
        probed = self.worker_cache.probe(run, spec, snapshot, shards)
        record = ProbeRecord(
            probed.metrics,
            key=key,
            checkpoint=history.key(run, step),
            step=step,
            probe=spec.model_dump(mode="json"),
            seconds=time.perf_counter() - began,
            platform=self._platform(task),
        )
        files = probed.save(folder) if self.leads else {}
        self._on_lead(lambda: self.store.put_record(key, record, files))
        if self.leads:
            shards.clear()


def peak_memory_mib(device: torch.device) -> float:
    """The most memory, in MiB, that this process has held: of the GPU since the last reset, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory for what was asked."""
    return isinstance(error, RuntimeError) and any(message in str(error) for message in NO_MEMORY)
