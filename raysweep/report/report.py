"""`raysweep report STUDY`: a study's tables, pictures and page, from what its journal and the store say."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from raysweep.report import lineage, lineage_svg, plots, tables
from raysweep.report.agreement import agreement
from raysweep.report.page import page
from raysweep.study.state import StudyState
from raysweep.study.summary import LEVEL, text

SHOWN = 100  # trials in the terminal


def write(study: StudyState, result: dict[str, Any]) -> list[Path]:
    """Write tables, pictures and the page beside the study's journal; returns their paths."""
    folder = study.store.local("studies", study.space.id) or study.store.cache / study.space.id
    study.store.check_there()
    folder.mkdir(parents=True, exist_ok=True)
    rows = tables.ordered(result["trials"], study.metric)
    with tempfile.TemporaryDirectory(dir=folder) as aside:  # whoever looks sees a whole file
        made = Path(aside)
        pictures = {}  # on the page, which takes PNG only where SVG would hold nothing but pixels
        for name, figure in plots.pictures(study, result).items():
            for kind in ("png", "svg") if name != "samples" else ("png",):
                pictures[name] = made / f"{name}.{kind}"
                plots.save(figure, pictures[name], kind)
        family = lineage.trace(study, result)
        texts = {
            "table.md": tables.markdown(study, rows),
            "table.csv": tables.as_csv(study, rows),
            "table.tex": tables.latex(study, rows, result["best"]),
            "lineage.svg": lineage_svg.drawing(family),
            "lineage.md": lineage.markdown(family),
        }
        texts["report.html"] = page(study, result, pictures, texts["lineage.svg"])
        for name, text in texts.items():
            (made / name).write_text(text, encoding="utf-8")
        files = [file.replace(folder / file.name) for file in sorted(made.iterdir())]
    return sorted(files, key=lambda file: (file.name != "report.html", file.name))


def show(study: StudyState, result: dict[str, Any], files: list[Path], console: Console) -> None:
    """The table, the best trial and where everything is."""
    best, steps = result["best"], result["steps"]
    rows = tables.ordered([row for row in result["trials"] if row["repeats"] is None], study.metric)
    console.print(tables.terminal(study, rows[:SHOWN], best["trial"] if best else None))
    if len(rows) > SHOWN:
        console.print(f"… and {len(rows) - SHOWN} more: table.csv", highlight=False)
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
    console.print(cost(result), highlight=False)
    if found := agreement(study, result["trials"]):
        when = "at their ends" if found.step is None else f"at step {found.step}"
        console.print(f"Order of the rows {when} against the published one: {found}", highlight=False, soft_wrap=True)
    others = sorted({file.suffix for file in files[1:]})
    console.print(f"Report: {files[0]}, and beside it {', '.join(others)}", highlight=False, soft_wrap=True)


def cost(result: dict[str, Any]) -> str:
    """One line about what the trials took."""
    own, together, probes, alone = (seconds / 3600 for seconds in result["cost"].values())
    return (
        f"{own + together:.3g} device-hours behind these trials, {alone:.3g} without sharing: "
        f"{own:.3g} of single ones, {together:.3g} of several; probes were {probes:.3g} of it"
    )


def shared(steps: dict[str, int]) -> str:
    """One line about the steps of several studies together."""
    return f"All together: {steps['without_sharing']} steps apart; {steps['computed']} computed now"
