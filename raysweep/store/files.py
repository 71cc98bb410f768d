"""Files on any filesystem that pyarrow knows: small ones written whole or exclusively, sealed ones, checked copies.

Nothing is renamed but files on a local disk, and nothing is appended to: object stores can do neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import fs

from raysweep.errors import UserError
from raysweep.uris import public
from trainables.errors import one_line

CHUNK = 1 << 22
MARK = "raysweep.json"  # tells a storage from an empty folder where it was mounted before
SETTLE_S = 0.3  # on an object store: longer than a small write takes, see `create`


class Gone(OSError):
    """The storage is not where it was: unmounted, moved or deleted."""


class Files:
    """A folder that all hosts see.

    Args:
        uri: a path, or a URI of pyarrow's such as `s3://bucket/folder`.
        mark: what `check_writable` found or wrote there. With it, a storage that has vanished is not taken for an empty
            one: methods that read or write raise `Gone`, an OSError.

    Raises:
        UserError: it cannot be reached or written to.
    """

    def __init__(self, uri: str, mark: str | None = None):
        self.uri, self.mark = uri, mark
        try:
            if "://" in uri:
                self.fs, self.root = fs.FileSystem.from_uri(uri)
            else:
                # Absolute from here on: a worker's working directory is not ours.
                self.uri = self.root = str(Path(uri).expanduser().absolute())
                self.fs = fs.LocalFileSystem()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"--storage {public(uri)}: {one_line(error)}; give a folder or a URI such as s3://…"
            ) from None

    def check_writable(self) -> None:
        """Create the folder with a mark of its own, or find that, and write a byte into it.

        Raises:
            UserError: that failed.
        """
        try:
            self.write("probe-of-storage", b"1")
            self.delete("probe-of-storage")
            self.create(MARK, json.dumps({"storage": uuid.uuid4().hex}).encode())
            self.mark = (self.read(MARK) or b"").decode()
        except (pa.ArrowException, OSError) as error:
            raise UserError(f"--storage {public(self.uri)}: cannot write there ({one_line(error)})") from None

    def check_there(self) -> None:
        """Nothing, where this is the storage that it was.

        Raises:
            Gone: it is not.
        """
        if self.mark is None:
            return
        with contextlib.suppress(OSError), self.fs.open_input_stream(self.path(MARK)) as stream:
            if stream.read() == self.mark.encode():
                return
        raise Gone(f"{public(self.uri)} is not there any more, or not seen from {socket.gethostname()}")

    def path(self, *parts: str) -> str:
        """A path below the root, as the filesystem takes it.

        Raises:
            ValueError: it would not be below the root.
        """
        if any(part.startswith("/") or ".." in part.split("/") or "\0" in part for part in parts):
            raise ValueError(f"{'/'.join(parts)!r} leads out of the storage")
        return "/".join((self.root, *parts))

    def local(self, *parts: str) -> Path | None:
        """The same as a path of this machine, where the store lies on one."""
        return Path(self.path(*parts)) if isinstance(self.fs, fs.LocalFileSystem) else None

    def names(self, place: str) -> list[str]:
        """What lies in a folder of the store."""
        return [entry.base_name for entry in self.entries(place)]

    def entries(self, place: str, recursive: bool = False) -> list[fs.FileInfo]:
        """The same with sizes and times, and what lies in folders in it."""
        infos: list[fs.FileInfo] = self.fs.get_file_info(
            fs.FileSelector(self.path(place), allow_not_found=True, recursive=recursive)
        )
        if not infos:
            self.check_there()
        return infos

    def write(self, place: str, content: bytes) -> None:
        """Write a file whole: who looks sees the old content or the new."""
        self.check_there()
        if (local := self.local(place)) is None:
            with self.fs.open_output_stream(self.path(place)) as stream:  # an object appears when it is closed
                stream.write(content)
            return
        aside = _aside(local)
        try:
            with aside.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(local)
        finally:
            aside.unlink(missing_ok=True)

    def create(self, place: str, content: bytes) -> bool:
        """Write a file unless it is there; whether this call, and no other at the same time, has written it.

        An object store cannot do this in one operation that pyarrow offers. There, whoever wants the file announces
        that, waits until all who began before it was announced are seen, and the first by name writes. A writer slower
        than `SETTLE_S` can break it: two then train one stretch, and publish the same bits.
        """
        self.check_there()
        if (local := self.local(place)) is not None:
            aside = _aside(local)
            try:
                aside.write_bytes(content)
                os.link(aside, local)  # exclusive on NFS too, where O_EXCL has not always been
            except FileExistsError:
                return False
            finally:
                aside.unlink(missing_ok=True)
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
            if self.is_there(place):
                raise
            self.check_there()
            return None

    def delete(self, place: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path(place))

    def seal(self, place: str, content: Mapping[str, Any]) -> None:
        """Write plain data with its own SHA-256."""
        self.write(place, json.dumps({"sha256": _digest(content), "manifest": content}).encode())

    def sealed(self, place: str) -> dict[str, Any] | None:
        """What `seal` wrote, or None where it is missing, torn or altered."""
        try:
            sealed = json.loads(self.read(place) or b"{}")
            content: dict[str, Any] = sealed["manifest"]
            return content if sealed["sha256"] == _digest(content) else None
        except (ValueError, LookupError, TypeError):
            return None

    def digest(self, place: str) -> str | None:
        """SHA-256, in hex, of a file's content, or None where there is none."""
        try:
            with self.fs.open_input_stream(self.path(place)) as stream:
                return _sha256(stream)
        except OSError:
            if self.is_there(place):
                raise
            self.check_there()
            return None

    def is_there(self, place: str) -> bool:
        """Whether that is a file."""
        return bool(self.fs.get_file_info(self.path(place)).type == fs.FileType.File)

    @contextlib.contextmanager
    def at_hand(self, folder: str) -> Iterator[Path]:
        """A folder of files on this machine: where it is, or a copy."""
        if (local := self.local(folder)) is not None:
            yield local
            return
        with tempfile.TemporaryDirectory() as copy:
            for name in self.names(folder):
                with self.fs.open_input_stream(self.path(folder, name)) as stream:
                    Path(copy, name).write_bytes(stream.read())
            yield Path(copy)

    def copy_in(self, source: Path, place: str) -> str:
        """Copy a file of this machine to a place in the store; returns its SHA-256."""
        self.check_there()
        if local := self.local(place):
            local.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with source.open("rb") as reader, self.fs.open_output_stream(self.path(place)) as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest()


def _aside(local: Path) -> Path:
    """Where to write what will be put into place at once."""
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.with_name(f"{local.name}.{uuid.uuid4().hex[:8]}")


def sha256_of(file: Path) -> str:
    """SHA-256, in hex, of a file of this machine."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of plain data, which may hold what is not finite, unlike a history."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _sha256(stream: Any) -> str:
    digest = hashlib.sha256()
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
