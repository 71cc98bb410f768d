"""`python -m raysweep.report STUDY`: a study's tables and plot, from what its journal says."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from raysweep import plots, tables
from raysweep.command import add_storage, guarded
from raysweep.results import LEVEL, summary, text
from raysweep.store import Store
from raysweep.study import Study


def write(study: Study, result: dict[str, Any]) -> list[Path]:
    """Write table.md, table.csv, plot.png and pareto.png beside the study's journal; returns their paths."""
    folder = study.store.local("studies", study.space.id) or study.store.cache / study.space.id
    study.store.check_there()
    folder.mkdir(parents=True, exist_ok=True)
    rows = tables.ordered(result["trials"], study.metric)
    files = [folder / name for name in ("table.md", "table.csv", "plot.png", "pareto.png")]
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # whoever looks sees a whole file
        made = [Path(aside) / file.name for file in files]
        made[0].write_text(tables.markdown(study, rows), encoding="utf-8")
        made[1].write_text(tables.as_csv(study, rows), encoding="utf-8")
        plots.save(study, result["trials"], result["best"], made[2])
        plots.save_fronts(study, result["trials"], made[3])
        for new, file in zip(made, files, strict=True):
            new.replace(file)
    return files


def show(study: Study, result: dict[str, Any], files: list[Path], console: Console) -> None:
    """The table, the best trial and where everything is."""
    best, steps = result["best"], result["steps"]
    rows = tables.ordered([row for row in result["trials"] if row["repeats"] is None], study.metric)
    console.print(tables.terminal(study, rows, best["trial"] if best else None))
    for reason in dict.fromkeys(row["reason"] for row in rows if row["state"] == "UNAVAILABLE"):
        numbers = ", ".join(str(row["row"]) for row in rows if row["reason"] == reason)
        console.print(f"Not trained, row {numbers}: {reason}", highlight=False, soft_wrap=True)
    if best:
        point = ", ".join(f"{path} {text(value)}" for path, value in best["params"].items())
        console.print(
            f"Best: trial {best['trial']}, {study.metric} {tables.with_error(best['metrics'], study.metric)} ({point})"
        )
    if others := result["not_clearly_worse"]:
        told = f"Its last probe does not tell it from trial{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        console.print(f"{told} (paired, {LEVEL:.0%})", highlight=False, soft_wrap=True)
    console.print(f"{steps['without_sharing']} steps if every trial trained its own teacher", end="")
    if "computed" in steps:
        console.print(f"; {steps['computed']} computed now, {steps['reused']} reused", end="")
    console.print()
    own, together, probes = (seconds / 3600 for seconds in result["cost"].values())
    console.print(
        f"{own + together:.3g} device-hours behind these trials: {own:.3g} of single ones, "
        f"{together:.3g} of several; probes were {probes:.3g} of it",
        highlight=False,
    )
    for file in files:
        console.print(f"{file.name}: {file}", highlight=False, soft_wrap=True)


def shared(steps: dict[str, int]) -> str:
    """One line about the steps of several studies together."""
    return f"All together: {steps['without_sharing']} steps apart; {steps['computed']} computed now"


def main(arguments: list[str] | None = None) -> int:
    """Write and show the report of a study; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m raysweep.report", description=__doc__)
    parser.add_argument("study", help="its name, or how that begins")
    add_storage(parser, "where it is")
    return guarded(again, parser.parse_args(arguments))


def again(options: argparse.Namespace, console: Console) -> None:
    """The report of a study that may be long over."""
    study = Study.reopen(Store(options.storage), options.study)
    result = summary(study)
    show(study, result, write(study, result), Console())


if __name__ == "__main__":
    sys.exit(main())
