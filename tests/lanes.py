"""A lane without Ray: trains and probes in this process what a pool gives out. Training and probes are real."""

import asyncio
import tempfile
import time
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from raysweep.execution.dispatcher import Dispatcher
from raysweep.execution.pool import Pool
from raysweep.execution.task_leases import TaskLeases
from raysweep.execution.tasks import Task
from raysweep.space import runs
from raysweep.store import history
from raysweep.store.files import sha256_of
from raysweep.store.history import probe_key
from raysweep.store.leases import Leases
from raysweep.store.local_files import Database
from raysweep.store.manifest import Platform, TrainingFacts
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from raysweep.study.proposals import Proposals
from raysweep.study.state import StudyState
from raysweep.tracking.optuna_dashboard import Dashboard
from trainables.config import Run, TeacherRef
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache


class Lane:
    """One lane with a dispatcher of its own, on `store`. `trained` lists (run, begin, end).

    Without `cache` it trains nothing and commits an empty result, for tests that count.
    """

    def __init__(self, store: Store, milestones: list[int], cache: Path | None, leases: Leases | None = None):
        self.store, self.worker_cache = store, WorkerCache(Context(), cache) if cache else None
        self.pool = Pool(1, TaskLeases(leases, store) if leases else None)
        self.dispatcher = Dispatcher(store, milestones, self.pool)
        self.trained: list[tuple[Run, int, int]] = []

    def run(self, asking: Coroutine[Any, Any, Any]) -> Any:
        """Serve until `asking` is answered."""

        async def serve() -> Any:
            working, asked = asyncio.create_task(self._work()), asyncio.create_task(asking)
            await asyncio.wait((working, asked), return_when=asyncio.FIRST_COMPLETED)
            await self.pool.close()
            await working  # raises what went wrong in it
            return await asked

        return asyncio.run(serve())

    async def reach_all(self, targets: list[tuple[Run, int]]) -> None:
        """Ask for all of these at once."""
        await asyncio.gather(*(self.dispatcher.reach(run, step, str(n)) for n, (run, step) in enumerate(targets)))

    async def _work(self) -> None:
        while (tasks := await self.pool.next(0, 0.2)) != "stop":
            if tasks != "wait":
                (task,) = tasks
                await asyncio.to_thread(self._carry_out, task)
                await self.pool.done(0, None)

    def _carry_out(self, task: Task) -> None:
        with tempfile.TemporaryDirectory() as folder:
            work = self._probe if task.kind == "probe" else self._train
            work(task, Path(folder))

    def _train(self, task: Task, folder: Path) -> None:
        run, begin, end = task.run, task.begin, task.end
        start = (self._folder(TeacherRef(run=run, step=begin)), begin) if begin else None
        facts = TrainingFacts(begin, seconds=float(end - begin), platform=Platform(workers=2))
        if self.worker_cache:
            (outcome,) = self.worker_cache.train([run], end, [start], self._folder)
            outcome.checkpoint.save(folder)
            facts = replace(facts, curve=outcome.curve, memory_mib=512.0, time=time.time())
        else:
            time.sleep(0.02)  # long enough for others to come in between
            (folder / "word").write_text("trained")
        self.store.commit(run, end, folder, facts)
        self.trained.append((run, begin, end))

    def _probe(self, task: Task, folder: Path) -> None:
        run, step, spec = task.run, task.end, task.probe
        assert self.worker_cache and spec
        probed = self.worker_cache.probe(run, spec, self._folder(TeacherRef(run=run, step=step)))
        record = ProbeRecord(probed.metrics, checkpoint=history.key(run, step), step=step, seconds=1.0)
        record = replace(record, platform=Platform(workers=2))
        self.store.put_record(probe_key(run, step, spec), record, probed.save(folder))

    def _folder(self, teacher: TeacherRef) -> Path:
        return self.store.open(self.store.find(teacher.run, teacher.step))


def sweep(study: StudyState, cache: Path) -> None:
    """All that a study asks for, one trial after another: the same files as of a real sweep, without Ray."""
    database = Database(study.store, f"studies/{study.space.id}/optuna.db", print)
    Dashboard(study, database.uri)
    proposals = Proposals(study)
    lane = Lane(study.store, runs.milestones(study.space), cache)

    async def ask() -> None:
        while trial := proposals.next():
            run, spec, name = study.run(trial), study.probe(trial), str(trial.number)
            while not trial.ended:
                step = study.next_rung(trial)
                await lane.dispatcher.reach(run, step, name)
                await lane.dispatcher.probe(run, step, spec, name)
                record = study.store.record(ProbeRecord, probe_key(run, step, spec))
                assert record
                study.probed(trial.number, step, record.metrics)

    lane.run(ask())
    database.save()


def alone(run: Run, step: int, worker_cache: WorkerCache, scratch: Path) -> dict[str, str]:
    """SHA-256 of the files of `run` at `step`, trained from 0 in one go, with teachers of its own: nothing shared."""
    scratch.mkdir(parents=True)

    def own_teacher(teacher: TeacherRef) -> Path:
        alone(teacher.run, teacher.step, worker_cache, scratch / "teacher")
        return scratch / "teacher"

    (outcome,) = worker_cache.train([run], step, [None], own_teacher)
    outcome.checkpoint.save(scratch)
    return {file.name: sha256_of(file) for file in scratch.iterdir() if file.is_file()}


def committed(store: Store, run: Run, step: int) -> dict[str, str]:
    """The same of what is in the store."""
    return store.find(run, step).manifest.checksums
