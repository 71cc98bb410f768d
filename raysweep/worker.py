"""What each worker of a lane does: take an assignment, do it together with the others, ask for the next.

Loaded by the workers alone: it brings in torch and all the science.
"""

from __future__ import annotations

import platform
import tempfile
import time
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import ray
import torch
import torch.distributed as dist

from raysweep.files import sha256_of
from raysweep.lane import LaneConfig
from raysweep.store import Damaged, Missing, Store
from raysweep.work import Assignment, probe_key
from trainables import catalog
from trainables.spec import TeacherRef
from trainables.stage import Bench
from trainables.train import Context, NonFiniteLoss, Outcome

PATIENCE_S = 5.0  # how long a worker waits for work before it shows its fellows that it is alive
ANSWER_S = 120.0  # how long the dispatcher may take to answer
REPORT_EVERY_S = 0.5


def run_worker(config: LaneConfig, device: torch.device, rank: int, world_size: int) -> None:
    """Work as one rank of a lane until the dispatcher says stop."""
    torch.set_num_threads(max(1, int(config.launch.cpus_per_worker)))
    launch = config.launch
    context = Context(device, rank, world_size, launch.micro_batch, launch.checkpoint_blocks)
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
            else:
                self.bench.reference(*self.config.reference)

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
                work = {"train": self._train, "probe": self._probe, "replay": self._replay}[assignment.kind]
                result = work(assignment, Path(folder))
        except NonFiniteLoss as error:
            self._answer("failed", str(error))
        except (Damaged, Missing) as error:
            self._answer("damaged", str(error))
        else:
            self._answer("done", result)

    def _answer(self, method: str, result: Any) -> None:
        if self.leads:
            self._tell(method, result)

    def _train(self, assignment: Assignment, folder: Path) -> None:
        outcome = self._stretch(assignment)
        if self.leads:
            outcome.checkpoint.save(folder)
            facts = {"from_step": assignment.begin, "curve": outcome.curve, "seconds": outcome.seconds, **self._made_by}
            facts["data"] = {"name": assignment.run.data, "files": catalog.parts(assignment.run.data)}
            self.store.publish(assignment.run, assignment.end, folder, facts)

    def _replay(self, assignment: Assignment, folder: Path) -> None:
        """Train once more what led to a checkpoint, through the step where it was cut, and note whether the bits are
        the same. What was made by other hardware or versions is not compared: nobody promises its last bit."""
        found = self.store.find(assignment.run, assignment.end)
        if found is None:
            raise Missing(f"the checkpoint at step {assignment.end} is gone")
        facts = {"checkpoint": found.key, "step": assignment.end, "from_step": assignment.begin, **self._made_by}
        if differs := [name for name, value in self._made_by.items() if found.manifest[name] != value]:
            facts |= {"exact": None, "reason": f"made with other {' and '.join(differs)}"}
        else:
            outcome = self._stretch(assignment)
            if self.leads:
                outcome.checkpoint.save(folder)
                files = {file.name: sha256_of(file) for file in folder.iterdir()}
                published = {name.split("/")[-1]: file["sha256"] for name, file in found.manifest["files"].items()}
                facts |= {"exact": files == published, "reason": "", "files": files, "seconds": outcome.seconds}
        if self.leads:
            self.store.put_record("certificates", found.key, facts)

    @cached_property
    def _made_by(self) -> dict[str, Any]:
        """What the last bit of a checkpoint may depend on beside its history."""
        return {
            "workers": self.context.world_size,
            "device": str(self.context.device.type),
            "versions": {"torch": torch.__version__, "python": platform.python_version()},
        }

    def _stretch(self, assignment: Assignment) -> Outcome:
        run, store = assignment.run, self.store
        start = None
        if assignment.begin:
            found = store.find(run, assignment.begin)
            if found is None:
                raise Missing(f"the checkpoint at step {assignment.begin} is gone")
            start = (store.open(found.key), assignment.begin)

        def teacher_folder(teacher: TeacherRef) -> Path:
            found = store.find(teacher.run, teacher.step)
            if found is None:
                raise Missing(f"the teacher's checkpoint at step {teacher.step} is gone")
            return store.open(found.key)

        self._show_progress(assignment.begin)
        return self.bench.train(run, assignment.end, start, teacher_folder)

    def _probe(self, assignment: Assignment, folder: Path) -> None:
        run, step, spec = assignment.run, assignment.end, assignment.probe
        found = self.store.find(run, step)
        if found is None or spec is None:
            raise Missing(f"the checkpoint at step {step} is gone")
        self._show_progress(0)
        began = time.perf_counter()
        picture = folder / "grid.png" if self.leads else None
        metrics = self.bench.probe(run, spec, self.store.open(found.key), picture)
        if self.leads:
            key = probe_key(run, step, spec)
            facts = {"checkpoint": found.key, "step": step, "probe": spec.model_dump(mode="json")}
            facts |= {"metrics": metrics, "seconds": time.perf_counter() - began, **self._made_by}
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
