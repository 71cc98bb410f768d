"""`raysweep report STUDY`: write the tables, pictures and page of a study, from its journal and the store."""

from __future__ import annotations

import argparse

from rich.console import Console

from raysweep.commands.common import Parser, add_storage, guarded
from raysweep.report.report import show, write
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize


def main(arguments: list[str] | None = None) -> int:
    """Write and show the report of a study; returns the exit code of `guarded`."""
    return guarded(report, parser().parse_args(arguments))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep report", description=__doc__)
    parser.add_argument("study", help="its name, or the beginning of it")
    add_storage(parser, "the storage of the study")
    return parser


def report(options: argparse.Namespace, console: Console) -> None:
    """Write the report of a study, running or ended, and show it."""
    study = StudyState.reopen(Store(options.storage), options.study)
    summary = summarize(study)
    show(study, summary, write(study, summary), Console())
