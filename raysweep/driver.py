"""A sweep from its search spaces to its tables: checks, studies, Ray, reports.

`raysweep run` and `raysweep.sweep` call `run_sweep`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raysweep.cluster.connection import connected
from raysweep.environment import environment
from raysweep.execution.lanes import Lanes
from raysweep.execution.verify import Certificates, certify
from raysweep.report.progress import Progress
from raysweep.retry import retry_storage
from raysweep.space import runs
from raysweep.space.space import Space
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.local_files import Database
from raysweep.store.store import Store
from raysweep.study.costs import charges
from raysweep.study.extension import changed_from, refuse_changed
from raysweep.study.journal import Journal
from raysweep.study.state import StudyState
from raysweep.study.summary import StepCount, StudySummary, summarize
from raysweep.uris import check_tracking_uri, is_loopback
from trainables.datasets import catalog, checks
from trainables.redaction import public

if TYPE_CHECKING:
    from raysweep.study.proposals import Proposals
    from raysweep.tracking.background import BackgroundMirror


@dataclass(frozen=True)
class SweepOptions:
    """Where a sweep runs, and how.

    Attributes:
        storage: a folder or URI for checkpoints, journals and reports.
        address: a Ray cluster, `auto` for this machine's, `local` to start Ray on this machine.
        tracking_uri: MLflow's address; None: a SQLite file in the storage.
        verify_sharing: the share of segments, 0 to 1, that are trained a second time and compared bit by bit.
        extend: whether to continue a study although its search space has changed.
    """

    storage: str = "runs"
    address: str = "local"
    tracking_uri: str | None = None
    verify_sharing: float = 0.0
    extend: bool = False


@dataclass(frozen=True)
class StudyResult:
    """The result of one study of a sweep. `files` are the files of its report, `report.html` first."""

    study: StudyState
    summary: StudySummary
    files: list[Path]


@dataclass(frozen=True)
class SweepResult:
    """The result of a sweep.

    Attributes:
        studies: one for each search space, in their order.
        computed: optimizer steps that this sweep trained, over all studies.
        storage, tracking_uri: their URIs, with secrets replaced by ***.
        began: when the sweep began, in seconds since the epoch.
        seconds: wall time by part of the driver's work, in order.
        certificates: the results of `verify_sharing`; None where it was 0.
    """

    studies: list[StudyResult]
    computed: int
    storage: str
    tracking_uri: str
    began: float
    seconds: dict[str, float]
    certificates: Certificates | None

    @property
    def steps(self) -> StepCount:
        """Optimizer steps: those of trials that share nothing, those that were computed, and the difference."""
        return StepCount(sum(result.summary.steps.without_sharing for result in self.studies), self.computed)

    @property
    def succeeded(self) -> bool:
        """Whether each study has a complete trial, and no replayed segment gave other bits."""
        exact = self.certificates is None or not self.certificates.differ
        return exact and all(result.study.best for result in self.studies)

    def as_dict(self) -> dict[str, Any]:
        """What `raysweep run --json` prints."""
        tracking = {"tracking_uri": self.tracking_uri}
        studies = [result.summary.as_dict() | tracking for result in self.studies]
        facts: dict[str, Any] = studies[0] if len(studies) == 1 else {"studies": studies}
        facts |= {"steps": self.steps.as_dict(), "storage": self.storage, **tracking}
        facts["driver"] = {"began": self.began, "seconds": self.seconds}
        return facts if self.certificates is None else facts | {"certificates": self.certificates.as_dict()}


def run_sweep(spaces: Sequence[Space], options: SweepOptions, console: Console) -> SweepResult:
    """Check everything, run the sweep, then write its tables, pictures and pages.

    Args:
        spaces: one or several that share their workers.
        console: where progress goes: a live table on a terminal, else a line for each trial that ends.

    Raises:
        UserError: a space cannot be run here; nothing has been written.
        SweepError: the sweep cannot go on; what is finished is kept.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was being trained is committed.
    """
    sweep = _Sweep(spaces, options, console)
    with _sigterm_interrupts():
        try:
            return sweep.run()
        finally:
            sweep.save_databases()


def open_studies(spaces: Sequence[Space], open_study: Callable[[Space], StudyState]) -> list[StudyState]:
    """The studies of `spaces`, in their order. They are opened in the order of their names: if each of two drivers held
    a study and waited for the other's, both would wait for ever."""
    opened = {space.id: open_study(space) for space in sorted(spaces, key=lambda space: space.id)}
    return [opened[space.id] for space in spaces]


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Handle a SIGTERM, which a preemption sends, like Ctrl-C. Python lets only the main thread set a handler."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Stopwatch:
    """The wall time of a driver's work, part by part.

    Attributes:
        began: when the stopwatch was started, in seconds since the epoch.
        seconds: of each part, in the order in which they first ended; they add up to the time since `began`.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, part: str) -> None:
        """Record that `part` has just ended. It is charged the time since the part before it ended."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


@dataclass
class _Sweep:
    """One sweep under way."""

    spaces: Sequence[Space]
    options: SweepOptions
    console: Console
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    databases: list[Database] = field(default_factory=list)

    def run(self) -> SweepResult:
        store = Store(self.options.storage)
        self._check(store)
        tracking_uri = self.options.tracking_uri or self._database(store, "mlflow.db")
        leases = Leases(store.files)
        self.stopwatch.ended("checks")
        try:
            studies = open_studies(self.spaces, partial(self._open, store=store, leases=leases))
            self.stopwatch.ended("studies")
            mirrors, computed, certificates = self._train(studies, tracking_uri)
        finally:
            with contextlib.suppress(OSError):  # if the storage is away, the next driver clears the leases
                leases.clear()
                leases.close()
        self.stopwatch.ended("leases")
        return SweepResult(
            self._report(studies, mirrors, computed),
            computed,
            public(store.uri),
            public(tracking_uri),
            self.stopwatch.began,
            self.stopwatch.seconds,
            certificates,
        )

    def notify(self, message: str) -> None:
        """Print a message that the user may have to act on."""
        self.console.print(public(message), style="yellow", highlight=False, markup=False)

    def save_databases(self) -> None:
        """Copy SQLite's files into a store that is an object store, also after a sweep that was interrupted."""
        for database in self.databases:
            database.save()

    def _check(self, store: Store) -> None:
        """Refuse what cannot be run here, before anything is written."""
        with self.console.status("checking the data"):  # reading a large set for the first time takes a while
            for space in self.spaces:
                check_here(space, store.cache)
        if self.options.tracking_uri:
            check_tracking_uri(self.options.tracking_uri)
        store.files.check_writable()
        with self.console.status("looking at the store"):  # reading one of an earlier version takes a while
            retry_storage(store.index, self.notify)
        if not self.options.extend:
            for space in self.spaces:
                refuse_changed(space, store)
        for warning in _exposures(self.options.tracking_uri or ""):
            self.console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True, markup=False)

    def _open(self, space: Space, store: Store, leases: Leases) -> StudyState:
        """Open the study of a space, with the right to write its journal.

        Waits while another driver has that right: only one driver may write.
        """
        name, waiting = f"study-{space.id}", False
        # The milestones are in the lease so that other drivers end their segments there too.
        facts = LeaseFacts("study", milestones=tuple(runs.milestones(space)))
        while not retry_storage(lambda: leases.acquire(name, facts), self.notify):
            if not waiting and (lease := leases.holder(name)):
                waiting = True
                self.console.print(f"{space.id} is being run by {lease.holder}; waiting for it to end", highlight=False)
            time.sleep(1)
        journal = Journal(store.files, space.id, self.notify)
        journal.take_over()
        study = StudyState(space, store, journal, changed_from(space, store))
        study.record_driver(environment())
        for trial in study.retry():
            self.console.print(
                f"trial {trial.number} failed, perhaps for a reason outside the trial, and is tried again"
            )
        return study

    def _train(
        self, studies: list[StudyState], tracking_uri: str
    ) -> tuple[list[BackgroundMirror], int, Certificates | None]:
        """Train what is left to train. The MLflow mirrors that are returned still have to be finished."""
        computed, certificates = 0, Certificates() if self.options.verify_sharing else None
        with self._lanes(studies) as lanes:
            # These modules take seconds to import, which pass while the worker groups come up.
            from raysweep.execution.tune import search
            from raysweep.report import report  # noqa: F401  for `_report`
            from raysweep.tracking.background import BackgroundMirror

            mirrors = [BackgroundMirror(study, tracking_uri, self.notify) for study in studies]
            self.stopwatch.ended("mlflow")
            proposals = self._proposals(studies)
            self.stopwatch.ended("proposals")
            if lanes:
                with Progress(studies, self.console).shown(lanes.activity):
                    search(proposals, lanes.actor)
                    self.stopwatch.ended("search")
                    if certificates is not None:
                        certificates = certify(studies, self.options.verify_sharing, lanes.actor, self.notify)
                        self.stopwatch.ended("verified")
                computed = lanes.activity(timeout_s=600).computed_steps
        return mirrors, computed, certificates

    @contextlib.contextmanager
    def _lanes(self, studies: list[StudyState]) -> Iterator[Lanes | None]:
        """Connect to Ray and start the lanes of the studies; None where nothing is left to do."""
        if all(study.finished for study in studies) and not self.options.verify_sharing:
            yield None
            return
        space, address = studies[0].space, self.options.address
        milestones = sorted({step for study in studies for step in study.milestones})
        with connected(space.launch, address):
            reference = (space.trial({})[0].data, space.probe)
            trials = max(study.space.launch.concurrent_trials for study in studies)
            lanes = Lanes(space.launch, studies[0].store, milestones, reference, address == "local", trials)
            self.stopwatch.ended("ray")
            try:
                yield lanes
            except KeyboardInterrupt:
                self.notify("interrupted: what is being trained is committed first; interrupt again to end at once")
                lanes.stop()
                raise
            lanes.close()
            self.stopwatch.ended("lanes")
        self.stopwatch.ended("ray's end")

    def _proposals(self, studies: list[StudyState]) -> list[Proposals]:
        """The proposals of each study. Also opens the database that optuna-dashboard reads."""
        from raysweep.study.proposals import Proposals  # Optuna, imported while the worker groups come up
        from raysweep.tracking.optuna_dashboard import Dashboard

        for study in studies:
            Dashboard(study, self._database(study.store, f"studies/{study.space.id}/optuna.db"), self.notify)
        return [Proposals(study) for study in studies]

    def _report(self, studies: list[StudyState], mirrors: list[BackgroundMirror], computed: int) -> list[StudyResult]:
        """Write each study's tables, pictures and page, and log them to MLflow."""
        from raysweep.report.report import write  # matplotlib and plotly: imported by now, see `_train`

        results = []
        charged = retry_storage(lambda: charges(studies), self.notify)
        for study, mirror in zip(studies, mirrors, strict=True):
            summary = summarize(study, charged)
            files = retry_storage(partial(write, study, summary), self.notify)
            self.stopwatch.ended("report")
            mirror.finish(files, study.best)
            self.stopwatch.ended("mlflow's end")
            if len(studies) == 1:  # with several studies, the steps cannot be divided among them
                summary = replace(summary, steps=replace(summary.steps, computed=computed))
            results.append(StudyResult(study, summary, files))
        return results

    def _database(self, store: Store, path: str) -> str:
        """The URI of a SQLite file of the store. A damaged file is made again from the journal."""
        database = retry_storage(lambda: Database(store, path, self.notify), self.notify)
        self.databases.append(database)
        return database.uri


def check_here(space: Space, cache: Path) -> None:
    """Refuse a space whose data or detector this machine lacks, or whose data is damaged.

    Raises:
        UserError: what is missing, and how to get it.
    """
    trials = [space.trial(point)[0] for point in space.points(most=500)]
    needed = {(trial.data, trial.horizontal_flip) for trial in trials}
    for data, mirrored in sorted(needed):
        try:
            catalog.require(data, mirrored=mirrored)
        except LookupError as error:
            remedy = f"{error.args[0]}; or use --profile laptop, which brings its own data"
            raise space.error(("trial", "data"), remedy) from None
    if fault := checks.probe_fault(space.probe):
        raise space.error(("probe", "detector"), fault)
    for data in sorted({data for data, _ in needed}):
        try:
            if not space.probe.reference:
                catalog.require_reference(data, space.probe.detector_name)
            catalog.examine(data, cache)
        except LookupError as error:
            raise space.error(("trial", "data"), str(error.args[0])) from None


def _exposures(tracking_uri: str) -> Iterator[str]:
    """Warnings about security: unencrypted secrets, and ports at which anyone can run code."""
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        yield "RAY_AUTH_MODE turns Ray's token authentication off: anyone who reaches its ports can run code here"
    if tracking_uri.startswith("http://") and not is_loopback(tracking_uri):
        server = public(tracking_uri)
        yield f"{server} is not on this machine and not encrypted: use https, or a tunnel to its loopback"
