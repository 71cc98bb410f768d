"""What people read of a study: pictures, tables, the page, the lineage, the notebooks. Real training, no Ray."""

import csv
import io
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
from raysweep.report.agreement import agreement
from raysweep.report.importance import importances, interactive
from raysweep.report.plots.axes import panels
from raysweep.space import space
from raysweep.space.configurations import configurations
from raysweep.store.store import Store
from raysweep.study import summary
from raysweep.study.state import StudyState
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
def read(request, store) -> tuple[StudyState, dict]:
    study = StudyState.reopen(store, request.param)
    return study, summary.summary(study)


@pytest.fixture
def reproduced(store) -> tuple[StudyState, dict]:
    study = StudyState.reopen(store, "table5-reproduced")
    return study, summary.summary(study)


@pytest.fixture
def on_trust(monkeypatch):
    """For this test alone: whoever comes after it in this process knows data by its content again."""
    monkeypatch.setattr(catalog, "TRUSTED", {})


def simulated(trials: int) -> tuple[StudyState, dict]:
    trust_names()
    wide = space.load(SPACES / "table5.yaml", "cluster", [f"search.trials={trials}"])
    study = simulate(wide, list(configurations(wide, []))[:trials], Synthetic(), lanes=50).study
    return study, summary.summary(study)


# --- pictures


def test_every_picture_can_be_read(read):
    """Each axis says what it is, nothing lies outside, and the words on an axis do not touch."""
    study, result = read
    figures = plots.pictures(study, result)
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
    study, result = reproduced
    for kind in ("svg", "png"):
        one, other = io.BytesIO(), io.BytesIO()
        plots.save(plots.curves(study, result), one, kind)
        plots.save(plots.curves(study, result), other, kind)
        assert one.getvalue() == other.getvalue()


def test_a_panel_holds_what_differs_in_that_parameter_alone(reproduced):
    study, result = reproduced
    found = {panel.path: panel for panel in panels(study, result["trials"])}
    values = {path: [value for value, _, _ in panel.shown] for path, panel in found.items()}
    assert values == {
        "method.guidance_scale": [1.0, 30.0, 60.0],
        "method.layers": [[8, 4], [8, 6]],
        "method.stop": [50000, 100000, "never"],
        "method.teacher.iterations": [50000, 200000],
    }
    assert all(panel.step is None for panel in found.values())  # all complete: at their ends
    for panel in found.values():
        for value, row, probe in panel.shown:
            assert row["params"][panel.path] == value and probe[study.metric] == row["metrics"][study.metric]


def test_an_exploration_is_compared_where_all_have_come_to(store):
    study = StudyState.reopen(store, "table5")
    rows = summary.summary(study)["trials"]
    first = min(row["probes"][0]["step"] for row in rows if row["probes"])
    assert any(row["state"] == "PRUNED" for row in rows)
    assert agreement(study, rows).step == first
    assert {panel.step for panel in panels(study, rows)} == {first}


def test_stops_are_set_beside_runs_of_the_same_length(store):
    study = StudyState.reopen(store, "figure8")
    figure = plots.stops(study, summary.summary(study))
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["method self_guided", "method repa"]
    for axes in figure.axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["1 → 3", "2 → 4", "3 → 5", "4 → 6"]
        assert [len(line.get_xdata()) for line in axes.lines if line.get_label() == "_nolegend_"][:1] == [4]


def test_agreement_is_that_of_the_ranks(reproduced):
    study, result = reproduced
    found = agreement(study, result["trials"])
    rows = [row for row in result["trials"] if "fid_10k" in row["published"]]
    theirs, ours = [r["published"]["fid_10k"] for r in rows], [r["metrics"][study.metric] for r in rows]
    assert len(rows) == 5 and [row["trial"] for row, _, _ in found.pairs] == [row["trial"] for row in rows]
    assert found.rho == pytest.approx(stats.spearmanr(theirs, ours).statistic)
    assert found.tau == pytest.approx(stats.kendalltau(theirs, ours).statistic)
    assert "n = 5" in str(found)
    by_ours = sorted(rows, key=lambda row: row["metrics"][study.metric])
    for row, published in zip(by_ours, sorted(theirs), strict=True):
        row["published"]["fid_10k"] = published
    assert agreement(study, result["trials"]).rho == pytest.approx(1) == agreement(study, result["trials"]).tau


def test_importance_counts_pruned_trials_too_and_sums_to_one(store):
    study = StudyState.reopen(store, "table5")
    result = summary.summary(study)
    early, *_ = importances(study, result["trials"])
    assert early.trials == sum(row["repeats"] is None and bool(row["probes"]) for row in result["trials"])
    assert sum(early.shares.values()) == pytest.approx(1) and "method.layers" not in early.shares
    assert {"layers", "guidance_scale"} <= set(early.shares)
    assert importances(study, result["trials"])[0] == early  # no chance in it
    assert len(interactive(study, result["trials"], most=100)) == 2


# --- tables and the page


def test_tables_say_the_same_in_three_formats(read):
    study, result = read
    rows = tables.ordered(result["trials"], study.metric)
    lines = tables.markdown(study, rows).splitlines()
    assert len({line.count(" | ") for line in lines}) == 1 and len(lines) == len(rows) + 2
    assert len(list(csv.reader(io.StringIO(tables.as_csv(study, rows))))) == len(rows) + 1
    latex = tables.latex(study, rows, result["best"])
    body = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert len({line.count(" & ") for line in body}) == 1
    assert len(body) == 1 + sum(row["repeats"] is None for row in rows) and latex.count(r"\textbf") > 0
    assert not re.search(r"(?<!\\)[_#%]", "\n".join(body))
    frame = tables.frame(study, rows)
    assert len(frame) == sum(len(row["probes"]) for row in rows) and study.metric in frame


class Links(HTMLParser):
    """Where a page leads."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag, attributes):
        self.found += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        self.ids |= {value for name, value in attributes if name == "id"}


def test_the_page_needs_nothing_but_itself(read, capsys):
    study, result = read
    assert report_command.main([study.space.id, "--storage", study.store.uri]) == 0
    told = capsys.readouterr().out
    folder = Path(study.store.uri, "studies", study.space.id)
    assert "report.html" in told and "without sharing" in told
    html = (folder / "report.html").read_text()
    page = Links()
    page.feed(html)
    assert page.found and all(link.startswith(("data:image/", "#")) for link in page.found)
    assert {link[1:] for link in page.found if link.startswith("#")} <= page.ids
    for row in result["trials"]:
        assert row["state"] != "PRUNED" or row["reason"] in html
    assert study.space.id in html and "plotly" in html
    names = {"table.md", "table.csv", "table.tex", "lineage.svg", "lineage.md", "plot.png", "plot.svg", "samples.png"}
    assert names <= {file.name for file in folder.iterdir()}


def test_cost_without_sharing_is_what_each_alone_would_have_taken(reproduced):
    study, result = reproduced
    cost = result["cost"]
    by_hand = 0.0
    for row in result["trials"]:
        age = 1 if row["params"]["method.teacher.iterations"] == 50000 else 4
        by_hand += 2 * (row["steps"] + age) + 2 * len(row["probes"])  # two devices, a second for each step and probe
    assert cost["without_sharing_device_s"] == pytest.approx(by_hand)
    assert cost["own_device_s"] + cost["shared_device_s"] < by_hand


@pytest.mark.parametrize("probes", [0, 1])
def test_a_study_that_has_hardly_begun_has_a_report_all_the_same(probes, tmp_path):
    study = StudyState(space.load(SPACES / "table5.yaml", "smoke"), Store(str(tmp_path / "runs")))
    study.propose(study.space.trial({})[1], 0)
    if probes:
        study.probed(0, 1, dict.fromkeys(study.space.probe.reported, 5.0))
    files = report.write(study, summary.summary(study))
    assert files[0].name == "report.html" and study.space.id in files[0].read_text()


# --- lineage


def test_each_student_hangs_on_the_checkpoint_that_taught_it(read):
    study, result = read
    family = lineage.trace(study, result)
    taught = {student.trial: each.key for each in family.checkpoints for student in each.students}
    taught |= {student.trial: None for student in family.alone}
    expected = [row for row in result["trials"] if row["repeats"] is None]
    assert taught == {row["trial"]: row["teacher_key"] for row in expected}
    for students in [family.alone, *(each.students for each in family.checkpoints)]:
        pairs = [(one, other) for one, other in pairwise(students) if one.state == other.state == "PRUNED"]
        assert all(one.steps >= other.steps for one, other in pairs)
    lines = lineage.markdown(family).splitlines()
    assert len(lines) == 2 + len(family.checkpoints) + bool(family.alone)


def texts(drawing: str) -> list[tuple[float, float, str, str]]:
    """Every line of text: x, y, anchor, words."""
    found = []
    for element in ET.fromstring(drawing).iter("{http://www.w3.org/2000/svg}text"):
        words = "".join(t for e in element.iter() if not e.tag.endswith("title") for t in ((e.text or ""),))
        tails = "".join(e.tail or "" for e in element if not e.tag.endswith("title"))
        found.append((float(element.get("x")), float(element.get("y")), element.get("text-anchor"), words + tails))
    return found


@pytest.mark.parametrize("trials", [3, 400])
def test_the_lineage_of_any_size_is_legible(trials, on_trust):
    study, result = simulated(trials)
    drawing = lineage_svg.drawing(lineage.trace(study, result))
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
    study, result = simulated(400)
    figure = plots.curves(study, result)
    assert len(figure.axes) == 1  # nothing was measured in time
    assert sum(len(line.get_segments()) for line in figure.axes[0].collections if hasattr(line, "get_segments")) >= 399
    assert plots.samples(study, result) is None
    assert importances(study, result["trials"])[0].trials == sum(row["repeats"] is None for row in result["trials"])


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
