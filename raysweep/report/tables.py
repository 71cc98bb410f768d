"""The table of a study, our metrics beside the paper's: as Markdown, CSV, LaTeX, a data frame, and for the terminal."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from rich.table import Table

from raysweep.study.state import StudyState
from raysweep.study.summary import (
    STATE_WORDS,
    TrialSummary,
    difference_from_defaults,
    reference_metrics,
    searched_paths,
    short_path,
    value_text,
)
from trainables.config import error_name


def columns(study: StudyState, errors_apart: bool = False) -> list[str]:
    """The head of the table: the trial, its row of the space, the parameters, its cost in device-hours (its own
    and its share of work that several trials needed), our metrics, the paper's, the state and the reason.

    Args:
        errors_apart: whether standard errors have columns of their own.
    """
    paths = [short_path(path) for path in searched_paths(study)]
    probe = study.space.probe
    reference = [f"published {name}" for name in reference_metrics(study)]
    ours = probe.reported if errors_apart else probe.measured
    return ["trial", "row", *paths, "steps", "own hours", "shared hours", *ours, *reference, "state", "reason"]


def cells(study: StudyState, trials: Iterable[TrialSummary], errors_apart: bool = False) -> Iterator[list[str]]:
    """The cells of each trial, in the order of `columns`."""
    paths, reference, probe = searched_paths(study), reference_metrics(study), study.space.probe
    for trial in trials:
        if errors_apart:
            ours = [_number(trial.metrics.get(name)) for name in probe.reported]
        else:
            ours = [with_error(trial.metrics, name) for name in probe.measured]
        yield [
            str(trial.number),
            _row_number(trial),
            *(value_text(trial.params[path]) if path in trial.params else "" for path in paths),
            str(trial.step),
            *(f"{seconds / 3600:.3g}" for seconds in (trial.cost.own, trial.cost.shared)),
            *ours,
            *(_number(trial.reference.get(name)) for name in reference),
            STATE_WORDS[trial.state],
            trial.reason,
        ]


def ordered(trials: Iterable[TrialSummary]) -> list[TrialSummary]:
    """First the trials of the space's rows, in the order of the file; then the others, those with more steps first, and
    with equal steps those with the lower metric first."""

    def rank(trial: TrialSummary) -> tuple[bool, float, float]:
        if trial.row is not None:
            return False, trial.row, 0.0
        return True, -trial.step, float("inf") if trial.value is None else trial.value

    return sorted(trials, key=rank)


def markdown(study: StudyState, trials: Iterable[TrialSummary]) -> str:
    """The table as Markdown."""
    return markdown_table(columns(study), cells(study, trials))


def markdown_table(head: list[str], lines: Iterable[list[str]]) -> str:
    """Any table as Markdown."""
    table = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in table) + "\n"


def as_csv(study: StudyState, trials: Iterable[TrialSummary]) -> str:
    """The table as CSV, with columns for the standard errors."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns(study, errors_apart=True))
    writer.writerows(cells(study, trials, errors_apart=True))
    return out.getvalue()


def trials_frame(trials: Iterable[TrialSummary]) -> pd.DataFrame:
    """A row for each trial: state, step, parameters, metrics with their standard errors, device hours, reason."""
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": STATE_WORDS[trial.state],
            "step": trial.step,
            **_params(trial),
            **trial.metrics,
            "own_hours": trial.cost.own / 3600,
            "shared_hours": trial.cost.shared / 3600,
            "reason": trial.reason,
        }
        for trial in trials
    )


def probes_frame(trials: Iterable[TrialSummary]) -> pd.DataFrame:
    """A row for each probe of each trial: parameters, the step, metrics with their standard errors, the state."""
    return pd.DataFrame(
        {"trial": trial.number, **_params(trial), "step": step, **metrics, "state": STATE_WORDS[trial.state]}
        for trial in trials
        for step, metrics in trial.probes.items()
    )


def _params(trial: TrialSummary) -> dict[str, Any]:
    """The parameters by their short names: numbers as they are, everything else as text."""
    return {
        short_path(path): value if isinstance(value, int | float) else value_text(value)
        for path, value in trial.params.items()
    }


def latex(study: StudyState, trials: Iterable[TrialSummary], best: TrialSummary | None) -> str:
    """The table as LaTeX, for `\\usepackage{booktabs}`: parameters, our metrics with standard errors, the paper's, and
    the state. The best trial is in bold; repeats are left out."""
    left_out = {"trial", "own hours", "shared hours", "reason"}
    head = columns(study)
    kept = [place for place, name in enumerate(head) if name not in left_out]
    lines = [
        f"% {study.space.id}",
        f"\\begin{{tabular}}{{{''.join('l' if head[place] == 'state' else 'r' for place in kept)}}}",
        "\\toprule",
        " & ".join(_tex(head[place]) for place in kept) + " \\\\",
        "\\midrule",
    ]
    shown = [trial for trial in trials if trial.repeats is None]
    for trial, line in zip(shown, cells(study, shown), strict=True):
        texts = [_tex(line[place]) for place in kept]
        if best and trial.number == best.number:
            texts = [f"\\textbf{{{text}}}" if text else "" for text in texts]
        lines.append(" & ".join(texts) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def terminal(study: StudyState, trials: Iterable[TrialSummary], best: TrialSummary | None) -> Table:
    """The table for a terminal: how each trial differs from the defaults, without the reasons. The best trial stands
    out."""
    metric, reference = study.metric, reference_metrics(study)[:1]
    table = Table(title=study.space.id, title_justify="left")
    published = [f"published {name}" for name in reference]
    for name in ("trial", "row", "configuration", "steps", metric, *published, "state"):
        table.add_column(name, justify="left" if name in ("configuration", "state") else "right")
    for trial in trials:
        table.add_row(
            str(trial.number),
            _row_number(trial),
            difference_from_defaults(study, trial.params),
            str(trial.step),
            with_error(trial.metrics, metric),
            *(_number(trial.reference.get(name)) for name in reference),
            STATE_WORDS[trial.state],
            style="bold green" if best and trial.number == best.number else _STYLES.get(trial.state),
        )
    return table


_STYLES = {"PRUNED": "dim", "UNAVAILABLE": "dim", "FAILED": "red"}


def with_error(metrics: Mapping[str, float], name: str) -> str:
    """A metric with its standard error, such as `22.91 ± 0.34`; empty if it was not measured."""
    value, error = metrics.get(name), metrics.get(error_name(name))
    return _number(value) if value is None or error is None else f"{value:.2f} ± {error:.2f}"


_TEX = {character: f"\\{character}" for character in "&%$#_{}"} | {
    "\\": "\\textbackslash{}",
    "±": "$\\pm$",
    "→": "$\\to$",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
}


def _tex(text: str) -> str:
    return "".join(_TEX.get(character, character) for character in text)


def _row_number(trial: TrialSummary) -> str:
    return "" if trial.row is None else str(trial.row)


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.2f}"
