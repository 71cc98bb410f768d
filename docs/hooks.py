"""What MkDocs does beside turning pages into HTML: the pages that are made from the code, and the files of the
repository that other pages point to."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ["COLUMNS"] = "100"  # of the help that argparse prints

# ruff: noqa: E402
from mkdocs.structure.files import File, Files

from raysweep.cli import VERBS, command
from raysweep.space.schema import schema

OUTSIDE = re.compile(r"\]\(\.\./([\w./-]+)\)")  # from a page to a file of the repository


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, and copies of the files that pages point to."""
    for name, content in (("commands.md", commands()), ("keys.md", keys())):
        files.append(File.generated(config, name, content=content))
    pages = [
        Path(file.abs_src_path).read_text(encoding="utf-8") for file in files.documentation_pages() if file.abs_src_path
    ]
    for path in sorted({path for page in pages for path in OUTSIDE.findall(page)}):
        files.append(File.generated(config, f"files/{path}", abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Point to those copies."""
    return OUTSIDE.sub(r"](files/\1)", markdown)


def commands() -> str:
    """A section for each command: what it does, and its options."""
    parts = ["# Commands", "`raysweep VERB` and `python -m raysweep VERB` are the same command."]
    for verb in VERBS:
        parts += [f"## {verb}", *_help(command(verb).parser())]
    return "\n\n".join(parts) + "\n"


def _help(parser: argparse.ArgumentParser) -> list[str]:
    parts = [f"```text\n{parser.format_help().strip()}\n```"]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                parts += [f"### {parser.prog.split()[-1]} {name}", *_help(below)]
    return parts


def keys() -> str:
    """A table for each mapping of a search space, from its JSON Schema."""
    whole = schema()
    parts = [
        "# Keys of a search space",
        "Made from the [JSON Schema](schema/search-space.json) that editors complete by: put "
        "`# yaml-language-server: $schema=PATH` into the first line. Below `trial` each value may be a domain "
        "(`choice`, `uniform`, `log_uniform`, `integers`). [How to write one](search_spaces.md) says more.",
        *_table("the file", whole),
    ]
    for name in ("Trial", *sorted(set(whole["$defs"]) - {"Trial"})):
        parts += _table(name, whole["$defs"][name])
    return "\n\n".join(parts) + "\n"


def _table(name: str, definition: dict[str, Any]) -> list[str]:
    told = definition.get("description", "").replace("\n", " ")
    lines = ["| key | value | default | |", "| --- | --- | --- | --- |"]
    for key, value in definition.get("properties", {}).items():
        default = "" if value.get("default") is None else f"`{value['default']}`"
        about = value.get("description", "").replace("|", "\\|")
        lines.append(f"| `{key}` | {_kind(value)} | {default} | {about} |")
    return [f"## {name}", told, "\n".join(lines)] if told else [f"## {name}", "\n".join(lines)]


def _kind(value: dict[str, Any]) -> str:
    """What a value may be, domains left out."""
    if "$ref" in value:
        name = value["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in value:
        return f"`{value['const']}`"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    members = [each for each in value.get("anyOf", []) if not _is_domain(each)]
    if members:
        return " or ".join(dict.fromkeys(map(_kind, members)))
    if value.get("type") == "array":
        inner = value.get("prefixItems") or [value.get("items", {})]
        return "list of " + " and ".join(dict.fromkeys(map(_kind, inner)))
    return {"object": "mapping", "null": "nothing"}.get(value.get("type", "anything"), value.get("type", "anything"))


def _is_domain(value: dict[str, Any]) -> bool:
    return bool({"choice", "uniform", "log_uniform", "integers"} & set(value.get("properties", {})))
