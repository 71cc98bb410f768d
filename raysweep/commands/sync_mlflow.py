"""`raysweep sync-mlflow [STUDY…]`: fill an MLflow from the storage: one that was lost, or another one. What it has
already stays, what is missing is added."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import track

from raysweep.commands.common import add_storage, add_tracking_uri, guarded
from raysweep.errors import UserError
from raysweep.report import report
from raysweep.store.store import Store
from raysweep.study.journal import studies
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize
from raysweep.tracking import Mirror
from raysweep.uris import check_tracking_uri, public


def main(arguments: list[str] | None = None) -> int:
    """Mirror studies; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(sync, parser().parse_args(arguments))


def sync(options: argparse.Namespace, console: Console) -> None:
    """Say all that journals and store know of these studies.

    Raises:
        UserError: there is no such study, or no MLflow.
    """
    store = Store(options.storage)
    uri = options.tracking_uri or _file(store)
    check_tracking_uri(uri)
    names = options.study or studies(store.files)
    if not names:
        raise UserError(f"--storage {options.storage}: no study is stored there; give the storage of a sweep")
    for study in [StudyState.reopen(store, name) for name in names]:
        mirror = Mirror(study, uri)
        quiet = not console.is_terminal
        for trial in track(study.trials, study.space.id, console=console, transient=True, disable=quiet):
            mirror.sync_trial(trial)
        mirror.close(report.write(study, summarize(study)), study.best)
        console.print(f"{study.space.id}: {len(study.trials)} trials are in {public(uri)}", highlight=False)


def _file(store: Store) -> str:
    folder = store.files.local()
    if folder is None:
        raise UserError("--tracking-uri: say which MLflow; only a storage that is a folder has one of its own")
    return f"sqlite:///{folder / 'mlflow.db'}"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="raysweep sync-mlflow", description=__doc__)
    found.add_argument("study", nargs="*", help="its name, or how that begins (default: all that are stored)")
    add_storage(found, "where they are")
    add_tracking_uri(found)
    return found
