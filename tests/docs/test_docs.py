"""The documentation can be followed: it builds, its links lead somewhere, its commands are commands."""

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raysweep.cli import VERBS, command
from raysweep.space.runs import student
from raysweep.space.space import load
from raysweep.store.history import key

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    ROOT / "benchmarks/README.md",
]
SPACES = sorted((ROOT / "search_spaces").glob("*.yaml"))
GENERATED = {ROOT / "docs/reference/commands.md", ROOT / "docs/reference/keys.md"}  # by docs/hooks.py
DEFINITIONS = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
LINK = re.compile(r"(?<!`)!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:python -m raysweep\.|\braysweep )([a-z][\w-]*)\b([^|`\n]*)")
CHOICES = re.compile(r"[…\[]|\b[a-z]+\|[a-z]+")  # a synopsis: it shows what may stand there


def anchors(page: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if target in GENERATED:
            continue
        assert target.exists(), link
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), link


def written() -> list[tuple[str, str]]:
    """(where, command line) of each command in a block of code, and of those that search spaces name."""
    found = []
    for page in PAGES:
        for block in re.findall(r"^```(?:\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
            found += [(page.name, line) for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines()]
    for path in SPACES:
        found += [
            (path.name, line.partition("Command")[2]) for line in path.read_text().splitlines() if "# Command" in line
        ]
    return found


def commands() -> list[tuple[str, str, list[str]]]:
    parsed = []
    for where, line in written():
        for name, rest in COMMAND.findall(line):
            rest = re.split(r"\s{2,}|\s#|'\s*$|[()]", rest.partition(" [--profile laptop]")[0])[0].replace("\\", "")
            if not CHOICES.search(rest) and name in VERBS:
                parsed.append((where, name, [word for word in shlex.split(rest.replace("'", "")) if word]))
    return parsed


def test_there_are_commands_to_check():
    assert len(commands()) >= 20 and {"run", "report", "store", "sync-mlflow", "prepare"} <= {
        c for _, c, _ in commands()
    }


@pytest.mark.parametrize("where, name, words", commands(), ids=lambda value: value if isinstance(value, str) else None)
def test_every_command_is_understood_and_its_files_are_there(where, name, words):
    parser = command(name).parser()
    parser.exit_on_error = False
    parser.parse_args(words)  # exits where it is not
    for word in words:
        if word.endswith((".yaml", ".sh")) and "*" not in word:
            assert (ROOT / word).exists() or word.isupper() or "FILE" in word, word


def test_every_command_and_make_target_that_is_offered_is_documented():
    page = (ROOT / "docs/reference/command_line.md").read_text(encoding="utf-8")
    for name in VERBS:
        assert f"raysweep {name}" in page, name
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M)
    for named in re.findall(r"`make ([a-z]+)`", "".join(page.read_text(encoding="utf-8") for page in PAGES)):
        assert named in targets


def test_every_room_of_raysweep_is_in_the_architecture():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "raysweep").glob("*")):
        if not path.name.startswith("_"):
            assert (path.name if path.suffix == ".py" else f"{path.name}/") in text, path.name


def steps() -> list[tuple[str, str]]:
    """(file, name) of each step of the walks through the code."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    return re.findall(r"`((?:raysweep|trainables)/[\w/]+\.py)`,\s+`([\w.]+)`", text)


def test_there_are_walks_to_check():
    assert len(steps()) >= 30


@pytest.mark.parametrize("file, name", steps())
def test_every_step_of_a_walk_is_in_the_code(file, name):
    nodes = ast.parse((ROOT / file).read_text(encoding="utf-8")).body
    for part in name.split("."):
        members = {
            node.name: node for node in nodes if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        }
        assert part in members, f"{file} has no {name}"
        nodes = members[part].body


def test_the_keys_of_the_glossary_are_those_of_row_7():
    space = load(ROOT / "search_spaces/table5.yaml", "laptop")
    run = student(space, space.trial(space.rows[6].set)[0])
    teacher = run.phases[0].teacher
    text = (ROOT / "docs/reference/glossary.md").read_text(encoding="utf-8")
    for name in (space.id, key(run, 50)[:8], key(teacher.run, teacher.step)[:8]):
        assert name in text


def test_the_site_builds_without_a_warning(tmp_path):
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    for page in ("index", "tutorial", "how-to/results", "reference/commands", "reference/python", "architecture"):
        text = (tmp_path / "site" / f"{page}.html").read_text(encoding="utf-8")
        assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", text), page
    assert "sync-mlflow" in (tmp_path / "site" / "reference" / "commands.html").read_text()
    assert "guidance_scale" in (tmp_path / "site" / "reference" / "keys.html").read_text()
    assert (tmp_path / "site" / "schema" / "search-space.json").exists()


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        pass

    nav = str(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    for page in (ROOT / "docs").rglob("*.md"):
        assert str(page.relative_to(ROOT / "docs")) in nav, page


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 1200


def test_pages_that_code_and_cluster_files_name_are_there():
    files = [*(ROOT / "raysweep").rglob("*.py"), *(ROOT / "deploy").iterdir(), ROOT / "cluster.yaml", *SPACES]
    for file in files:
        for name, anchor in re.findall(r"\b(docs/[\w/.-]+\.md)(?:#([\w-]+))?", file.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{file}: {name}"
            assert not anchor or anchor in anchors(ROOT / name), f"{file}: {name}#{anchor}"
