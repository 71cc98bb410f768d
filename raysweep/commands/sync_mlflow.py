"""`raysweep sync-mlflow [STUDY…]`: log stored studies to an MLflow server that lost them or never had them. What MLflow
already has stays; what is missing is added."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import track

from raysweep.commands.common import Parser, add_storage, add_tracking_uri, guarded
from raysweep.errors import UserError
from raysweep.report import report
from raysweep.store.local_files import Database
from raysweep.store.store import Store
from raysweep.study.journal import studies
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize
from raysweep.tracking.mirror import Mirror
from raysweep.uris import check_tracking_uri
from trainables.redaction import public


def main(arguments: list[str] | None = None) -> int:
    """Log studies to MLflow; returns the exit code of `guarded`."""
    return guarded(sync, parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep sync-mlflow", description=__doc__)
    parser.add_argument("study", nargs="*", help="its name, or the beginning of it (default: all that are stored)")
    add_storage(parser, "the storage of the studies")
    add_tracking_uri(parser)
    return parser


def sync(options: argparse.Namespace, console: Console) -> None:
    """Log these studies to MLflow, from their journals and the store.

    Raises:
        UserError: there is no such study, or no MLflow.
    """
    store = Store(options.storage)
    if options.tracking_uri:
        check_tracking_uri(options.tracking_uri)
    names = options.study or studies(store.files)
    if not names:
        raise UserError(f"--storage {options.storage}: no study is stored there; give the storage of a sweep")
    opened = [StudyState.reopen(store, name) for name in names]
    database = None if options.tracking_uri else Database(store, "mlflow.db", console.print)
    uri = database.uri if database else options.tracking_uri
    for study in opened:
        mirror = Mirror(study, uri)
        quiet = not console.is_terminal
        for trial in track(study.trials, study.space.id, console=console, transient=True, disable=quiet):
            mirror.log_trial(trial)
        mirror.close(report.write(study, summarize(study)), study.best)
        console.print(f"{study.space.id}: {len(study.trials)} trials are in {public(uri)}", highlight=False)
    if database:
        database.save()
