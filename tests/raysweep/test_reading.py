"""The report of a study: summary, pictures, tables, page, lineage, notebooks. With real training, without Ray."""

import csv
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree as ET

import lanes
import nbformat
import pytest
from nbclient import NotebookClient
from scipy import stats

from raysweep.commands import report as report_command
from raysweep.planning.learning_curves import Synthetic
from raysweep.planning.simulation import simulate, trust_names
from raysweep.report import lineage, lineage_svg, plots, report, tables
from raysweep.report.agreement import rank_agreement
from raysweep.report.importance import importances, interactive
from raysweep.report.plots.parameter_panels import panels
from raysweep.space import space
from raysweep.space.configurations import configurations
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import StudySummary, summarize
from trainables.datasets import catalog

ROOT = Path(__file__).parents[2]
SPACES, NOTEBOOKS = ROOT / "search_spaces", sorted((ROOT / "notebooks").glob("*.ipynb"))
ROWS = """enqueue=[
  {set: {}, fid: 22.91, is: 70.37}, {set: {method.guidance_scale: 1.0}, fid: 29.30},
  {set: {method.layers: [8, 4]}, fid: 23.43},
  {set: {method.guidance_scale: 60.0}, fid: 23.57}, {set: {method.teacher.iterations: 50000}, fid: 28.32},
  {set: {method.stop: 50000}}, {set: {method.stop: never}}]"""
SHORT = ["trial.iterations=200000", "search.rungs=[50000, 100000]", ROWS]
STUDIES = {
    "table5": ("table5", [*SHORT, "search.trials=8"]),
    "table5-reproduced": ("table5", [*SHORT, "search.mode=reproduce", "study=table5-reproduced"]),
    "figure8": ("figure8", ["trial.backbone=SiT-T/2"]),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory, cache) -> Store:
    folder = tmp_path_factory.mktemp("read")
    (folder / "runs").mkdir()
    (folder / "runs" / "cache").symlink_to(cache)
    store = Store(str(folder / "runs"))
    for file, overrides in STUDIES.values():
        lanes.sweep(StudyState(space.load(SPACES / f"{file}.yaml", "smoke", overrides), store), cache)
    return store


@pytest.fixture(params=STUDIES)
def read(request, store) -> tuple[StudyState, StudySummary]:
    study = StudyState.reopen(store, request.param)
    return study, summarize(study)


@pytest.fixture
def reproduced(store) -> tuple[StudyState, StudySummary]:
    study = StudyState.reopen(store, "table5-reproduced")
    return study, summarize(study)


@pytest.fixture
def on_trust(monkeypatch):
    """For this test alone: later tests of this process identify data by its content again."""
    monkeypatch.setattr(catalog, "TRUSTED", {})


def simulated(trials: int) -> tuple[StudyState, StudySummary]:
    trust_names()
    wide = space.load(SPACES / "table5.yaml", "cluster", [f"search.trials={trials}"])
    study = simulate(wide, list(configurations(wide, []))[:trials], Synthetic(), lanes=50).study
    return study, summarize(study)


# --- pictures


def test_every_picture_can_be_read(read):
    """Every axis has a label, nothing lies outside the figure, and the labels of ticks do not touch."""
    study, summary = read
    figures = plots.pictures(study, summary)
    assert set(figures) >= {"plot", "axes", "importance", "pareto", "samples"}
    for name, figure in figures.items():
        figure.canvas.draw()
        renderer, (wide, tall) = figure.canvas.get_renderer(), figure.bbox.get_points()[1]
        words = [figure._suptitle]
        for axes in [axes for axes in figure.axes if axes.axison]:
            low, high = axes.get_xlim()
            ticks = [label for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
            spans = sorted(label.get_window_extent(renderer).intervalx.tolist() for label in ticks if label.get_text())
            assert all(one[1] < other[0] for one, other in pairwise(spans)), (name, spans)
            assert axes.get_xlabel() or axes.get_title() or not axes.xaxis.get_visible(), name
            words += [axes.xaxis.label, axes.yaxis.label, axes.title]
            words += axes.get_legend().get_texts() if axes.get_legend() else []
        for text in [text for text in words if text.get_text()]:
            box = text.get_window_extent(renderer)
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= wide and box.y1 <= tall, (name, text.get_text())


def test_the_same_study_draws_the_same_bytes(reproduced):
    study, summary = reproduced
    for kind in ("svg", "png"):
        one, other = io.BytesIO(), io.BytesIO()
        plots.save(plots.curves(study, summary), one, kind)
        plots.save(plots.curves(study, summary), other, kind)
        assert one.getvalue() == other.getvalue()


def test_a_panel_holds_what_differs_in_that_parameter_alone(reproduced):
    study, summary = reproduced
    by_path = {panel.path: panel for panel in panels(study, summary.trials)}
    values = {path: [value for value, _, _ in panel.shown] for path, panel in by_path.items()}
    assert values == {
        "method.guidance_scale": [1.0, 30.0, 60.0],
        "method.layers": [[8, 4], [8, 6]],
        "method.stop": [50000, 100000, "never"],
        "method.teacher.iterations": [50000, 200000],
    }
    assert all(panel.step is None for panel in by_path.values())  # all complete: at their ends
    for panel in by_path.values():
        for value, trial, metrics in panel.shown:
            assert trial.params[panel.path] == value and metrics[study.metric] == trial.value


def test_an_exploration_is_compared_where_all_have_come_to(store):
    study = StudyState.reopen(store, "table5")
    trials = summarize(study).trials
    first = min(step for trial in trials for step in trial.probes)
    assert any(trial.state == "PRUNED" for trial in trials)
    assert rank_agreement(study, trials).step == first
    assert {panel.step for panel in panels(study, trials)} == {first}


def test_stops_are_set_beside_runs_of_the_same_length(store):
    study = StudyState.reopen(store, "figure8")
    figure = plots.stops(study, summarize(study))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["method self_guided", "method repa"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1 → 3", "2 → 4", "3 → 5", "4 → 6"]
        assert [len(line.get_xdata()) for line in axes.lines if line.get_label() == "_nolegend_"][:1] == [4]


def test_agreement_is_that_of_the_ranks(reproduced):
    study, summary = reproduced
    agreement = rank_agreement(study, summary.trials)
    trials = [trial for trial in summary.trials if "fid_10k" in trial.reference]
    theirs, ours = [trial.reference["fid_10k"] for trial in trials], [trial.value for trial in trials]
    assert len(trials) == 5 and [trial for trial, _, _ in agreement.pairs] == trials
    assert agreement.rho == pytest.approx(stats.spearmanr(theirs, ours).statistic)
    assert agreement.tau == pytest.approx(stats.kendalltau(theirs, ours).statistic)
    assert "n = 5" in str(agreement)
    by_ours = sorted(trials, key=lambda trial: trial.value)
    same_order = [
        dataclasses.replace(trial, reference={"fid_10k": value})
        for trial, value in zip(by_ours, sorted(theirs), strict=True)
    ]
    assert rank_agreement(study, same_order).rho == pytest.approx(1) == rank_agreement(study, same_order).tau


def test_importance_counts_pruned_trials_too_and_sums_to_one(store):
    study = StudyState.reopen(store, "table5")
    trials = summarize(study).trials
    early, *_ = importances(study, trials)
    assert early.trials == sum(trial.repeats is None and bool(trial.probes) for trial in trials)
    assert sum(early.shares.values()) == pytest.approx(1) and "method.layers" not in early.shares
    assert {"layers", "guidance_scale"} <= set(early.shares)
    assert importances(study, trials)[0] == early  # no chance in it
    assert len(interactive(study, trials, most=100)) == 2


# --- the summary

TRIAL_KEYS = [
    "trial",
    "row",
    "params",
    "state",
    "reason",
    "steps",
    "metrics",
    "probes",
    "decisions",
    "repeats",
    "published",
    "history_key",
    "teacher_key",
    "teacher_steps",
    "cost",
]
STUDY_KEYS = ["study", "metric", "trials", "best", "not_clearly_worse", "pareto", "steps", "cost", "storage"]
COST_KEYS = ["own_device_s", "shared_device_s", "of_it_probes_device_s", "without_sharing_device_s"]
DECISION_KEYS = ["step", "value", "cutoff", "peers", "keep", "go_on", "rival", "difference", "error", "samples"]


def test_the_keys_of_the_json_stay(read):
    """Programs of others read what `--json` prints."""
    study, summary = read
    printed = json.loads(json.dumps(summary.as_dict()))
    assert list(printed) == STUDY_KEYS and list(printed["cost"]) == COST_KEYS
    assert list(printed["pareto"]) == ["steps", study.space.probe.name("is")]
    assert printed["steps"] == {"without_sharing": summary.steps.without_sharing}
    assert list(dataclasses.replace(summary.steps, computed=1).as_dict()) == ["without_sharing", "computed", "reused"]
    for trial, row in zip(summary.trials, printed["trials"], strict=True):
        assert list(row) == TRIAL_KEYS and list(row["cost"]) == COST_KEYS
        assert all(list(decision) == DECISION_KEYS for decision in row["decisions"])
        assert row["probes"] == [{"step": step, **metrics} for step, metrics in trial.probes.items()]
        assert row["metrics"].get(study.metric) == trial.value
    assert printed["best"] == printed["trials"][summary.best.number]


# --- tables and the page


def test_tables_say_the_same_in_three_formats(read):
    study, summary = read
    trials = tables.ordered(summary.trials)
    lines = tables.markdown(study, trials).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1 and len(lines) == len(trials) + 2
    assert len(list(csv.reader(io.StringIO(tables.as_csv(study, trials))))) == len(trials) + 1
    latex = tables.latex(study, trials, summary.best)
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert len(body) == 1 + sum(trial.repeats is None for trial in trials) and latex.count(r"\textbf") > 0
    assert not re.search(r"(?<!\\)[_#%]", "\n".join(body))
    frame = tables.probes_frame(trials)
    assert len(frame) == sum(len(trial.probes) for trial in trials) and study.metric in frame


class Links(HTMLParser):
    """The links and anchors of a page."""

    def __init__(self):
        super().__init__()
        self.links: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.ids |= {value for name, value in attributes if name == "id"}


def test_the_page_needs_nothing_but_itself(read, capsys):
    study, summary = read
    assert report_command.main([study.space.id, "--storage", study.store.uri]) == 0
    printed = capsys.readouterr().out
    folder = Path(study.store.uri, "studies", study.space.id)
    assert "report.html" in printed and "without sharing" in printed
    html = (folder / "report.html").read_text()
    page = Links()
    page.feed(html)
    assert page.links and all(link.startswith(("data:image/", "#")) for link in page.links)
    assert {link[1:] for link in page.links if link.startswith("#")} <= page.ids
    for trial in summary.trials:
        assert trial.state != "PRUNED" or trial.reason in html
    assert study.space.id in html and "plotly" in html
    names = {"table.md", "table.csv", "table.tex", "lineage.svg", "lineage.md", "plot.png", "plot.svg", "samples.png"}
    assert names <= {file.name for file in folder.iterdir()}


def test_cost_without_sharing_is_that_of_separate_trials(reproduced):
    study, summary = reproduced
    by_hand = 0.0
    for trial in summary.trials:
        age = 1 if trial.params["method.teacher.iterations"] == 50000 else 4
        by_hand += 2 * (trial.step + age) + 2 * len(trial.probes)  # two devices, a second for each step and probe
    assert summary.cost.alone == pytest.approx(by_hand)
    assert summary.cost.spent < by_hand


@pytest.mark.parametrize("probes", [0, 1])
def test_a_study_that_has_hardly_begun_has_a_report_all_the_same(probes, tmp_path):
    study = StudyState(space.load(SPACES / "table5.yaml", "smoke"), Store(str(tmp_path / "runs")))
    study.propose(study.space.trial({})[1], 0)
    if probes:
        study.probed(0, 1, dict.fromkeys(study.space.probe.reported, 5.0))
    files = report.write(study, summarize(study))
    assert files[0].name == "report.html" and study.space.id in files[0].read_text()


# --- lineage


def test_each_student_hangs_on_the_checkpoint_that_taught_it(read):
    study, summary = read
    family = lineage.trace(study, summary)
    teacher_keys = {
        student.trial.number: checkpoint.key for checkpoint in family.checkpoints for student in checkpoint.students
    }
    teacher_keys |= {student.trial.number: None for student in family.alone}
    distinct = [trial for trial in summary.trials if trial.repeats is None]
    assert teacher_keys == {trial.number: trial.teacher_key for trial in distinct}
    for students in [family.alone, *(checkpoint.students for checkpoint in family.checkpoints)]:
        pruned = [student.trial.step for student in students if student.trial.state == "PRUNED"]
        assert all(one >= other for one, other in pairwise(pruned))
    lines = lineage.markdown(family).splitlines()
    assert len(lines) == 2 + len(family.checkpoints) + bool(family.alone)


def texts(drawing: str) -> list[tuple[float, float, str, str]]:
    """Every line of text: x, y, anchor, text."""
    lines = []
    for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text"):
        words = "".join(t for e in element.iter() if not e.tag.endswith("title") for t in ((e.text or ""),))
        tails = "".join(e.tail or "" for e in element if not e.tag.endswith("title"))
        lines.append((float(element.get("x")), float(element.get("y")), element.get("text-anchor"), words + tails))
    return lines


@pytest.mark.parametrize("trials", [3, 400])
def test_the_lineage_of_any_size_is_legible(trials, on_trust):
    study, summary = simulated(trials)
    drawing = lineage_svg.drawing(lineage.trace(study, summary))
    lines: dict[float, list[tuple[float, float]]] = {}
    for x, y, anchor, words in texts(drawing):
        wide = 6.4 * len(words)  # of 12 pixels
        left = {"start": x, "middle": x - wide / 2, "end": x - wide}[anchor]
        assert left >= 0 and left + wide <= lineage_svg.WIDTH + 40, words
        lines.setdefault(y, []).append((left, left + wide))
    for spans in lines.values():
        assert all(one[1] <= other[0] + 8 for one, other in pairwise(sorted(spans)))
    if trials > 100:
        assert "more" in drawing and float(ET.fromstring(drawing).get("height")) < 4000


def test_a_large_study_keeps_its_pictures_legible(on_trust):
    study, summary = simulated(400)
    figure = plots.curves(study, summary)
    assert len(figure.axes) == 1  # nothing was measured in time
    assert sum(len(line.get_segments()) for line in figure.axes[0].collections if hasattr(line, "get_segments")) >= 399
    assert plots.samples(study, summary) is None
    assert importances(study, summary.trials)[0].trials == sum(trial.repeats is None for trial in summary.trials)


# --- notebooks


def test_there_are_three_notebooks_without_outputs():
    assert len(NOTEBOOKS) == 3
    for path in NOTEBOOKS:
        for cell in nbformat.read(path, as_version=4).cells:
            assert cell.cell_type != "code" or (cell.outputs == [] and cell.execution_count is None), path.name
            assert "def " not in cell.source and "lambda" not in cell.source


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_its_folder(path, store, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYSWEEP_STORAGE", store.uri)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [kind for output in outputs for kind in output.get("data", {}) if kind.startswith("image/")]
    assert len(shown) >= 2 and not [output for output in outputs if output.output_type == "error"]
