"""A sweep from its search spaces to its tables: checks, studies, Ray, reports."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from raysweep.cluster.connection import connected
from raysweep.environment import environment
from raysweep.execution.lanes import Lanes
from raysweep.execution.verify import Certificates, certify
from raysweep.report.progress import Progress
from raysweep.retry import Notify, retry_storage
from raysweep.space import runs
from raysweep.space.space import Space
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.store import Store
from raysweep.study.costs import charges
from raysweep.study.extension import changed_from, refuse_changed
from raysweep.study.journal import JournalWriter
from raysweep.study.state import StudyState
from raysweep.study.summary import StepCount, StudySummary, summarize
from raysweep.uris import check_tracking_uri, is_loopback, public
from trainables.datasets import catalog, checks

if TYPE_CHECKING:
    from raysweep.study.proposals import Proposals


def sweep(spaces: list[Space], options: argparse.Namespace, console: Console) -> int:
    """Check everything, then run, then write what people read."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a preemption is an interruption
    stopwatch = Stopwatch()
    store = Store(options.storage)
    _check(spaces, store, options, console)
    tell = partial(console.print, style="yellow", highlight=False, markup=False)
    tracking_uri = options.tracking_uri or f"sqlite:///{_sound(_local_folder(store) / 'mlflow.db', console)}"
    leases = Leases(store.files)
    computed, certificates = 0, Certificates()
    stopwatch.ended("checks")
    try:
        studies = [_open(space, store, leases, console, tell) for space in spaces]
        stopwatch.ended("studies")
        with _at_work(studies, options, tell, stopwatch) as lanes:
            # All that no lane waits for is done while they come up: these alone take seconds to import.
            from raysweep.execution.tune import search
            from raysweep.report import report
            from raysweep.tracking.background import BackgroundMirror

            mirrors = [BackgroundMirror(study, tracking_uri, tell) for study in studies]
            stopwatch.ended("mlflow")
            proposals = _proposals(studies, console, tell)
            stopwatch.ended("proposals")
            if lanes:
                with Progress(studies, console).shown(lanes.snapshot):
                    search(proposals, lanes.actor)
                    stopwatch.ended("search")
                    if options.verify_sharing:
                        certificates = certify(studies, options.verify_sharing, lanes.actor)
                        stopwatch.ended("verified")
                computed = lanes.snapshot(timeout_s=600)["computed_steps"]
    finally:
        with contextlib.suppress(OSError):  # a storage that is away now keeps them until the next driver
            leases.clear()
            leases.close()
    stopwatch.ended("leases")
    results = []
    charged = retry_storage(lambda: charges(studies), tell)
    for study, mirror in zip(studies, mirrors, strict=True):
        summary = summarize(study, charged)
        files = retry_storage(partial(report.write, study, summary), tell)
        stopwatch.ended("report")
        mirror.finish(files, study.best)
        stopwatch.ended("mlflow's end")
        results.append((study, summary, files))
    whole: dict[str, Any] = {"storage": public(store.uri), "tracking_uri": public(tracking_uri)}
    whole["driver"] = {"began": stopwatch.began, "seconds": stopwatch.seconds}
    if options.verify_sharing:
        whole["certificates"] = certificates.as_dict()
    _tell_all(results, computed, whole, options.json)
    if options.verify_sharing and not options.json:
        Console().print(str(certificates))
    return 0 if all(study.best for study in studies) and not certificates.differ else 1


def _tell_all(
    results: list[tuple[StudyState, StudySummary, list[Path]]], computed: int, whole: dict[str, Any], as_json: bool
) -> None:
    """What a sweep of one or several spaces has come to: for people, or as one object."""
    from raysweep.report import report

    steps = StepCount(sum(summary.steps.without_sharing for _, summary, _ in results), computed)
    if len(results) == 1:
        ((study, summary, files),) = results
        results = [(study, replace(summary, steps=steps), files)]
    if as_json:
        address = {"tracking_uri": whole["tracking_uri"]}
        summaries = [summary.as_dict() | address for _, summary, _ in results]
        several = {"studies": summaries} if len(summaries) > 1 else summaries[0]
        print(json.dumps(several | {"steps": steps.as_dict()} | whole))
        return
    out = Console()
    for study, summary, files in results:
        report.show(study, summary, files, out)
    if len(results) > 1:
        out.print(report.steps_line(steps))
    uri = whole["tracking_uri"]
    ui = uri if uri.startswith("http") else f".venv/bin/mlflow ui --backend-store-uri {uri}"
    out.print(f"MLflow: {ui}", highlight=False, soft_wrap=True)


def _check(spaces: list[Space], store: Store, options: argparse.Namespace, console: Console) -> None:
    """Refuse what cannot be run here, before anything is written."""
    with console.status("looking at the data"):  # a large set that was never compared with its manifest takes a while
        for space in spaces:
            check_here(space, store.cache)
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
    store.files.check_writable()
    if not options.extend:
        for space in spaces:
            refuse_changed(space, store)
    _warn_of_open_doors(options, console)


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
            told = f"{error.args[0]}; or use --profile laptop, which brings its own data"
            raise space.error(("trial", "data"), told) from None
    if fault := checks.probe_fault(space.probe):
        raise space.error(("probe", "detector"), fault)
    for data in sorted({data for data, _ in needed}):
        try:
            if not space.probe.reference:
                catalog.require_reference(data, space.probe.detector_name)
            catalog.examine(data, cache)
        except LookupError as error:
            raise space.error(("trial", "data"), str(error.args[0])) from None


def _open(space: Space, store: Store, leases: Leases, console: Console, tell: Notify) -> StudyState:
    """The study of a space, with the right to write its journal. Waits while another driver has that: two would write
    one journal."""
    name, told = f"study-{space.id}", False
    facts = LeaseFacts("study", milestones=tuple(runs.milestones(space)))
    while not retry_storage(lambda: leases.acquire(name, facts), tell):
        if not told and (holder := leases.holder(name)):
            told = True
            console.print(f"{space.id} is being run by {holder.holder}; waiting for it to end", highlight=False)
        time.sleep(1)
    writer = JournalWriter(leases.generation(name), lambda: leases.check(name), tell)
    study = StudyState(space, store, writer, changed_from(space, store))
    study.record_driver(environment())
    for trial in study.retry():
        console.print(f"trial {trial.number} failed through no known fault of its own and is tried again")
    return study


def _warn_of_open_doors(options: argparse.Namespace, console: Console) -> None:
    """Say what others could reach: secrets travel in the open there, and anybody may write."""
    told = []
    if os.environ.get("RAY_AUTH_MODE", "token") != "token":
        told.append("RAY_AUTH_MODE turns Ray's token authentication off: whoever reaches its ports can run code here")
    uri = options.tracking_uri or ""
    if uri.startswith("http://") and not is_loopback(uri):
        told.append(f"{public(uri)} is not on this machine and not encrypted: use https, or a tunnel to its loopback")
    for line in told:
        console.print(f"warning: {line}", style="yellow", highlight=False, soft_wrap=True, markup=False)


@contextlib.contextmanager
def _at_work(
    studies: list[StudyState], options: argparse.Namespace, tell: Notify, stopwatch: Stopwatch
) -> Iterator[Lanes | None]:
    """The part that needs Ray: lanes that come up and work for the studies; None where nothing is left to do."""
    if all(study.finished for study in studies) and not options.verify_sharing:
        yield None
        return
    space = studies[0].space
    milestones = sorted({step for study in studies for step in study.milestones})
    with connected(space.launch, options.address):
        reference = (space.trial({})[0].data, space.probe)
        lanes = Lanes(space.launch, studies[0].store, milestones, reference, alone=options.address == "local")
        stopwatch.ended("ray")
        try:
            yield lanes
        except KeyboardInterrupt:
            tell("interrupted: what is being trained is published first; once more ends at once")
            lanes.stop()
            raise
        lanes.close()
        stopwatch.ended("lanes")
    stopwatch.ended("ray's end")


def _proposals(studies: list[StudyState], console: Console, tell: Notify) -> list[Proposals]:
    """What to try next in each study, and with it Optuna's view of it, whose database takes a second to be made."""
    from raysweep.study.proposals import Proposals
    from raysweep.tracking.optuna_dashboard import Dashboard

    proposals = []
    for study in studies:
        database = _sound(_local_folder(study.store, "studies", study.space.id) / "optuna.db", console)
        Dashboard(study, f"sqlite:///{database}", tell)
        proposals.append(Proposals(study))
    return proposals


def _local_folder(store: Store, *parts: str) -> Path:
    folder = store.files.local(*parts) or store.cache.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _sound(database: Path, console: Console) -> Path:
    """The path of an SQLite file, set aside if it is damaged: what it shows is made again from the journal."""
    if database.exists():
        try:
            with contextlib.closing(sqlite3.connect(database)) as connection:
                sound = connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
        except sqlite3.DatabaseError:
            sound = False
        if not sound:
            aside = database.with_name(f"{database.name}.damaged-{uuid.uuid4().hex[:6]}")
            database.replace(aside)
            console.print(f"{database.name} was damaged and is made again; the old one is {aside.name}", style="yellow")
    return database


class Stopwatch:
    """Where the wall time of a driver goes, part by part.

    Attributes:
        began: when it was started, in seconds since the epoch.
        seconds: of each part, in order of their first ends; they add up to the time since `began`.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, part: str) -> None:
        """All since the part before was `part`."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
