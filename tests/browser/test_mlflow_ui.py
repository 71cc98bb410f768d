"""What a user sees of a sweep: MLflow's pages and the report in a real Chromium. `make browser`.

The study is a small one that is trained here. With RAYSWEEP_STORAGE it is `table5-reproduced` of that store. With
RAYSWEEP_SCREENSHOTS a picture of each page goes to that folder.
"""

import importlib.util
import json
import os
import re
import shutil
import urllib.parse
from pathlib import Path

import lanes
import pytest
from mlflow.tracking import MlflowClient
from servers import MlflowServer

from raysweep.commands import sync_mlflow
from raysweep.report import report
from raysweep.space import space
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from raysweep.study.summary import summarize

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PLAYWRIGHT = importlib.util.find_spec("playwright")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not PLAYWRIGHT, reason="needs playwright: pip install -e '.[browser]'"),
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium: apt-get install chromium"),
]
TABLE5 = Path(__file__).parents[2] / "search_spaces" / "table5.yaml"
STUDY = "table5-reproduced"


@pytest.fixture(scope="module")
def study(tmp_path_factory, cache) -> StudyState:
    if storage := os.environ.get("RAYSWEEP_STORAGE"):
        return StudyState.reopen(Store(storage), STUDY)
    folder = tmp_path_factory.mktemp("browser")
    (folder / "runs").mkdir()
    (folder / "runs" / "cache").symlink_to(cache)
    # Four trials: the report draws its interactive plots from four on.
    rows = ["{set: {}, fid: 22.91}", "{set: {method.layers: [8, 4]}}"]
    rows += [f"{{set: {{method.guidance_scale: {scale}}}}}" for scale in (1.0, 60.0)]
    overrides = ["search.mode=reproduce", f"study={STUDY}", "trial.iterations=200000", f"enqueue=[{', '.join(rows)}]"]
    study = StudyState(space.load(TABLE5, "smoke", overrides), Store(str(folder / "runs")))
    lanes.sweep(study, cache)
    return study


@pytest.fixture(scope="module")
def server(tmp_path_factory, study):
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    command = [study.space.id, "--storage", study.store.uri, "--tracking-uri", server.uri]
    assert sync_mlflow.main(command) == 0
    yield server
    server.kill()


@pytest.fixture(scope="module")
def page():
    from playwright.sync_api import sync_playwright  # the suite skips where it is not installed

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.set_default_timeout(60_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def runs(server, study, page) -> dict[str, str]:
    """MLflow's run ids by raysweep's names. Also switches the page to MLflow's view for training and closes its
    assistant."""
    client = MlflowClient(server.uri)
    logged = client.search_runs([experiment(server, study)], max_results=1000)
    page.goto(f"{server.uri}/#/experiments/{experiment(server, study)}/runs")
    page.get_by_text("Model training").first.click()
    page.get_by_role("heading", name="Runs", exact=True).wait_for()
    for button in page.locator('button[aria-label="Close"]').all():
        button.click()
    return {run.data.tags["raysweep.identity"]: run.info.run_id for run in logged}


def experiment(server, study) -> str:
    return MlflowClient(server.uri).get_experiment_by_name(study.space.id).experiment_id


def screenshot(page, name: str) -> None:
    if folder := os.environ.get("RAYSWEEP_SCREENSHOTS"):
        page.wait_for_timeout(3000)
        page.screenshot(path=Path(folder, f"{name}.png"))


def test_three_runs_are_compared_with_their_metric_charts(server, study, page, runs):
    three = [runs[f"trial {number}"] for number in range(3)]
    query = f"runs={urllib.parse.quote(json.dumps(three))}"
    query += f"&experiments={urllib.parse.quote(json.dumps([experiment(server, study)]))}"
    page.goto(f"{server.uri}/#/compare-runs?{query}")
    page.get_by_text("Comparing 3 Runs").wait_for()
    for number in range(3):
        page.get_by_text(re.compile(rf"^trial {number}: ")).first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    screenshot(page, "compare")
    page.goto(f"{server.uri}/#/experiments/{experiment(server, study)}/runs?compareRunsMode=CHART")
    page.get_by_text(study.metric, exact=True).first.wait_for()
    page.locator(".ag-row button").first.click()  # opens the sweep's run: its trials are nested below it
    page.get_by_text(re.compile("^trial 0: ")).first.wait_for()
    page.get_by_text("grad_norm", exact=True).first.wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    screenshot(page, "charts")


def test_the_sweep_s_page_has_table_and_report(server, study, page, runs):
    page.goto(f"{server.uri}/#/experiments/{experiment(server, study)}/runs/{runs['sweep']}/artifacts")
    page.get_by_text("report.html").first.click()
    page.frame_locator("iframe").get_by_role("heading", name=study.space.id).wait_for()
    screenshot(page, "sweep")


def test_a_student_leads_to_its_teacher(server, study, page, runs):
    page.goto(f"{server.uri}/#/experiments/{experiment(server, study)}/runs/{runs['trial 1']}")
    page.get_by_text("Taught by").wait_for()
    screenshot(page, "student")
    with page.expect_popup() as opened:
        page.get_by_role("link", name=re.compile("^teacher vae_align .* at step")).click()
    teacher = opened.value
    teacher.get_by_text(re.compile("^teacher vae_align")).first.wait_for()
    assert teacher.url.rpartition("/")[2] in {run for name, run in runs.items() if name.startswith("teacher")}
    teacher.get_by_text(re.compile("^teacher-vae_align-step-")).first.wait_for()
    screenshot(teacher, "teacher")
    teacher.close()


def test_the_sample_grid_of_each_rung_is_shown(server, study, page, runs):
    page.goto(f"{server.uri}/#/experiments/{experiment(server, study)}/runs/{runs['trial 0']}/model-metrics")
    page.get_by_text(study.metric, exact=True).first.wait_for()
    thumb = page.get_by_role("slider")
    page.mouse.move(700, 600)
    while not thumb.count():  # cards below the window are not in the page before it is scrolled to them
        page.mouse.wheel(0, 600)
        page.wait_for_timeout(200)
    page.get_by_text("Add section").first.scroll_into_view_if_needed()
    track = page.locator("span[data-orientation=horizontal]").first.bounding_box()
    for part in (0.98, 0.55):  # of the way to the last rung
        page.mouse.click(track["x"] + part * track["width"], track["y"] + track["height"] / 2)
        picture = page.locator("img[src*=samples]").last
        picture.wait_for()
        assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 50
    picture.scroll_into_view_if_needed()
    screenshot(page, "samples")


def test_the_report_opens_without_a_network(study, page):
    files = report.write(study, summarize(study))
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(files[0].resolve().as_uri())
    page.get_by_role("heading", name="Pruned, and why").wait_for()
    page.locator(".js-plotly-plot").first.wait_for()
    for image in page.locator("img").all():
        assert image.evaluate("image => image.naturalWidth") > 0
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    screenshot(page, "report")
