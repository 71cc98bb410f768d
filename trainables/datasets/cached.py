"""Files of tensors that can be made again: written whole, and read only as they were written."""

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
    """Write aside, then rename: whoever looks sees a whole file or none, and of two writers the last one stays. Where
    there is no room, nothing is written: who needs it makes it again."""
    aside = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file({**tensors, "sha256": _checksum(tensors)}, aside)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Tensor] | None:
    """What `write` wrote, or None where it is missing, torn or altered."""
    try:
        # Read in one go: safetensors' own reader opens the path twice and may meet two writers' files.
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
