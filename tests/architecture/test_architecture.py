"""What keeps the house in order: rooms, sizes, imports, and nothing of one machine in a commit."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for package in ("raysweep", "trainables") for p in (ROOT / package).rglob("*.py"))
FUNCTION_LINES = 60
INTERFACE = ("load", "plan", "sweep", "open_study")
IMPORTS_INSIDE = {
    ("raysweep/execution/lanes.py", "_host"): "keeps torch out of the driver",
    ("raysweep/execution/lane.py", "work"): "keeps the science out of Ray Train's controller",
    ("raysweep/cluster/checkup.py", "_actor"): "keeps torch out of the driver",
    ("raysweep/commands/run.py", "_run"): "neither a plan nor a wrong space needs Ray",
    ("raysweep/commands/run.py", "_show"): "a plan needs no matplotlib",
    ("raysweep/driver.py", "_train"): "imported while worker groups come up",
    ("raysweep/driver.py", "_proposals"): "imported while worker groups come up",
    ("raysweep/driver.py", "_report"): "imported while worker groups come up",
    ("trainables/location.py", "_s3"): "boto3 comes with the extra `aws`",
    **{("raysweep/__init__.py", name): "importing raysweep takes milliseconds" for name in INTERFACE},
}
LIGHT = [
    "trainables.config",
    "trainables.datasets.catalog",
    "raysweep.space.space",
    "raysweep.space.schedulers",
    "raysweep.store.history",
    "raysweep.store.store",
    "raysweep.study.state",
    "raysweep.study.summary",
    "raysweep.execution.dispatcher",
    "raysweep.execution.lanes",
    "raysweep.commands.run",
]


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in SOURCES}


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def imported(path: Path) -> set[str]:
    """The modules of ours that a file imports anywhere in it, for type checking alone and inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                f"{node.module}.{alias.name}" if f"{node.module}.{alias.name}" in MODULES else node.module
                for alias in node.names
            }
    return names & MODULES.keys() - {module(path)}


def handed_on(path: Path) -> set[str]:
    """The names that a package's __init__ imports from its modules."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    return {
        alias.asname or alias.name
        for node in imports
        for alias in node.names
        if f"{node.module}.{alias.name}" not in MODULES
    }


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """A circle in a graph, or nothing."""
    done: set[str] = set()

    def follow(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for below in sorted(arrows.get(name, ())):
            if cycle := follow(below, [*way, name]):
                return cycle
        done.add(name)
        return []

    return next(filter(None, (follow(name, []) for name in sorted(arrows))), [])


def test_the_top_level_can_be_read_at_a_glance():
    entries = [p for p in (ROOT / "raysweep").iterdir() if p.name not in ("__init__.py", "__pycache__")]
    assert sum(entry.is_dir() for entry in entries) <= 10
    assert sum(entry.is_file() for entry in entries) <= 10


def test_no_modules_import_each_other_in_a_circle():
    # A package's __init__ only hands names on; an import of the package itself counts as one of its __init__.
    arrows = {name: imported(path) for name, path in MODULES.items()}
    assert not circle(arrows)


def test_no_packages_import_each_other_in_a_circle():
    def room(name: str) -> str:
        return ".".join(name.split(".")[:2])

    arrows: dict[str, set[str]] = {}
    for name, path in MODULES.items():
        if name not in ("raysweep", "trainables"):
            below = {room(other) for other in imported(path)} - {room(name)}
            arrows.setdefault(room(name), set()).update(below)
    assert not circle(arrows)


def test_importlib_loads_commands_and_nothing_else():
    for path in SOURCES:
        if path.name != "cli.py":
            assert not re.search(r"import_module|__import__", path.read_text(encoding="utf-8")), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_functions_are_short_and_import_nothing_without_a_reason(path: Path):
    for function in functions(path):
        assert function.end_lineno - function.lineno < FUNCTION_LINES, function.name
        imports = [node for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not imports or (str(path.relative_to(ROOT)), function.name) in IMPORTS_INSIDE, function.name


@pytest.mark.parametrize("name", LIGHT)
def test_light_modules_import_no_torch(name: str):
    code = f"import sys, {name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_importing_raysweep_starts_nothing():
    code = "import sys, raysweep; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"ray", "torch", "optuna", "mlflow", "pydantic", "pyarrow", "rich", "numpy"}


def test_no_module_bears_the_name_of_a_public_function():
    """Importing such a module would put it in the function's place."""
    for name, path in MODULES.items():
        if path.name == "__init__.py":
            names = {node.name for node in functions(path)} | handed_on(path)
            assert not {public for public in names if f"{name}.{public}" in MODULES}, name


def test_ray_tune_and_ray_train_have_one_home_each():
    for path in SOURCES:
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        if name != "raysweep/execution/tune.py":
            assert not re.search(r"^\s*(from|import) ray\.tune|^from ray import tune", text, re.M), path
        if name != "raysweep/execution/lane.py":
            assert not re.search(r"^\s*(from|import) ray\.train", text, re.M), path


def test_storage_is_read_and_written_by_one_library():
    """Two would read credentials, endpoints and URIs in two ways."""
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"pyarrow\.fs|from pyarrow import .*\bfs\b|import (boto3|fsspec|s3fs|gcsfs)", text), path


def test_no_path_of_a_machine_is_committed():
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    texts = {".py", ".yaml", ".md", ".toml", ".txt", ".cfg", ".ipynb", ""}
    for name in listed:
        if Path(name).suffix in texts and (ROOT / name).is_file():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(work|root|home)/\w", text), name
