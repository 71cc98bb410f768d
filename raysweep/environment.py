"""The software that drives a sweep: versions and the git commit, recorded so that results can be traced."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("raysweep", "torch", "ray", "optuna", "mlflow", "diffusers", "numpy", "pyarrow", "safetensors")
SOURCE = Path(__file__).parents[1]


def environment() -> dict[str, Any]:
    """Versions, platform, and the git commit of raysweep's sources where they are a checkout. `changed` says whether
    tracked files differ from that commit."""
    commit = _git("rev-parse", "HEAD")
    return {
        "git_commit": commit,
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")) if commit else None,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def sources_digest() -> str:
    """A digest of all modules of raysweep and trainables on this machine."""
    digest = hashlib.sha256()
    for package in ("raysweep", "trainables"):
        root = SOURCE / package
        for file in sorted(root.rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    if not (SOURCE / ".git").exists():  # an installed package; a git checkout above it would belong to another project
        return None
    try:
        git = subprocess.run(["git", "-C", SOURCE, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() if git.returncode == 0 else None
