"""`raysweep VERB …`, which is also `python -m raysweep VERB …`: hands the rest of the line to the verb's command."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

VERBS = {
    "run": "train a search space to its tables",
    "plan": "show what a search space would train and cost",
    "report": "write a study's tables, pictures and page again, from its journal",
    "probe": "measure one checkpoint",
    "features": "draw the features of a checkpoint's blocks",
    "prepare": "turn images into latents to train on",
    "store": "list, verify, trace and garbage-collect checkpoints",
    "doctor": "check a cluster, or the file that brings one up",
    "model": "count a backbone's parameters and GFLOPs",
    "schema": "print the JSON Schema of search spaces",
    "sync-mlflow": "rebuild an MLflow server from the storage",
}


def main() -> int:
    """Run the verb that the command line names; only its own module is imported. Returns the exit code."""
    verb, *arguments = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help"):
        print("usage: raysweep VERB …\n")
        for name, meaning in VERBS.items():
            print(f"  {name:<12} {meaning}")
        print("\nraysweep VERB --help describes the options of a verb.")
        return 0
    if verb not in VERBS:
        print(f"raysweep {verb}: no such verb; known: {', '.join(VERBS)}", file=sys.stderr)
        return 2
    code: int = command(verb).main(arguments)
    return code


def command(verb: str) -> ModuleType:
    """The module in `raysweep.commands` that carries out a verb: it has `main(arguments) -> int` and `parser()`."""
    return importlib.import_module(f"raysweep.commands.{verb.replace('-', '_')}")
