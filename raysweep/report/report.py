"""The report of a study: tables, pictures and the page as files, and a short form for the terminal."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from raysweep.report import lineage, lineage_svg, page, plots, tables
from raysweep.report.agreement import rank_agreement
from raysweep.store.local_files import copy_into_store, local_place
from raysweep.study.costs import Charge
from raysweep.study.state import StudyState
from raysweep.study.summary import LEVEL, StepCount, StudySummary, value_text
from trainables.redaction import public

SHOWN = 100  # the most trials in the terminal's table


def write(study: StudyState, summary: StudySummary) -> list[Path]:
    """Write tables, pictures and the page beside the study's journal. If the store is not a folder, they are also in
    this machine's cache.

    Returns:
        The files on this machine, report.html first.
    """
    place = f"studies/{study.space.id}"
    folder = local_place(study.store, place)
    study.store.files.check_available()
    folder.mkdir(parents=True, exist_ok=True)
    trials = tables.ordered(summary.trials)
    # Files are moved once they are complete, so that no reader sees half a file.
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        drafts = Path(temporary)
        pictures = {}  # for the page: as SVG, but samples as PNG, since they are nothing but pixels
        for name, figure in plots.pictures(study, summary).items():
            for kind in ("png", "svg") if name != "samples" else ("png",):
                pictures[name] = drafts / f"{name}.{kind}"
                plots.save(figure, pictures[name], kind)
        family = lineage.trace(study, summary)
        texts = {
            "table.md": tables.markdown(study, trials),
            "table.csv": tables.as_csv(study, trials),
            "table.tex": tables.latex(study, trials, summary.best),
            "lineage.svg": lineage_svg.drawing(family),
            "lineage.md": lineage.markdown(family),
        }
        texts["report.html"] = page.html(study, summary, pictures, texts["lineage.svg"])
        for name, text in texts.items():
            (drafts / name).write_text(text, encoding="utf-8")
        files = [file.replace(folder / file.name) for file in sorted(drafts.iterdir())]
    for file in files:
        copy_into_store(study.store, f"{place}/{file.name}", file)
    return sorted(files, key=lambda file: (file.name != "report.html", file.name))


def show(study: StudyState, summary: StudySummary, files: list[Path], console: Console) -> None:
    """Print the table, the best trial, the costs, and where `files` are."""
    best, steps = summary.best, summary.steps
    trials = tables.ordered(trial for trial in summary.trials if trial.repeats is None)
    console.print(tables.terminal(study, trials[:SHOWN], best))
    if len(trials) > SHOWN:
        console.print(f"… and {len(trials) - SHOWN} more: table.csv", highlight=False)
    for reason in dict.fromkeys(trial.reason for trial in trials if trial.state == "UNAVAILABLE"):
        numbers = ", ".join(str(trial.row) for trial in trials if trial.reason == reason)
        console.print(f"Not trained, row {numbers}: {reason}", highlight=False, soft_wrap=True)
    if best:
        point = ", ".join(f"{path} {value_text(value)}" for path, value in best.params.items())
        console.print(
            f"Best: trial {best.number}, {study.metric} {tables.with_error(best.metrics, study.metric)} ({point})"
        )
    if others := summary.not_clearly_worse:
        numbers = f"trial{'s' * (len(others) > 1)} {', '.join(map(str, others))}"
        line = f"Its last probe does not distinguish it from {numbers} (paired, {LEVEL:.0%})"
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"{steps.without_sharing} steps if every trial trained its own teacher", end="")
    if steps.computed is not None:
        console.print(f"; {steps.computed} computed now, {steps.reused} reused", end="")
    console.print()
    console.print(cost_line(summary.cost), highlight=False)
    if agreement := rank_agreement(study, summary.trials):
        when = "at their ends" if agreement.step is None else f"at step {agreement.step}"
        line = f"Order of the rows {when} against the published one: {agreement}"
        console.print(line, highlight=False, soft_wrap=True)
    suffixes = sorted({file.suffix for file in files[1:]})
    stored = study.store.files.location / f"studies/{study.space.id}"
    copied = "" if stored.folder else f"; all of it is also in {public(str(stored))}"
    line = f"Report: {files[0]}, and beside it {', '.join(suffixes)}{copied}"
    console.print(line, highlight=False, soft_wrap=True, markup=False)


def cost_line(cost: Charge) -> str:
    """One line about the cost of a study's trials: with sharing, without sharing, and its parts."""
    own, shared, probes, alone = (value / 3600 for value in (cost.own, cost.shared, cost.probes, cost.alone))
    return (
        f"{own + shared:.3g} device-hours for these trials, {alone:.3g} without sharing: "
        f"{own:.3g} for single trials, {shared:.3g} shared by several; {probes:.3g} of the total for probes"
    )


def steps_line(steps: StepCount) -> str:
    """One line about the steps of several studies together."""
    return (
        f"All studies: {steps.without_sharing} steps if every trial trained its own teacher; "
        f"{steps.computed} computed now"
    )
