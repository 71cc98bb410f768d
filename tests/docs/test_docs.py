"""The documentation can be followed: links lead somewhere, commands parse, names exist, examples run, it builds."""

import ast
import contextlib
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from docs.pages import DOCS, PAGES, ROOT, SPACES, blocks, commands, commands_of_spaces, page_name, text_of

import raysweep
from raysweep.cli import VERBS, command
from raysweep.space.runs import student
from raysweep.space.space import load
from raysweep.store.history import key

GENERATED = {DOCS / "reference/commands.md", DOCS / "reference/keys.md"}  # by docs/hooks.py
OLD_NAMES = DOCS / "reference/moved.md"  # the one page that shows commands of earlier versions
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef

LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:python -m raysweep\.|\braysweep )([a-z][\w-]*)\b([^|`\n]*)")
STEP = re.compile(r"`((?:raysweep|trainables)/[\w/]+\.py)`,\s+`([\w.]+)`")


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def raysweep_commands() -> list[tuple[str, str, list[str]]]:
    """(page, verb, arguments) of every raysweep command in the pages and at the head of search spaces."""
    lines = [(page.name, line) for page in PAGES for line in commands(page)]
    lines += [(path.name, line) for path, line in commands_of_spaces()]
    return [
        (page, verb, shlex.split(rest.replace("'", "")))
        for page, line in lines
        for verb, rest in COMMAND.findall(line)
        if verb in VERBS
    ]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(text_of(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target in GENERATED:
            continue
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def test_there_are_commands_to_check():
    verbs = {verb for _, verb, _ in raysweep_commands()}
    assert len(raysweep_commands()) >= 30 and verbs >= set(VERBS) - {"schema"}


@pytest.mark.parametrize(
    "page, verb, arguments", raysweep_commands(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_parses_and_its_files_are_there(page, verb, arguments):
    parser = command(verb).parser()
    parser.exit_on_error = False
    parser.parse_args(arguments)
    for word in arguments:
        if word.endswith((".yaml", ".sh")):
            assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", [page for page in PAGES if page != OLD_NAMES], ids=page_name)
def test_commands_have_one_form(page):
    assert set(re.findall(r"python -m raysweep\.(\w+)", text_of(page))) <= {"run"}
    assert "raysweep run SPACE" not in text_of(page) or page.name == "command_line.md"


def test_every_verb_and_make_target_is_documented():
    page = text_of(DOCS / "reference/command_line.md")
    for verb in VERBS:
        assert f"raysweep {verb}" in page, verb
    targets = re.findall(r"^([a-z]+):", text_of(ROOT / "Makefile"), re.M)
    for name in re.findall(r"`make ([a-z]+)`", "".join(map(text_of, PAGES))):
        assert name in targets


def test_the_readme_is_short():
    assert len(text_of(ROOT / "README.md").split()) < 1200


def test_pages_that_code_and_cluster_files_name_are_there():
    files = [*(ROOT / "raysweep").rglob("*.py"), *(ROOT / "deploy").iterdir(), ROOT / "cluster.yaml", *SPACES]
    for file in files:
        for name, anchor in re.findall(r"\b(docs/[\w/.-]+\.md)(?:#([\w-]+))?", text_of(file)):
            assert (ROOT / name).exists(), f"{file}: {name}"
            assert not anchor or anchor in anchors(ROOT / name), f"{file}: {name}#{anchor}"


def test_every_room_is_in_the_architecture():
    text = text_of(DOCS / "architecture.md")
    for path in [*(ROOT / "raysweep").iterdir(), *(ROOT / "trainables").iterdir()]:
        if path.suffix == ".py" and not path.name.startswith("_"):
            assert path.name in text, path
        if (path / "__init__.py").exists():
            assert f"{path.name}/" in text, path


def test_there_are_walks_to_check():
    assert len(STEP.findall(text_of(DOCS / "architecture.md"))) >= 30


@pytest.mark.parametrize("file, name", STEP.findall(text_of(DOCS / "architecture.md")))
def test_every_step_of_a_walk_is_in_the_code(file, name):
    nodes = ast.parse(text_of(ROOT / file)).body
    for part in name.split("."):
        members = {node.name: node for node in nodes if isinstance(node, DEFINITIONS)}
        assert part in members, f"{file} has no {name}"
        nodes = members[part].body


def test_the_keys_in_the_glossary_are_those_of_row_7():
    space = load(ROOT / "search_spaces/table5.yaml", "laptop")
    run = student(space, space.trial(space.rows[6].set)[0])
    teacher = run.phases[0].teacher
    for name in (space.id, key(run, 50)[:8], key(teacher.run, teacher.step)[:8]):
        assert name in text_of(DOCS / "reference/glossary.md")


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=page_name)
def test_python_in_the_pages_uses_names_that_exist(page):
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "raysweep":
                assert hasattr(raysweep, node.attr), node.attr


@pytest.mark.ray
@pytest.mark.slow
def test_the_python_of_the_tutorial_runs(tmp_path):
    (tmp_path / "search_spaces").symlink_to(ROOT / "search_spaces")
    script = "\n".join(blocks(DOCS / "tutorial.md", "python"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    tutorial = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500
    )
    assert tutorial.returncode == 0, tutorial.stderr[-3000:]
    assert "COMPLETE" in tutorial.stdout and "snapshot.safetensors" in tutorial.stdout
    assert (tmp_path / "curves.png").exists()


def test_the_site_builds_without_a_warning(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert build.returncode == 0, build.stderr[-3000:]
    for page in ("index", "tutorial", "how-to/results", "reference/commands", "reference/python", "architecture"):
        text = text_of(tmp_path / "site" / f"{page}.html")
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", text), page
    assert "sync-mlflow" in text_of(tmp_path / "site/reference/commands.html")
    assert "guidance_scale" in text_of(tmp_path / "site/reference/keys.html")
    assert (tmp_path / "site/schema/search-space.json").exists()


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """mkdocs.yml without its tags."""

    navigation = str(yaml.load(text_of(ROOT / "mkdocs.yml"), Loader)["nav"])
    for page in DOCS.rglob("*.md"):
        assert str(page.relative_to(DOCS)) in navigation, page


def new_names() -> list[str]:
    """The full names in the right column of the table of names that moved."""
    rows = text_of(OLD_NAMES).partition("## Python names")[2].partition("## Words")[0].splitlines()
    cells = [row.split("|")[2] for row in rows if row.startswith("| `")]
    return [name for cell in cells for name in re.findall(r"`((?:raysweep|trainables)\.[\w.]+)`", cell)]


@pytest.mark.parametrize("name", new_names())
def test_every_new_name_on_the_page_exists(name):
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            value = importlib.import_module(".".join(parts[:length]))
            break
    for part in parts[length:]:
        value = getattr(value, part)
