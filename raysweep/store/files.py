"""Files on any filesystem that pyarrow knows: written whole or exclusively, sealed with a checksum, copied and checked.

Only files on a local disk are renamed or appended to: object stores can do neither. Paths are relative to the root,
with `/` between their parts.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import fs

from raysweep.errors import UserError
from raysweep.uris import public
from trainables.errors import one_line

CHUNK = 1 << 22  # bytes
MARK = "raysweep.json"  # tells a storage from an empty mount point, whose storage is not mounted
SETTLE_S = 0.3  # on an object store: more than a small write takes; see `create`


class StorageGone(OSError):
    """The storage is not where it was: unmounted, moved or deleted."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing: its path below the root, its size in bytes, and when it was written (seconds since 1970)."""

    path: str
    bytes: int
    modified: float


class Files:
    """A folder that all hosts see.

    Args:
        uri: a path, or a URI of pyarrow's such as `s3://bucket/folder`.
        mark: the content of the mark file, which `check_writable` reads or writes. With a mark, a storage that is no
            longer there is not mistaken for an empty one: methods that read or write raise `StorageGone`, an OSError.

    Raises:
        UserError: the storage cannot be reached.
    """

    def __init__(self, uri: str, mark: str | None = None):
        self.uri, self.mark = uri, mark
        try:
            if "://" in uri:
                self._fs, self._root = fs.FileSystem.from_uri(uri)
            else:
                # Absolute from here on: a worker has another working directory.
                self.uri = self._root = str(Path(uri).expanduser().absolute())
                self._fs = fs.LocalFileSystem()
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"--storage {public(uri)}: {one_line(error)}; give a folder or a URI such as s3://…"
            ) from None

    def check_writable(self) -> None:
        """Check that a byte can be written, and create the mark file or read the existing one.

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

    def check_available(self) -> None:
        """Compare the mark, where one is known, with the mark in the storage.

        Raises:
            StorageGone: the storage is not there, or another storage is in its place.
        """
        if self.mark is None:
            return
        with contextlib.suppress(OSError), self._fs.open_input_stream(self._absolute(MARK)) as stream:
            if stream.read() == self.mark.encode():
                return
        raise StorageGone(f"{public(self.uri)} is not there any more, or not seen from {socket.gethostname()}")

    def local(self, *parts: str) -> Path | None:
        """The path on this machine, or None where the storage is not a local folder."""
        return Path(self._absolute(*parts)) if isinstance(self._fs, fs.LocalFileSystem) else None

    # --- listing

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; none where it does not exist."""
        return [info.base_name for info in self._list(folder)]

    def walk(self, folder: str) -> Iterator[Entry]:
        """All files below a folder."""
        for info in self._list(folder, recursive=True):
            if info.is_file:
                yield Entry(info.path.removeprefix(f"{self._root}/"), info.size, info.mtime.timestamp())

    def exists(self, path: str) -> bool:
        """Whether that is a file."""
        return bool(self._fs.get_file_info(self._absolute(path)).type == fs.FileType.File)

    def size(self, path: str) -> int | None:
        """The size of a file in bytes, or None where there is none."""
        size: int | None = self._fs.get_file_info(self._absolute(path)).size
        return size

    # --- small files

    def read(self, path: str) -> bytes | None:
        """The content of a small file, or None where there is none."""
        try:
            with self._fs.open_input_stream(self._absolute(path)) as stream:
                content: bytes = stream.read()
                return content
        except OSError as error:  # an object that is deleted while it is read counts as missing
            self._check_missing(path, error)
            return None

    def write(self, path: str, content: bytes) -> None:
        """Write a file whole: a reader sees the old content or the new one."""
        self.check_available()
        if (local := self.local(path)) is None:
            with self._fs.open_output_stream(self._absolute(path)) as stream:  # an object appears when it is closed
                stream.write(content)
            return
        temporary = _beside(local)
        try:
            with temporary.open("wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(local)
        finally:
            temporary.unlink(missing_ok=True)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless it exists. True if this call wrote it. Of several simultaneous calls, exactly one does.

        pyarrow offers no such operation for object stores. There, a writer first announces itself with a file of its
        own, waits until every earlier announcement is visible, and writes only if its announcement has the first name.
        A writer slower than `SETTLE_S` can break this: two drivers may then train the same segment, with the same bits.
        """
        self.check_available()
        if (local := self.local(path)) is not None:
            temporary = _beside(local)
            try:
                temporary.write_bytes(content)
                os.link(temporary, local)  # exclusive on every NFS, unlike O_EXCL
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            return True
        folder, _, name = path.rpartition("/")
        if self.read(path) is not None:
            return False
        mine = f"{name}.wanted.{uuid.uuid4().hex[:12]}"
        self.write(f"{folder}/{mine}", content)
        try:
            time.sleep(SETTLE_S)
            announced = [other for other in self.names(folder) if other.startswith(f"{name}.wanted.")]
            if mine != min(announced, default=mine) or self.read(path) is not None:
                return False
            self.write(path, content)
            return True
        finally:
            self.delete(f"{folder}/{mine}")

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_file(self._absolute(path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that is in it, if it exists."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.delete_dir(self._absolute(path))

    def write_sealed(self, path: str, content: Mapping[str, Any]) -> None:
        """Write plain data as JSON together with its SHA-256."""
        self.write(path, json.dumps({"sha256": _seal(content), "manifest": content}).encode())

    def read_sealed(self, path: str) -> dict[str, Any] | None:
        """The data that `write_sealed` wrote, or None where it is missing, torn or altered."""
        try:
            sealed = json.loads(self.read(path) or b"{}")
            content: dict[str, Any] = sealed["manifest"]
            return content if sealed["sha256"] == _seal(content) else None
        except (ValueError, LookupError, TypeError):
            return None

    # --- large files

    def sha256(self, path: str) -> str | None:
        """SHA-256, in hex, of a file's content, or None where there is no file."""
        try:
            with self._fs.open_input_stream(self._absolute(path)) as stream:
                digest = hashlib.sha256()
                while chunk := stream.read(CHUNK):
                    digest.update(chunk)
                return digest.hexdigest()
        except OSError as error:
            self._check_missing(path, error)
            return None

    def open(self, path: str) -> BinaryIO:
        """A file, opened for reading at any position.

        Raises:
            FileNotFoundError: there is none.
        """
        stream: BinaryIO = self._fs.open_input_file(self._absolute(path))
        return stream

    def copy_in(self, source: Path, path: str) -> str:
        """Copy a file of this machine into the storage; returns its SHA-256 in hex."""
        self.check_available()
        if local := self.local(path):
            local.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with source.open("rb") as reader, self._fs.open_output_stream(self._absolute(path)) as writer:
            while chunk := reader.read(CHUNK):
                digest.update(chunk)
                writer.write(chunk)
        return digest.hexdigest()

    def copy_out(self, path: str, target: Path) -> bool:
        """Copy a file of the storage to this machine, with the folders above it. False where there is no such file."""
        source = self._absolute(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with self._fs.open_input_stream(source) as reader, target.open("wb") as writer:
                while chunk := reader.read(CHUNK):
                    writer.write(chunk)
        except OSError as error:
            self._check_missing(path, error)
            return False
        return True

    @contextlib.contextmanager
    def local_copy(self, folder: str) -> Iterator[Path]:
        """The files of a folder on this machine: the folder itself, or a temporary copy."""
        if (local := self.local(folder)) is not None:
            yield local
            return
        with tempfile.TemporaryDirectory() as copy:
            for name in self.names(folder):
                self.copy_out(f"{folder}/{name}", Path(copy, name))
            yield Path(copy)

    # --- inside

    def _absolute(self, *parts: str) -> str:
        """A path as the filesystem takes it.

        Raises:
            ValueError: it would lead out of the root.
        """
        if any(part.startswith("/") or ".." in part.split("/") or "\0" in part for part in parts):
            raise ValueError(f"{'/'.join(parts)!r} leads out of the storage")
        return "/".join((self._root, *parts))

    def _list(self, folder: str, recursive: bool = False) -> list[fs.FileInfo]:
        infos: list[fs.FileInfo] = self._fs.get_file_info(
            fs.FileSelector(self._absolute(folder), allow_not_found=True, recursive=recursive)
        )
        if not infos:
            self.check_available()
        return infos

    def _check_missing(self, path: str, error: OSError) -> None:
        """Raise `error`, which reading `path` has raised, unless the cause is that the file does not exist.

        Raises:
            StorageGone: the whole storage is missing.
        """
        if self.exists(path):
            raise error
        self.check_available()


def sha256_of(file: Path) -> str:
    """SHA-256, in hex, of a file of this machine."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _beside(local: Path) -> Path:
    """A new name in the same folder, for content that is then renamed into place."""
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.with_name(f"{local.name}.{uuid.uuid4().hex[:8]}")


def _seal(content: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of plain data. Unlike a history, it may hold numbers that are not finite."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
