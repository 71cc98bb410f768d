"""`raysweep COMMAND …`: every command is also a module, `python -m raysweep.COMMAND …`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {name: name for name in ("run", "prepare", "report", "probe", "features", "doctor")}
COMMANDS |= {"store": "storekeeper", "sync-mlflow": "sync_mlflow"}  # `python -m raysweep.store` finds the first too


def main() -> int:
    """Hand the rest of the command line to the command named first, which alone is imported."""
    name, *arguments = sys.argv[1:] or ["--help"]
    if name not in COMMANDS:
        wanted = name in ("-h", "--help")
        print(f"usage: raysweep {{{','.join(COMMANDS)}}} …", file=sys.stdout if wanted else sys.stderr)
        return 0 if wanted else 2
    code: int = importlib.import_module(f"raysweep.{COMMANDS[name]}").main(arguments)
    return code
