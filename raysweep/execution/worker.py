"""What each worker of a lane does: take an assignment, do it together with the others, ask for the next.

Loaded by the workers alone: it brings in torch and all the science.
"""

from __future__ import annotations

import contextlib
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from ray.exceptions import RayActorError
from ray.util import get_current_placement_group

from raysweep.execution.checkpointer import Publisher
from raysweep.execution.ranks import Ranks
from raysweep.execution.tasks import LaneConfig, Task
from raysweep.store import history
from raysweep.store.files import sha256_of
from raysweep.store.history import probe_key
from raysweep.store.probe_shards import Shards
from raysweep.store.store import CheckpointDamaged, CheckpointMissing, Store
from trainables.config import Run, TeacherRef
from trainables.datasets import catalog
from trainables.training.loop import Context, NonFiniteLoss, Outcome
from trainables.training.worker_cache import WorkerCache

RETRY_LIMIT_S = 5.0  # how long a worker waits for work before it shows its fellows that it is alive
ANSWER_S = 120.0  # how long the dispatcher may take to answer
ASKS = 60  # of a dispatcher that died and starts anew, a second apart
REPORT_EVERY_S = 0.5
NO_MEMORY = ("out of memory", "can't allocate memory")  # as torch says it on a GPU, and on the CPU

GO_ON, PUBLISH, STOP = range(3)  # what ranks tell each other while they train: the most that one says counts

Result = TypeVar("Result")


def run_worker(config: LaneConfig, device: torch.device, rank: int, world_size: int) -> None:
    """Work as one rank of a lane until the dispatcher says stop."""
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


class _Worker:
    def __init__(self, config: LaneConfig, context: Context):
        self.config, self.context = config, context
        self.store = Store(config.storage, config.mark)
        self.worker_cache = WorkerCache(context, self.store.cache)
        self.leads = context.rank == 0
        self._stopping = False  # the dispatcher wants to
        self.ranks = Ranks(context.rank, context.world_size, config.launch.timeout_s)

    def run(self) -> None:
        if self.leads:
            group = get_current_placement_group()
            self._tell("join", group.id.hex() if group else None)
        while (task := self._next()) != "stop":
            if isinstance(task, Task):
                self._carry_out(task)
            else:
                self.worker_cache.reference(*self.config.reference)

    def _tell(self, method: str, *arguments: Any) -> Any:
        """Call the dispatcher; its next incarnation, where this one dies."""
        for _ in range(ASKS):
            with contextlib.suppress(RayActorError):
                call = getattr(self.config.dispatcher, method)
                return ray.get(call.remote(self.config.lane, *arguments), timeout=ANSWER_S)
            time.sleep(1)
        raise RuntimeError(f"the dispatcher was gone for {ASKS} s")

    def _next(self) -> Any:
        return self.ranks.share(self._tell("next", RETRY_LIMIT_S) if self.leads else None)

    def _together(self, action: Callable[[], Result]) -> Result:
        """Do something with the storage on every rank, when it can be used."""
        return self.ranks.together(action, lambda message: self._answer("note", message))

    def _carry_out(self, task: Task) -> None:
        """Do it and say how it went. What every worker sees alike is an answer; anything else restarts the group."""
        try:
            with tempfile.TemporaryDirectory() as folder:
                work = {"train": self._train, "probe": self._probe, "replay": self._replay}[task.kind]
                result = work(task, Path(folder))
        except NonFiniteLoss as error:
            self._together(partial(self._record_failure, task, error))
            self._answer("failed", f"{error}, twice")
        except (CheckpointDamaged, CheckpointMissing) as error:
            self._answer("damaged", str(error))
        except Exception as error:
            if out_of_memory(error):  # perhaps here alone: the others wait for this rank until their group ends
                self._tell("out_of_memory")
            elif not isinstance(error, RuntimeError):  # as which also the death of another worker shows
                self._tell("note", f"{task}: {type(error).__name__}: {error}")
            raise
        else:
            self._answer("done", result)

    def _answer(self, method: str, result: Any) -> None:
        if self.leads:
            self._tell(method, result)

    def _train(self, task: Task, folder: Path) -> list[int | None]:
        """Returns the step that each member has reached: not the end where the dispatcher wants to stop; None where its
        numbers are not finite, and others were trained with it."""
        taken, device = time.time(), self.context.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        runs = [member.run for member in task.members]

        def facts(run: Run, step: int) -> dict[str, Any]:
            found: dict[str, Any] = {"memory_mib": peak_memory_mib(device), "taken": taken, "time": time.time()}
            found |= {
                **self._made_by(task),
                "session": self.config.session,
                "between": step < task.end,
                "cohort": len(runs),
            }
            return found | {"data": {"name": run.data, "files": catalog.parts(run.data)}}

        def attempt() -> list[Outcome | NonFiniteLoss]:
            publisher = Publisher(self.store, runs, task.begin, facts)
            try:
                results = self._segment(task, publisher)
                sound = [result for result in results if isinstance(result, Outcome)]
                self._together(lambda: publisher.finish(sound) if self.leads else None)
                return results
            finally:
                publisher.close()

        results = attempt()
        if len(results) == 1 and isinstance(results[0], NonFiniteLoss):  # a fault of the hardware does not come back
            self._answer("note", f"{results[0]}; tried once more from step {task.begin}")
            results = attempt()
            if isinstance(results[0], NonFiniteLoss):
                raise results[0]
        return [result.checkpoint.step if isinstance(result, Outcome) else None for result in results]

    def _replay(self, task: Task, folder: Path) -> None:
        """Train once more what led to a checkpoint, through the step where it was cut, and note whether the bits are
        the same. What was made by other hardware or versions is not compared: nobody promises its last bit."""
        found = self._together(lambda: self.store.find(task.run, task.end))
        if found is None:
            raise CheckpointMissing(f"the checkpoint at step {task.end} is gone")
        facts = {
            "checkpoint": found.key,
            "step": task.end,
            "from_step": task.begin,
            **self._made_by(task),
        }
        if differs := [name for name, value in self._made_by(task).items() if found.manifest.get(name) != value]:
            facts |= {"exact": None, "reason": f"made with other {' and '.join(differs)}"}
        else:
            (outcome,) = self._segment(task)
            if isinstance(outcome, NonFiniteLoss):
                raise outcome
            if self.leads:
                outcome.checkpoint.save(folder)
                files = {file.name: sha256_of(file) for file in folder.iterdir()}
                published = {name.split("/")[-1]: file["sha256"] for name, file in found.manifest["files"].items()}
                facts |= {"exact": files == published, "reason": "", "files": files, "seconds": outcome.seconds}
        self._together(lambda: self.store.put_record("certificates", found.key, facts) if self.leads else None)

    def _made_by(self, task: Task) -> dict[str, Any]:
        """What the last bit of a checkpoint may depend on beside its history."""
        return {
            "workers": self.context.world_size,
            "micro_batch": task.micro_batch,
            "compiled": self.context.compile,
            "device": str(self.context.device.type),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }

    def _segment(self, task: Task, publisher: Publisher | None = None) -> list[Outcome | NonFiniteLoss]:
        """Train what is assigned; with a publisher, publish now and then, and stop when told to."""
        begin = task.begin

        def start_of(run: Run) -> tuple[Path, int] | None:
            return (self._together(lambda: self._folder(TeacherRef(run=run, step=begin))), begin) if begin else None

        def teacher_folder(teacher: TeacherRef) -> Path:
            return self._together(lambda: self._folder(teacher))

        self.context = replace(self.context, micro_batch=task.micro_batch)
        self._show_progress(begin)
        if publisher:
            self._stopping = False
            self.worker_cache.context = self._publishing(publisher)
        try:
            runs = [member.run for member in task.members]
            return self.worker_cache.train(runs, task.end, [start_of(run) for run in runs], teacher_folder)
        finally:
            self.ranks.settle()

    def _publishing(self, publisher: Publisher) -> Context:
        """The context of a training that is told when to publish what there is, the last checkpoint being long ago, and
        when to stop."""
        every_s = self.config.launch.checkpoint_every_s
        due, agreed = time.monotonic() + every_s, GO_ON

        def should_checkpoint(step: int) -> bool:
            nonlocal due, agreed
            mine = GO_ON
            if self.leads and self._stopping:
                mine = STOP
            elif self.leads and time.monotonic() > due and publisher.idle:
                mine, due = PUBLISH, time.monotonic() + every_s
            agreed = self.ranks.agree(mine)
            return agreed == PUBLISH

        def publish(outcomes: list[Outcome]) -> None:
            if self.leads:
                publisher.begin(outcomes)

        return replace(
            self.context,
            should_checkpoint=should_checkpoint,
            should_stop=lambda step: agreed == STOP,
            on_checkpoint=publish,
        )

    def _folder(self, wanted: TeacherRef) -> Path:
        found = self.store.find(wanted.run, wanted.step)
        if found is None:
            raise CheckpointMissing(f"the checkpoint at step {wanted.step} is gone")
        return self.store.open(found.key)

    def _record_failure(self, task: Task, error: NonFiniteLoss) -> None:
        if self.leads:
            facts = {"step": error.step, "terms": error.terms, "before": error.before, "from_step": task.begin}
            facts |= {"run": task.run.model_dump(mode="json"), **self._made_by(task)}
            self.store.put_record("failures", task.lease, facts)

    def _probe(self, task: Task, folder: Path) -> None:
        run, step, spec = task.run, task.end, task.probe
        assert spec is not None
        self._show_progress(0)
        began = time.perf_counter()
        snapshot = self._together(lambda: self._folder(TeacherRef(run=run, step=step)))
        key = probe_key(run, step, spec)
        shards = Shards(self.store, f"{key}-{self.context.device.type}-{torch.__version__}")
        probed = self.worker_cache.probe(run, spec, snapshot, shards)
        facts = {"key": key, "checkpoint": history.key(run, step), "step": step, "probe": spec.model_dump(mode="json")}
        facts |= {"metrics": probed.metrics, "seconds": time.perf_counter() - began, **self._made_by(task)}
        files = probed.save(folder) if self.leads else {}
        self._together(lambda: self.store.put_record("probes", key, facts, files) if self.leads else None)
        if self.leads:
            shards.clear()

    def _show_progress(self, begin: int) -> None:
        """From now on, tell the dispatcher now and then how far the work is, and hear whether it wants to stop. Nothing
        waits for it."""
        began = last = time.monotonic()
        answer: Any = None

        def progress(done: int) -> None:
            nonlocal last, answer
            now = time.monotonic()
            if not self.leads or now - last < REPORT_EVERY_S:
                return
            if answer is not None:
                heard, _ = ray.wait([answer], timeout=0)
                if not heard:
                    return
                with contextlib.suppress(RayActorError):
                    self._stopping = self._stopping or ray.get(answer)
            last = now
            pace = (done - begin) / (now - began)
            answer = self.config.dispatcher.progress.remote(self.config.lane, done, pace)

        self.context = replace(self.context, progress=progress)
        self.worker_cache.context = self.context


def peak_memory_mib(device: torch.device) -> float:
    """The most memory that this process has held: of the GPU since the last reset, else of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had too little memory for what was asked."""
    return isinstance(error, RuntimeError) and any(told in str(error) for told in NO_MEMORY)
