"""A sweep from its search spaces to its tables: checks, studies, Ray, reports."""

from __future__ import annotations

import argparse
import contextlib
import json
import sqlite3
import time
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console

from raysweep import launch, report, runs
from raysweep.attribution import charges
from raysweep.certify import Certificates, certify
from raysweep.errors import UserError
from raysweep.leases import Leases
from raysweep.progress import Progress
from raysweep.proposals import Proposals
from raysweep.results import summary
from raysweep.search import search
from raysweep.space import Space
from raysweep.store import Store
from raysweep.study import Study
from raysweep.tracking import Mirror, check_uri
from trainables import catalog


def sweep(spaces: list[Space], options: argparse.Namespace, console: Console) -> int:
    """Check everything, then run, then write what people read."""
    for space in spaces:
        check_here(space)
    if options.tracking_uri:
        check_uri(options.tracking_uri)
    store = Store(options.storage)
    store.check_writable()
    tracking_uri = options.tracking_uri or f"sqlite:///{_sound(_local_folder(store) / 'mlflow.db', console)}"
    leases = Leases(store)
    try:
        for space in spaces:
            _wait_for(leases, space, console)
        studies = [Study(space, store) for space in spaces]
        mirrors = [Mirror(study, tracking_uri) for study in studies]
        computed, certificates = _run(studies, mirrors, options, console)
    finally:
        leases.close()
    results = []
    charged = charges(studies)
    for study, mirror in zip(studies, mirrors, strict=True):
        result = summary(study, charged) | {"tracking_uri": tracking_uri}
        files = report.write(study, result)
        mirror.sync()
        mirror.close(files, study.best)
        results.append((study, result, files))
    steps = {"without_sharing": sum(result["steps"]["without_sharing"] for _, result, _ in results)}
    steps |= {"computed": computed, "reused": steps["without_sharing"] - computed}
    if len(results) == 1:
        results[0][1]["steps"] |= steps
    whole: dict[str, Any] = {"steps": steps, "storage": store.uri, "tracking_uri": tracking_uri}
    if options.verify_sharing:
        whole["certificates"] = certificates.as_dict()
    if options.json:
        several = {"studies": [result for _, result, _ in results]} if len(results) > 1 else results[0][1]
        print(json.dumps(several | whole))
    else:
        out = Console()
        for study, result, files in results:
            report.show(study, result, files, out)
        if len(results) > 1:
            out.print(report.shared(steps))
        if options.verify_sharing:
            out.print(str(certificates))
        out.print(f"MLflow: .venv/bin/mlflow ui --backend-store-uri {tracking_uri}", highlight=False, soft_wrap=True)
    return 0 if all(study.best for study in studies) and not certificates.differ else 1


def check_here(space: Space) -> None:
    """Refuse a space whose data or detector this machine lacks.

    Raises:
        UserError: what is missing, and how to get it.
    """
    for data in sorted({space.trial(point)[0].data for point in space.points(most=500)}):
        try:
            catalog.identity(data)
        except LookupError as error:
            raise UserError(f"trial.data: {error}; use --profile laptop, which brings its own data") from None
    if space.probe.missing:
        raise UserError(f"probe.detector: {space.probe.missing}")


def _wait_for(leases: Leases, space: Space, console: Console) -> None:
    """Wait while another driver runs the same study: two would write one journal."""
    told = False
    facts = {"kind": "study", "milestones": runs.milestones(space)}  # so that other drivers cut their runs there too
    while not leases.acquire(f"study-{space.id}", facts):
        if not told and (holder := leases.holder(f"study-{space.id}")):
            told = True
            console.print(f"{space.id} is being run by {holder.holder}; waiting for it to end", highlight=False)
        time.sleep(1)


def _run(
    studies: list[Study], mirrors: list[Mirror], options: argparse.Namespace, console: Console
) -> tuple[int, Certificates]:
    """The part that needs Ray; returns how many steps were computed, and what replays showed."""
    spaces = [study.space for study in studies]
    milestones = sorted({step for study in studies for step in study.milestones})
    certificates = Certificates()
    if all(study.finished for study in studies) and not options.verify_sharing:
        _views(studies, mirrors, console)
        return 0, certificates
    with launch.cluster(spaces[0].launch, options.address):
        reference = (spaces[0].trial({})[0].data, spaces[0].probe.detector)
        lanes = launch.open_lanes(spaces[0].launch, studies[0].store.uri, milestones, reference)
        proposals = _views(studies, mirrors, console)  # while the lanes come up
        with Progress(studies, console).shown(lanes.snapshot):
            search(proposals, lanes.dispatcher)
            if options.verify_sharing:
                certificates = certify(studies, options.verify_sharing, lanes.dispatcher)
        computed: int = lanes.snapshot(patience_s=600)["computed_steps"]
        lanes.close()
    return computed, certificates


def _views(studies: list[Study], mirrors: list[Mirror], console: Console) -> list[Proposals]:
    """Optuna's and MLflow's views of the studies, up to date and kept so; both take seconds to make their databases."""
    proposals = []
    for study, mirror in zip(studies, mirrors, strict=True):
        database = _sound(_local_folder(study.store, "studies", study.space.id) / "optuna.db", console)
        proposals.append(Proposals(study, f"sqlite:///{database}"))
        mirror.sync()
        study.watchers.append(mirror.watch)
    return proposals


def _local_folder(store: Store, *parts: str) -> Path:
    folder = store.local(*parts) or store.cache.joinpath(*parts)
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
