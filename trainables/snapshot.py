"""Load a frozen backbone from a checkpoint of our store or a file of a reference repository.

Such files are usually pickles. They are read with `weights_only`, so that pickled code never runs. argparse.Namespace,
which most of these repositories save with their options, is allowed; any other class is refused by name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import pickle
import re
import textwrap
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainables import backbones, interpolant
from trainables.datasets import catalog
from trainables.training.checkpoint import SNAPSHOT, STATE, Tensors, load_weights

OURS = "raysweep"
MANIFEST = "manifest.json"
ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors")
Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class Snapshot:
    """A backbone, frozen and in evaluation mode, and what is known about it."""

    backbone: Any
    name: str  # "SiT-B/2", or a description of a shape without a name
    source: str  # `OURS`, or a key of `backbones.REFERENCES`
    weights: str  # "ema", "raw", or "only" for a file with one unnamed state dict
    latent_shape: tuple[int, int, int]  # (C, H, W)
    num_classes: int
    step: int | None = None
    data: str | None = None  # name of the data set in the catalog, if known
    path: interpolant.Path = "linear"  # the path on which it was trained

    @property
    def parameters(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.backbone.parameters())


def load(
    path: Path,
    *,
    weights: Weights = "ema",
    source: str | None = None,
    num_heads: int | None = None,
    device: torch.device | None = None,
) -> Snapshot:
    """The snapshot in a folder (a checkpoint of our store) or a file (a reference's, or our snapshot.safetensors).

    Args:
        source: the repository that a file comes from, a key of `backbones.REFERENCES`. Default: detected from the
            tensors.
        num_heads: number of heads, needed for a shape without a name.

    Raises:
        ValueError: there is no usable snapshot; one line says what is wrong, where, and what would be right.
        OSError: the file cannot be read.
    """
    if path.is_dir() or path.name == SNAPSHOT:
        folder, manifest = _our_folder(path if path.is_dir() else path.parent, weights)
        return load_folder(folder, manifest, weights=weights, num_heads=num_heads, device=device)
    content = _read(path)
    state, taken = _weights_in(content, weights, path)
    try:
        source = source or backbones.guess_source(state)
        if source is None:
            known = ", ".join(backbones.REFERENCES)
            raise ValueError(f"the source cannot be detected from its tensors; give --source, one of {known}")
        backbone = backbones.from_reference(state, source, **({"num_heads": num_heads} if num_heads else {}))
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {_one_line(error)}") from None
    return _snapshot(backbone, device, source=source, weights=taken, step=_step(content, path))


def load_folder(
    folder: Path,
    manifest: Mapping[str, Any],
    *,
    weights: Weights = "ema",
    num_heads: int | None = None,
    device: torch.device | None = None,
) -> Snapshot:
    """The snapshot in a folder of our store, described by its manifest ({}: by its tensors alone).

    Raises:
        ValueError: as `load`.
    """
    state = _load_ours(folder, weights)
    history = manifest.get("history", {})
    # Without a history the name only selects the family: the shape is read from the tensors.
    stand_in = "LightningDiT-B/1" if backbones.guess_source(state) == "lightningdit" else "SiT-B/2"
    name = history.get("backbone", stand_in)
    try:
        heads = backbones.BACKBONES[name].heads if history else num_heads
        backbone = backbones.blueprint(name, **backbones.reference_config(state, heads)).to_empty(device="cpu")
        backbone.load_state_dict(state)
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{folder}: {_one_line(error)}") from None
    known = {"step": history.get("step"), "data": _data_of(history.get("data")), "path": history.get("path", "linear")}
    return _snapshot(backbone, device, source=OURS, weights=weights, **known)


def best_device() -> torch.device:
    """This machine's first GPU, or its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# --- our own folders ---------------------------------------------------------------------------------------------


def _our_folder(folder: Path, weights: Weights) -> tuple[Path, dict[str, Any]]:
    """The folder with the tensors, and the manifest ({} if there is none). `folder` is the folder of the manifest or
    the folder of the tensors.

    Raises:
        ValueError: there is no snapshot, or it differs from the manifest.
    """
    place = next((place for place in (folder, folder.parent) if (place / MANIFEST).is_file()), None)
    if place is None:
        if not (folder / SNAPSHOT).is_file():
            raise ValueError(f"{folder}: neither {MANIFEST} nor {SNAPSHOT} in this folder; give a checkpoint's folder")
        return folder, {}
    try:
        manifest: dict[str, Any] = json.loads((place / MANIFEST).read_text(encoding="utf-8"))["manifest"]
        files = {Path(name).name: (place / name, facts["sha256"]) for name, facts in manifest["files"].items()}
        tensors, checksum = files[SNAPSHOT if weights == "ema" else STATE]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{place / MANIFEST}: not a checkpoint's manifest, or a truncated one") from None
    if not tensors.is_file():
        raise ValueError(f"{tensors}: missing, though the manifest names it")
    with tensors.open("rb") as stream:
        if hashlib.file_digest(stream, "sha256").hexdigest() != checksum:
            raise ValueError(f"{tensors}: altered since it was committed: its SHA-256 is not the manifest's")
    return tensors.parent, manifest


def _load_ours(folder: Path, weights: Weights) -> Tensors:
    try:
        return load_weights(folder, weights)
    except FileNotFoundError:
        wanted = SNAPSHOT if weights == "ema" else STATE
        raise ValueError(f"{folder}: no {wanted} in this folder, which holds the {weights} weights") from None
    except SafetensorError as error:
        raise ValueError(f"{folder}: truncated or altered: {_one_line(error)}") from None


def _data_of(identity: str | None) -> str | None:
    """The name of the data set with this identity, or None if it is not on this machine."""
    for name in catalog.known():
        try:
            if catalog.identity(name) == identity:
                return name
        except LookupError:
            continue
    return None


# --- a reference's files -----------------------------------------------------------------------------------------


def _read(path: Path) -> Any:
    """The content of a file, on the CPU. No code in it runs."""
    if path.suffix not in ENDINGS:
        raise ValueError(f"{path}: not a checkpoint file, by its ending; known endings: {', '.join(ENDINGS)}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        # A zip (torch's format since 1.6) is memory-mapped, so that the optimizer's state is never read.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL (\S+)", str(error))
        if not asked:
            raise ValueError(f"{path}: not a checkpoint of torch, or a truncated one") from None
        raise ValueError(
            f"{path}: refused, because it imports {asked[1]}, and unpickling that could run any code; "
            "save its tensors again as a plain state dict or as .safetensors"
        ) from None
    except (SafetensorError, RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: cannot be read, perhaps truncated: {_one_line(error)}") from None


def _weights_in(content: Any, weights: Weights, path: Path) -> tuple[Tensors, str]:
    """The requested state dict of a checkpoint, and its kind: "ema", "raw" or "only".

    Raises:
        ValueError: there is none, or none of that kind.
    """
    kinds = {"ema": "ema", "raw": "model"}
    present = [
        kind for kind, key in kinds.items() if isinstance(content, Mapping) and isinstance(content.get(key), dict)
    ]
    taken: str
    if weights in present:
        taken, state = weights, content[kinds[weights]]
    elif weights == "raw" and present:
        raise ValueError(f"{path}: holds no raw weights ('model'), only its EMA; use --weights ema")
    else:
        taken, state = ("raw", content["model"]) if present else ("only", content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path}: no state dict in it, neither under 'ema' or 'model' nor as the whole file")
    return dict(state), taken


def _step(content: Any, path: Path) -> int | None:
    """The step that the file states, or else the number that is its name, as in 0400000.pt; None if there is
    neither."""
    step = content.get("steps") if isinstance(content, Mapping) else None
    if isinstance(step, int):
        return step
    return int(path.stem) if path.stem.isdecimal() else None


# --- the snapshot ------------------------------------------------------------------------------------------------


def _snapshot(backbone: Any, device: torch.device | None, **known: Any) -> Snapshot:
    size = backbone.grid * backbone.patch_size
    return Snapshot(
        backbone.to(device or torch.device("cpu")).requires_grad_(False).eval(),
        name=_name(backbone),
        latent_shape=(backbone.in_channels, size, size),
        num_classes=backbone.num_classes,
        **known,
    )


def _name(backbone: Any) -> str:
    """The name of a backbone with this shape, or a description of the shape."""
    family = type(backbone).__name__
    for name, size in backbones.BACKBONES.items():
        if (size.family, size.depth, size.width, size.patch) == (
            family,
            backbone.depth,
            backbone.width,
            backbone.patch_size,
        ):
            return name
    return f"{family} of {backbone.depth} blocks, width {backbone.width}, patch {backbone.patch_size}"


def _one_line(error: BaseException) -> str:
    """The last line of an error, shortened, with the option that helps. torch names wrong tensors in the last line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    message = textwrap.shorten(lines[-1], 200, placeholder=" …")
    return f"{message}; give it with --heads" if "num_heads" in message else message
