"""With what a sweep is driven: versions and the git commit, for whoever asks later."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("raysweep", "torch", "ray", "optuna", "mlflow", "diffusers", "numpy", "pyarrow", "safetensors")
SOURCE = Path(__file__).parents[1]


def environment() -> dict[str, Any]:
    """Versions, platform, and the commit of raysweep's own sources where they are a git checkout; `changed` says
    whether files differ from it."""
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (SOURCE / ".git").exists():  # installed, perhaps inside somebody else's checkout
        return None
    try:
        told = subprocess.run(["git", "-C", SOURCE, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return told.stdout.strip() if told.returncode == 0 else None
