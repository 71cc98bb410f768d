"""`raysweep schema`: print the JSON Schema of search spaces, for editors.

raysweep schema > docs/schema/search-space.json
"""

from __future__ import annotations

import argparse
import json

from rich.console import Console

from raysweep.commands.common import Parser, guarded
from raysweep.space.schema import json_schema


def main(arguments: list[str] | None = None) -> int:
    """Print the schema; returns the exit code."""
    return guarded(_print, parser().parse_args(arguments))


def _print(options: argparse.Namespace, console: Console) -> None:
    print(json.dumps(json_schema(), indent=1, ensure_ascii=False))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    return Parser(prog="raysweep schema", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
