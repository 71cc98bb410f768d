"""Checkpoints and records by key, on any filesystem that pyarrow knows.

    checkpoints/<step>/<key>/<nonce>/<file>     what was published
    checkpoints/<step>/<key>/manifest.json      written last: names the files, their sizes and SHA-256
    records/<kind>/<key>.json, .png             small facts, e.g. of a probe, sealed with a SHA-256
    aside/…                                     manifests of checkpoints that were found damaged, with what was wrong
    leases/…, owners/…                          who is at work on what: leases.py
    studies/<id>/…                              a study's journal, tables and plots

A checkpoint exists when its manifest does; a damaged one loses it and is never used. Nothing is renamed but files on a
local disk, and nothing is appended to: object stores can do neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import time
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
SETTLE_S = 0.3  # on an object store: longer than a small write takes, see `create`


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
            self.write("probe-of-storage", b"1")
            self.delete("probe-of-storage")
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
        self._seal(f"{place}/manifest.json", manifest)
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
        if self.local() is None:
            return self._fetch(place, found)
        if wrong := self._wrong(place, found.manifest):
            raise self._set_aside(found, wrong)
        return Path(self.path(place, next(iter(found.manifest["files"])).split("/")[0]))

    def _fetch(self, place: str, found: Found) -> Path:
        """The same from an object store: what this machine has already, or a copy."""
        for name, facts in found.manifest["files"].items():
            copy = self.cache / "checkpoints" / found.key / name
            if copy.exists() and sha256_of(copy) == facts["sha256"]:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            aside = copy.with_name(f"{copy.name}.{uuid.uuid4().hex[:8]}")
            try:
                with self.fs.open_input_stream(self.path(place, name)) as reader, aside.open("wb") as writer:
                    while chunk := reader.read(_CHUNK):
                        writer.write(chunk)
                if sha256_of(aside) != facts["sha256"]:
                    raise self._set_aside(found, f"{name} was altered")
                aside.replace(copy)
            except OSError:
                if self._is_there(f"{place}/{name}"):
                    raise
                raise self._set_aside(found, f"{name} is missing") from None
            finally:
                aside.unlink(missing_ok=True)
        return copy.parent

    def verify(self) -> Iterator[tuple[Found, str | None]]:
        """Every published checkpoint with what is wrong with it, or None."""
        for step in sorted(self._steps()):
            for key in self.names(f"checkpoints/{step}"):
                if found := self._manifest(step, key):
                    yield found, self._wrong(f"checkpoints/{step}/{key}", found.manifest)

    # --- records

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that kind and key, if it is there and, with its picture, as it was written."""
        sealed = self._sealed(f"records/{kind}/{key}.json")
        if sealed is None:
            return None
        picture = sealed["picture"]
        if picture and self._digest(f"records/{kind}/{key}.png") != picture:
            return None
        content: dict[str, Any] = sealed["content"]
        return content

    def put_record(self, kind: str, key: str, record: Mapping[str, Any], picture: Path | None = None) -> None:
        """Keep a record; its picture, if any, is there before it."""
        digest = self._copy_in(picture, f"records/{kind}/{key}.png") if picture else None
        self._seal(f"records/{kind}/{key}.json", {"content": dict(record), "picture": digest})

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

    # --- small files

    def write(self, place: str, content: bytes) -> None:
        """Write a file whole: who looks sees the old content or the new."""
        target = self.path(place)
        if (local := self.local(place)) is None:
            with self.fs.open_output_stream(target) as stream:  # an object appears when it is closed
                stream.write(content)
            return
        local.parent.mkdir(parents=True, exist_ok=True)
        aside = local.with_name(f"{local.name}.{uuid.uuid4().hex[:8]}")
        aside.write_bytes(content)
        aside.replace(local)

    def create(self, place: str, content: bytes) -> bool:
        """Write a file unless it is there; whether this call, and no other at the same time, has written it.

        An object store cannot do this in one operation that pyarrow offers. There, whoever wants the file announces
        that, waits until all who began before it was announced are seen, and the first by name writes. A writer slower
        than `SETTLE_S` can break it: two then train one stretch, and publish the same bits.
        """
        if (local := self.local(place)) is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
            aside = local.with_name(f"{local.name}.{uuid.uuid4().hex[:8]}")
            aside.write_bytes(content)
            try:
                os.link(aside, local)  # exclusive on NFS too, where O_EXCL has not always been
            except FileExistsError:
                return False
            finally:
                aside.unlink()
            return True
        folder, _, name = place.rpartition("/")
        if self.read(place) is not None:
            return False
        mine = f"{name}.wanted.{uuid.uuid4().hex[:12]}"
        self.write(f"{folder}/{mine}", content)
        try:
            time.sleep(SETTLE_S)
            wanted = [other for other in self.names(folder) if other.startswith(f"{name}.wanted.")]
            if mine != min(wanted, default=mine) or self.read(place) is not None:
                return False
            self.write(place, content)
            return True
        finally:
            self.delete(f"{folder}/{mine}")

    def read(self, place: str) -> bytes | None:
        """A small file's content, or None."""
        try:
            with self.fs.open_input_stream(self.path(place)) as stream:
                content: bytes = stream.read()
                return content
        except OSError:  # an object that is deleted while it is read is one that is not there
            if self._is_there(place):
                raise
            return None

    def delete(self, place: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path(place))

    # --- inside

    def _steps(self) -> list[int]:
        return [int(name) for name in self.names("checkpoints") if name.isdigit()]

    def _list(self, place: str) -> list[fs.FileInfo]:
        infos: list[fs.FileInfo] = self.fs.get_file_info(fs.FileSelector(self.path(place), allow_not_found=True))
        return infos

    def _manifest(self, step: int, key: str) -> Found | None:
        # An altered manifest is none: what it names is computed again and takes its place.
        manifest = self._sealed(f"checkpoints/{step}/{key}/manifest.json")
        return Found(key, step, manifest) if manifest else None

    def _wrong(self, place: str, manifest: Mapping[str, Any]) -> str | None:
        for name, facts in manifest["files"].items():
            if self.fs.get_file_info(self.path(place, name)).size != facts["bytes"]:
                return f"{name} is missing or cut short"
            if self._digest(f"{place}/{name}") != facts["sha256"]:
                return f"{name} was altered"
        return None

    def _set_aside(self, found: Found, wrong: str) -> Damaged:
        """Take away the manifest, and with it the checkpoint; the files stay until `gc`."""
        self.write(
            f"aside/{found.step}-{found.key}-{uuid.uuid4().hex[:6]}.json",
            json.dumps({"wrong": wrong, "manifest": found.manifest}).encode(),
        )
        self.delete(f"checkpoints/{found.step}/{found.key}/manifest.json")
        return Damaged(f"checkpoint {found.key[:12]} at step {found.step}: {wrong}; set aside")

    def _seal(self, place: str, content: Mapping[str, Any]) -> None:
        self.write(place, json.dumps({"sha256": history.key_of(content), "manifest": content}).encode())

    def _sealed(self, place: str) -> dict[str, Any] | None:
        """What `_seal` wrote, or None where it is missing, torn or altered."""
        try:
            sealed = json.loads(self.read(place) or b"{}")
            content: dict[str, Any] = sealed["manifest"]
            return content if sealed["sha256"] == history.key_of(content) else None
        except (ValueError, LookupError, TypeError):
            return None

    def _digest(self, place: str) -> str | None:
        try:
            with self.fs.open_input_stream(self.path(place)) as stream:
                return _sha256(stream)
        except OSError:
            if self._is_there(place):
                raise
            return None

    def _is_there(self, place: str) -> bool:
        return bool(self.fs.get_file_info(self.path(place)).type == fs.FileType.File)

    def _copy_in(self, source: Path, place: str) -> str:
        if local := self.local(place):
            local.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with source.open("rb") as reader, self.fs.open_output_stream(self.path(place)) as writer:
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest()


def sha256_of(file: Path) -> str:
    """SHA-256, in hex, of a file of this machine."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def _one_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
