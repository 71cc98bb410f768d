"""Checkpoints and records by key, on any filesystem that pyarrow knows.

    checkpoints/<step>/<key>/<nonce>/<file>     what was published
    checkpoints/<step>/<key>/manifest.json      written last: names the files, their sizes and SHA-256
    records/<kind>/<key>.json, .png             small facts, e.g. of a probe
    aside/…                                     what was found damaged
    studies/<id>/…                              a study's journal, tables and plots

A checkpoint exists when its manifest does; a damaged one is set aside and never used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from raysweep import history
from raysweep.errors import UserError
from trainables.spec import Run

_CHUNK = 1 << 22


class Missing(KeyError):
    """There is no such checkpoint, or there is none any more."""


class Damaged(Exception):
    """A published checkpoint is not what its manifest says. It has been set aside."""


@dataclass(frozen=True)
class Found:
    """A published checkpoint: its key, its step, and what its manifest says."""

    key: str
    step: int
    manifest: dict[str, Any]


class Store:
    """A folder that all hosts see.

    Args:
        uri: a path, or a URI of pyarrow's such as `s3://bucket/folder`.

    Raises:
        UserError: it cannot be reached or written to.
    """

    def __init__(self, uri: str):
        self.uri = uri
        try:
            if "://" in uri:
                self.fs, self.root = fs.FileSystem.from_uri(uri)
            else:
                # Absolute from here on: a worker's working directory is not ours.
                self.uri = self.root = str(Path(uri).expanduser().absolute())
                self.fs = fs.LocalFileSystem()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(f"--storage {uri}: {_one_line(error)}; give a folder or a URI such as s3://…") from None

    def check_writable(self) -> None:
        """Create the folder and write a byte into it.

        Raises:
            UserError: that failed.
        """
        try:
            self._write("probe-of-storage", b"1")
            self.fs.delete_file(self.path("probe-of-storage"))
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"--storage {self.uri}: cannot write there ({_one_line(error)})") from None

    def path(self, *parts: str) -> str:
        """A path below the root, as the filesystem takes it."""
        return "/".join((self.root, *parts))

    def local(self, *parts: str) -> Path | None:
        """The same as a path of this machine, where the store lies on one."""
        return Path(self.path(*parts)) if isinstance(self.fs, fs.LocalFileSystem) else None

    @property
    def cache(self) -> Path:
        """A folder of this machine for what can be made again: encoded data, reference statistics."""
        return self.local("cache") or Path(tempfile.gettempdir()) / "raysweep-cache"

    def names(self, place: str) -> list[str]:
        """What lies in a folder of the store."""
        return [entry.base_name for entry in self._list(place)]

    # --- checkpoints

    def publish(self, run: Run, step: int, folder: Path, facts: Mapping[str, Any]) -> str:
        """Publish the files of `folder` as `run`'s checkpoint at `step`, with `facts` in the manifest; returns the
        key."""
        description = history.describe(run, step)
        key = history.key_of(description)
        place, nonce = f"checkpoints/{step}/{key}", uuid.uuid4().hex[:12]
        files = {}
        for source in sorted(folder.iterdir()):
            target = f"{place}/{nonce}/{source.name}"
            files[f"{nonce}/{source.name}"] = {"bytes": source.stat().st_size, "sha256": self._copy_in(source, target)}
        manifest = {"key": key, "step": step, "files": files, "history": description, **facts}
        sealed = {"sha256": history.key_of(manifest), "manifest": manifest}
        self._write(f"{place}/manifest.json", json.dumps(sealed).encode())
        return key

    def find(self, run: Run, step: int) -> Found | None:
        """`run`'s checkpoint at exactly `step`, if it is published."""
        return self._manifest(step, history.key(run, step))

    def deepest(self, run: Run, step: int) -> Found | None:
        """The latest published checkpoint on `run`'s way to `step`, `step` included."""
        for published in sorted(self._steps(), reverse=True):
            if published <= step and (found := self.find(run, published)):
                return found
        return None

    def open(self, key: str) -> Path:
        """A folder of this machine with the files of checkpoint `key`, each checked against its SHA-256.

        Raises:
            Missing: no such checkpoint.
            Damaged: a file is missing or altered; the checkpoint has been set aside.
        """
        for step in self._steps():
            if found := self._manifest(step, key):
                break
        else:
            raise Missing(f"no checkpoint {key}")
        place = f"checkpoints/{found.step}/{key}"
        if wrong := self._wrong(place, found.manifest):
            self._set_aside(place)
            raise Damaged(f"checkpoint {key[:12]} at step {found.step}: {wrong}; set aside")
        nonce = next(iter(found.manifest["files"])).split("/")[0]
        if folder := self.local(place, nonce):
            return folder
        copy = self.cache / key
        copy.mkdir(parents=True, exist_ok=True)
        fs.copy_files(self.path(place, nonce), str(copy), source_filesystem=self.fs)
        return copy

    def verify(self) -> Iterator[tuple[Found, str | None]]:
        """Every published checkpoint with what is wrong with it, or None."""
        for step in sorted(self._steps()):
            for key in self.names(f"checkpoints/{step}"):
                if found := self._manifest(step, key):
                    yield found, self._wrong(f"checkpoints/{step}/{key}", found.manifest)

    # --- records

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that kind and key, if there is one."""
        return self._json(f"records/{kind}/{key}.json")

    def put_record(self, kind: str, key: str, record: Mapping[str, Any], picture: Path | None = None) -> None:
        """Keep a record; its picture, if any, is there before it."""
        if picture:
            self._copy_in(picture, f"records/{kind}/{key}.png")
        self._write(f"records/{kind}/{key}.json", json.dumps(record).encode())

    @contextlib.contextmanager
    def open_picture(self, kind: str, key: str) -> Iterator[BinaryIO | None]:
        """The PNG of a record, opened for reading, or None."""
        try:
            stream = self.fs.open_input_file(self.path("records", kind, f"{key}.png"))
        except FileNotFoundError:
            yield None
            return
        with stream:
            yield stream

    # --- inside

    def _steps(self) -> list[int]:
        return [int(name) for name in self.names("checkpoints") if name.isdigit()]

    def _list(self, place: str) -> list[fs.FileInfo]:
        infos: list[fs.FileInfo] = self.fs.get_file_info(fs.FileSelector(self.path(place), allow_not_found=True))
        return infos

    def _manifest(self, step: int, key: str) -> Found | None:
        sealed = self._json(f"checkpoints/{step}/{key}/manifest.json") or {}
        manifest = sealed.get("manifest")
        # An altered manifest is none: what it names is computed again and takes its place.
        return Found(key, step, manifest) if manifest and sealed.get("sha256") == history.key_of(manifest) else None

    def _wrong(self, place: str, manifest: Mapping[str, Any]) -> str | None:
        for name, facts in manifest["files"].items():
            if self.fs.get_file_info(self.path(place, name)).size != facts["bytes"]:
                return f"{name} is missing or cut short"
            with self.fs.open_input_stream(self.path(place, name)) as stream:
                if _sha256(stream) != facts["sha256"]:
                    return f"{name} was altered"
        return None

    def _set_aside(self, place: str) -> None:
        target = self.path("aside", f"{place.replace('/', '-')}-{uuid.uuid4().hex[:6]}")
        self.fs.create_dir(self.path("aside"), recursive=True)
        self.fs.move(self.path(place), target)

    def _json(self, place: str) -> dict[str, Any] | None:
        try:
            with self.fs.open_input_stream(self.path(place)) as stream:
                content: dict[str, Any] = json.loads(stream.read())
                return content
        except FileNotFoundError:
            return None
        except ValueError:  # torn by a crash of its filesystem: as if it were not there
            return None

    def _write(self, place: str, content: bytes) -> None:
        target, aside = self.path(place), self.path(f"{place}.{uuid.uuid4().hex[:8]}")
        self.fs.create_dir(target.rpartition("/")[0], recursive=True)
        with self.fs.open_output_stream(aside) as stream:
            stream.write(content)
        self.fs.move(aside, target)

    def _copy_in(self, source: Path, place: str) -> str:
        self.fs.create_dir(self.path(place).rpartition("/")[0], recursive=True)
        digest = hashlib.sha256()
        with source.open("rb") as reader, self.fs.open_output_stream(self.path(place)) as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest()


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
