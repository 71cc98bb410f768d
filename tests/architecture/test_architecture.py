"""What keeps the house in order: sizes, imports, and nothing of one machine in a commit."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for package in ("raysweep", "trainables") for p in (ROOT / package).rglob("*.py"))
LIMITS = {"raysweep": 300, "trainables": 400}
FUNCTION_LINES = 60
IMPORTS_INSIDE = {
    ("raysweep/launch.py", "_host"): "keeps torch out of the driver",
    ("raysweep/run.py", "_run"): "a plan needs no Ray",
    ("raysweep/checkup.py", "_actor"): "keeps torch out of the driver",
    ("raysweep/sweep.py", "sweep"): "imported while lanes come up",
    ("raysweep/sweep.py", "_tell_all"): "imported while lanes come up",
    ("raysweep/sweep.py", "_proposals"): "imported while lanes come up",
    ("raysweep/lane.py", "work"): "keeps the science out of Ray Train's controller",
}
LIGHT = ["trainables.spec", "trainables.catalog", "raysweep.space", "raysweep.history", "raysweep.store"]
LIGHT += [
    "raysweep.study",
    "raysweep.dispatch",
    "raysweep.schedulers",
    "raysweep.results",
    "raysweep.launch",
    "raysweep.run",
]


def functions(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_small(path: Path):
    name = path.relative_to(ROOT)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LIMITS[name.parts[0]]
    for function in functions(path):
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name
        imports = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not imports or (str(name), function.name) in IMPORTS_INSIDE, function.name


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_no_torch(module: str):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_ray_tune_and_ray_train_have_one_home_each():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        if path.name != "search.py":
            assert not re.search(r"^\s*(from|import) ray\.tune|^from ray import tune", text, re.M), path
        if path.name != "lane.py":
            assert not re.search(r"^\s*(from|import) ray\.train", text, re.M), path


def test_no_path_of_a_machine_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    texts = {".py", ".yaml", ".md", ".toml", ".txt", ".cfg", ".ipynb", ""}
    for name in listed:
        if Path(name).suffix in texts and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(work|root|home)/\w", text), name
