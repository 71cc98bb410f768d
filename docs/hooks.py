"""MkDocs hooks: two pages made from the code, and copies of the repository's files that pages link to."""

from __future__ import annotations

import argparse
import os
import posixpath
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"  # the width at which argparse prints help

# ruff: noqa: E402
from mkdocs.structure.files import File, Files

from raysweep.cli import VERBS, command
from raysweep.space.schema import json_schema

COMMANDS, KEYS = "reference/commands.md", "reference/keys.md"
PAGES = {"benchmarks/README.md": "benchmarks.md"}  # files outside docs/ that are pages of the site
UPWARD = re.compile(r"\]\(((?:\.\./)+[\w./-]+)")  # the beginning of a link that leaves its own folder


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and a copy of each file outside docs/ that a page links to."""
    for name, content in ((COMMANDS, commands()), (KEYS, keys())):
        files.append(File.generated(config, name, content=content))
    for source, name in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](../docs/", "](")
        files.append(File.generated(config, name, content=text))
    outside = set()
    for page in files.documentation_pages():
        if page.abs_src_path:
            text = Path(page.abs_src_path).read_text(encoding="utf-8")
            outside |= {path for link in UPWARD.findall(text) if (path := _outside(page.src_uri, link))}
    for path in sorted(outside - set(PAGES)):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point links to files outside docs/ at their copies."""

    def copy_of(link: re.Match[str]) -> str:
        path = _outside(page.file.src_uri, link[1])
        if path is None:
            return link[0]
        target = PAGES.get(path, f"files/{path}")
        return f"]({posixpath.relpath(target, posixpath.dirname(page.file.src_uri) or '.')}"

    return UPWARD.sub(copy_of, markdown)


def _outside(page: str, link: str) -> str | None:
    """The path from the repository's root of a file that `link` names, or None where it lies inside docs/."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), link))
    return None if path.startswith("docs/") else path


def commands() -> str:
    """A section for each command: its help."""
    parts = [
        "# Commands",
        "`raysweep VERB` and `python -m raysweep VERB` are the same command. "
        "[The command line](command_line.md) says what all of them share: exit codes, JSON, storage addresses.",
    ]
    for verb in VERBS:
        parts += [f"## {verb}", *_help(command(verb).parser())]
    return "\n\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser) -> list[str]:
    parts = [f"```text\n{parser.format_help().strip()}\n```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, subparser in action.choices.items():
                parts += [f"### {parser.prog.split()[-1]} {name}", *_help(subparser)]
    return parts


def keys() -> str:
    """A table for each mapping of a search space, from its JSON Schema."""
    whole = json_schema()
    parts = [
        "# Keys of a search space",
        "This page is made from the [JSON Schema](../schema/search-space.json). An editor completes the keys if the "
        "first line of the file is `# yaml-language-server: $schema=PATH`. Below `trial` each value may be a domain "
        "(`choice`, `uniform`, `log_uniform`, `integers`). [Search spaces, key by key](search_spaces.md) explains "
        "them.",
        *_table("the file", whole),
    ]
    for name in ("Trial", *sorted(set(whole["$defs"]) - {"Trial"})):
        parts += _table(name, whole["$defs"][name])
    return "\n\n".join(parts) + "\n"


def _table(name: str, definition: dict[str, Any]) -> list[str]:
    description = definition.get("description", "").replace("\n", " ")
    lines = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for key, value in definition.get("properties", {}).items():
        default = "" if value.get("default") is None else f"`{value['default']}`"
        about = value.get("description", "").replace("|", "\\|")
        lines.append(f"| `{key}` | {_kind(value)} | {default} | {about} |")
    return [f"## {name}", *([description] if description else []), "\n".join(lines)]


def _kind(value: dict[str, Any]) -> str:
    """The values that a key may have, domains left out."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{member}`" for member in value["enum"])
    members = [member for member in value.get("anyOf", []) if not _is_domain(member)]
    if members:
        return " or ".join(dict.fromkeys(map(_kind, members)))
    if value.get("type") == "array":
        items = value.get("prefixItems") or [value.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(map(_kind, items)))
    return {"object": "mapping", "null": "nothing"}.get(value.get("type", "anything"), value.get("type", "anything"))


def _is_domain(value: dict[str, Any]) -> bool:
    return bool({"choice", "uniform", "log_uniform", "integers"} & set(value.get("properties", {})))
