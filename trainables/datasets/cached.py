"""Cached tensor files. They are written atomically, and read only if their checksum is right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor


def write(tensors: dict[str, Tensor], path: Path) -> None:
    """Write to a temporary file, then rename it: readers see a whole file or none, and the last of two writers wins.

    Errors of the filesystem are ignored, as the tensors can be computed again.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({**tensors, "sha256": _checksum(tensors)}, temporary)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Tensor] | None:
    """The tensors in a file, or None where the file is missing, truncated or altered."""
    try:
        # Read in one call: the reader of safetensors opens the path twice, and could see the files of two writers.
        tensors = load(path.read_bytes())
    except (OSError, SafetensorError):
        return None
    checksum = tensors.pop("sha256", torch.empty(0))
    return tensors if checksum.tolist() == _checksum(tensors).tolist() else None


def _checksum(tensors: dict[str, Tensor]) -> Tensor:
    """SHA-256 (32,) uint8 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        digest.update(f"{key} {tensors[key].dtype} {tuple(tensors[key].shape)}".encode())
        digest.update(tensors[key].cpu().numpy().tobytes())
    return torch.tensor(list(digest.digest()), dtype=torch.uint8)
