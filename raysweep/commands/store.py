"""`raysweep store ls | verify | lineage | gc`: list, verify, trace and garbage-collect checkpoints."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from raysweep.commands.common import Parser, add_storage, guarded, number_type
from raysweep.errors import UserError
from raysweep.report import provenance
from raysweep.store.lookup import find_key
from raysweep.store.provenance import title
from raysweep.store.provenance import trace as trace_provenance
from raysweep.store.store import Store
from raysweep.study import retention
from raysweep.study.journal import ignored_batches


def main(arguments: list[str] | None = None) -> int:
    """Run one of the subcommands; returns the exit code: 0 done, 1 something is damaged, 2 the user's mistake."""
    options = parser().parse_args(arguments)
    return guarded(options.command, options)


def ls(options: argparse.Namespace, console: Console) -> None:
    """List the checkpoints, and why each one is kept."""
    survey = _survey(options)
    rows: list[dict[str, Any]] = [
        {
            "step": entry.checkpoint.step,
            "key": entry.checkpoint.key,
            "run": title(entry.checkpoint.manifest.history),
            "gib": entry.gib,
            "hours_old": entry.age_s / 3600,
            "why": entry.reason,
        }
        for entry, _ in retention.listed(survey)
    ]
    if options.json:
        print(json.dumps(rows))
        return
    table = Table(title=f"{len(rows)} checkpoints, {sum(row['gib'] for row in rows):.3g} GiB", title_justify="left")
    for name in ("step", "key", "run", "GiB", "why"):
        table.add_column(name, justify="right" if name in ("step", "GiB") else "left")
    for row in rows:
        table.add_row(str(row["step"]), row["key"][:12], row["run"], f"{row['gib']:.3g}", row["why"])
    Console().print(table)


def verify(options: argparse.Namespace, console: Console) -> int:
    """Compare every file with its checksum. Damaged checkpoints are set aside; they are trained again when needed. Also
    list the batches of journals that do not count."""
    store = _store(options)
    count = sum(1 for _ in store.checkpoints())
    quiet = not console.is_terminal
    wrong: dict[str, str] = {}
    results = track(store.verify(), "Reading", total=count, console=console, transient=True, disable=quiet)
    for checkpoint, fault in results:
        if fault:
            wrong[checkpoint.key] = str(store.set_aside(checkpoint, fault))
    ignored = ignored_batches(store.files)
    if options.json:
        print(json.dumps({"checkpoints": count, "damaged": wrong, "ignored": ignored}))
    else:
        out = Console()
        for message in wrong.values():
            out.print(message, highlight=False, soft_wrap=True)
        out.print(f"{count - len(wrong)} of {count} checkpoints are intact")
        for study, numbers in ignored.items():
            text = ", ".join(map(str, numbers))
            out.print(
                f"{study}: of its journal, batches {text} do not count: one before them is damaged", highlight=False
            )
    return 1 if wrong else 0


def trace(options: argparse.Namespace, console: Console) -> None:
    """Show the provenance of a checkpoint: the checkpoints, teachers and data that it comes from."""
    store = _store(options)
    step, key = find_key(options.key, store, also_freed=True)
    manifest = store.manifest(key, step)
    if manifest is None:
        raise UserError(f"checkpoint {key[:12]} at step {step}: its manifest is damaged; run `raysweep store verify`")
    origin = trace_provenance(store, manifest.history)
    if options.svg:
        try:
            options.svg.write_text(provenance.svg(origin), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--svg {options.svg}: cannot be written ({error.strerror})") from None
    if options.json:
        print(json.dumps(origin.as_dict()))
    else:
        Console().print(provenance.text(origin))


def gc(options: argparse.Namespace, console: Console) -> int:
    """Show what can be deleted and what training it again would cost; with --delete, delete it."""
    survey = _survey(options)
    if options.delete:
        retention.carry_out(_store(options), survey)
    if options.json:
        print(json.dumps(survey.as_dict() | {"deleted": options.delete}))
    else:
        _show(survey.as_dict(), options.delete)
    if survey.kept_gib > options.budget:
        console.print(
            f"Checkpoints that must be kept take {survey.kept_gib:.3g} GiB, more than the budget",
            style="red",
            highlight=False,
        )
        return 1
    return 0


def _show(facts: dict[str, Any], deleted: bool) -> None:
    table = Table()
    for name in ("", "why", "checkpoints", "GiB"):
        table.add_column(name, justify="left" if name in ("", "why") else "right")
    for verb, part in (("kept", facts["kept"]), ("freed" if deleted else "would be freed", facts["freed"])):
        for reason, counts in part.items():
            table.add_row(verb, reason, f"{counts['checkpoints']:.0f}", f"{counts['gib']:.3g}")
        table.add_section()
    if facts["remains"]["files"]:
        table.add_row("", "incomplete files", f"{facts['remains']['files']} files", f"{facts['remains']['gib']:.3g}")
    out = Console()
    out.print(table)
    out.print(
        f"{facts['freed_gib']:.3g} GiB {'freed' if deleted else 'would be freed; run again with --delete'}. "
        f"Training it again would take {facts['again_device_hours']:.3g} device-hours.",
        highlight=False,
    )


def _store(options: argparse.Namespace) -> Store:
    store = Store(options.storage)
    try:
        stored = any(store.files.names(place) for place in ("checkpoints", "studies", "freed"))
    except OSError as error:
        raise UserError(f"--storage {options.storage}: cannot be read ({str(error).splitlines()[0]})") from None
    if not stored:
        raise UserError(f"--storage {options.storage}: nothing is stored here; give the storage of a sweep")
    return store


def _survey(options: argparse.Namespace) -> retention.Survey:
    try:
        return retention.survey(_store(options), options.keep_best, options.budget, young_s=options.young_hours * 3600)
    except LookupError as error:
        reason = error.args[0] if error.args else error
        raise UserError(f"--storage {options.storage}: {reason}; run this on a machine that has the data") from None
    except ValueError as error:
        raise UserError(
            f"--storage {options.storage}: cannot read a study, perhaps of another version "
            f"({str(error).splitlines()[0]})"
        ) from None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep store", description=__doc__)
    commands = parser.add_subparsers(metavar="ls|verify|lineage|gc", required=True)
    for name, command in {"ls": ls, "verify": verify, "lineage": trace, "gc": gc}.items():
        subparser = commands.add_parser(name, help=command.__doc__, description=command.__doc__)
        subparser.set_defaults(command=command, keep_best=3, budget=math.inf, young_hours=1.0)
        add_storage(subparser, "the store")
        subparser.add_argument("--json", action="store_true", help="print one JSON object")
        if name == "lineage":
            subparser.add_argument("key", help="a checkpoint's key, or its beginning")
            subparser.add_argument("--svg", type=Path, metavar="FILE", help="also write it as an SVG picture")
        if name == "gc":
            subparser.add_argument(
                "--budget",
                type=number_type(0),
                metavar="GIB",
                help="also free optional checkpoints until at most this much is left",
            )
            subparser.add_argument(
                "--keep-best",
                type=number_type(0, kind=int),
                metavar="K",
                help="keep the best K trials of each study (default: 3)",
            )
            subparser.add_argument(
                "--young-hours",
                type=number_type(0),
                metavar="H",
                help="keep checkpoints younger than this (default: 1)",
            )
            subparser.add_argument(
                "--delete", action="store_true", help="delete; otherwise only show what would be deleted"
            )
    return parser
