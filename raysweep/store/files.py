"""Files in a folder of a file system or of an object store: written whole or created exclusively, copied and checked.

obstore reads and writes them. Paths are relative to the root, with `/` between their parts.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from raysweep.errors import UserError
from trainables.errors import one_line
from trainables.location import Location
from trainables.redaction import public, public_uri

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK = 1 << 22  # bytes
PART = 1 << 24  # bytes of a large object that are read with one request
PARALLEL_PARTS = 8  # requests of one large object at a time
PARALLEL_CALLS = 32  # requests for small files at a time
MARK = "raysweep.json"  # tells a storage from an empty mount point, whose storage is not mounted
ABSENT = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")  # in S3's, Azure's, GCS's answers

Result = TypeVar("Result")


class StorageError(OSError):
    """The storage does not do what it was asked for."""


class StorageGone(StorageError):
    """The storage is not where it was: unmounted, moved or deleted."""


@dataclass(frozen=True)
class Entry:
    """A file in a listing.

    Attributes:
        path: below the root.
        modified: when it was written, in seconds since 1970, by the storage's clock.
        version: changes whenever the file is written.
    """

    path: str
    bytes: int
    modified: float
    version: str


class Files:
    """A folder that all hosts see.

    Args:
        uri: a folder or a URI, as `trainables.location` takes them.
        mark: the content of the mark file, which `check_writable` reads or writes. With a mark, a folder that is no
            longer there is not mistaken for an empty one: methods that read or write raise `StorageGone`.
        option: the command's option that names the folder, for messages.

    Every method that reads or writes raises an OSError when the storage cannot be used.

    Raises:
        UserError: the URI is wrong, or a setting that the storage needs is missing.
    """

    def __init__(self, uri: str, mark: str | None = None, option: str = "--storage"):
        try:
            self.location = Location.parse(uri)
            self._objects = None if self.location.folder else self.location.open()
        except (ValueError, BaseError) as error:
            raise UserError(
                f"{option} {public_uri(uri)}: {one_line(error)}; give a folder or a URI such as s3://…"
            ) from None
        self.uri, self.mark, self._option = str(self.location), mark, option

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
        except OSError as error:
            raise UserError(f"{self._option} {public(self.uri)}: cannot write there ({one_line(error)})") from None

    def check_available(self) -> None:
        """Compare the mark, where one is known, with the mark in the folder. An object store reports by itself that a
        bucket is missing.

        Raises:
            StorageGone: the storage is not there, or another storage is in its place.
        """
        folder = self.location.folder
        if self.mark is None or folder is None:
            return
        with contextlib.suppress(OSError):
            if (folder / MARK).read_bytes() == self.mark.encode():
                return
        raise StorageGone(f"{public(self.uri)} is not there any more, or not seen from {socket.gethostname()}")

    def local(self, *parts: str) -> Path | None:
        """The path on this machine, or None where the storage is not a local folder."""
        folder = self.location.folder
        return None if folder is None else folder.joinpath(*(_inside(part) for part in parts))

    # --- listing

    def names(self, folder: str) -> list[str]:
        """The names of the files and folders in a folder; none where it does not exist."""
        _inside(folder)
        with self._errors():
            listing = obstore.list_with_delimiter(self._store, folder or None) if self._exists else None
        paths = [*listing["common_prefixes"], *(entry["path"] for entry in listing["objects"])] if listing else []
        if not paths:
            self.check_available()
        return sorted(path.rpartition("/")[2] for path in paths)

    def walk(self, folder: str, after: str = "") -> Iterator[Entry]:
        """All files below a folder, in no order.

        Args:
            after: leave out the files whose path is not greater than this one. An object store does not read them.
        """
        _inside(folder)
        found = False
        with self._errors():
            chunks = obstore.list(self._store, folder or None, offset=after or None) if self._exists else ()
            for entry in (entry for chunk in chunks for entry in chunk):
                if not after or entry["path"] > after:  # not every server can begin a listing there
                    found = True
                    yield Entry(entry["path"], entry["size"], entry["last_modified"].timestamp(), entry["e_tag"] or "")
        if not found:
            self.check_available()

    def exists(self, path: str) -> bool:
        """Whether that is a file."""
        return self.size(path) is not None

    def size(self, path: str) -> int | None:
        """The size of a file in bytes, or None where there is none."""
        return self._look(path, lambda: obstore.head(self._store, path)["size"])

    # --- small files

    def read(self, path: str) -> bytes | None:
        """The content of a small file, or None where there is none."""
        return self._look(path, lambda: obstore.get(self._store, path).bytes().to_bytes())

    def read_many(self, paths: Iterable[str]) -> list[bytes | None]:
        """The contents of several small files, read in parallel; None where there is none."""
        paths = list(paths)
        if len(paths) < 2:
            return [self.read(path) for path in paths]
        with ThreadPoolExecutor(min(PARALLEL_CALLS, len(paths))) as threads:
            return list(threads.map(self.read, paths))

    def write(self, path: str, content: bytes) -> None:
        """Write a file whole: a reader sees the old content or the new one."""
        _inside(path)
        self.check_available()
        with self._errors():
            obstore.put(self._store, path, content)
        self._flush(path)

    def create(self, path: str, content: bytes) -> bool:
        """Write a file unless it exists. True if this call wrote it. Of several simultaneous calls, exactly one does.

        The content must name its writer. An answer may get lost; the repeated call then finds the file, and its content
        says that this call wrote it.
        """
        _inside(path)
        self.check_available()
        try:
            with self._errors():
                obstore.put(self._store, path, content, mode="create")
        except FileExistsError:
            if (found := self.read(path)) is None:  # S3 also refuses while another write is under way
                raise StorageError(f"{path} is being written by another process") from None
            return found == content
        self._flush(path)
        return True

    def delete(self, path: str) -> None:
        """Delete a file, if it exists."""
        self._look(path, lambda: obstore.delete(self._store, path))

    def delete_folder(self, path: str) -> None:
        """Delete a folder and all that is in it, if it exists."""
        if (folder := self.local(path)) is not None:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(folder)
            return
        with self._errors():
            paths = [entry.path for entry in self.walk(path)]
            if paths:
                obstore.delete(self._store, paths)

    def write_sealed(self, path: str, content: Mapping[str, Any]) -> None:
        """Write plain data as JSON together with its SHA-256."""
        self.write(path, json.dumps({"sha256": _seal(content), "manifest": content}).encode())

    def read_sealed(self, path: str) -> dict[str, Any] | None:
        """The data that `write_sealed` wrote, or None where it is missing, torn or altered."""
        return unsealed(self.read(path))

    # --- large files

    def sha256(self, path: str) -> str | None:
        """SHA-256, in hex, of a file's content, or None where there is no file."""
        return self._look(path, lambda: _digest(self._content(path)))

    def copy_in(self, source: Path, path: str) -> str:
        """Copy a file of this machine into the storage; returns its SHA-256 in hex."""
        _inside(path)
        self.check_available()
        with self._writer(path) as writer:
            return _digest(_chunks(source), writer.write)

    def copy_out(self, path: str, target: Path) -> str | None:
        """Copy a file of the storage to this machine, with the folders above it. Returns its SHA-256 in hex, or None
        where there is no such file. An object is read in several parts at a time."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as writer:
            digest = self._look(path, lambda: _digest(self._content(path), writer.write))
        if digest is None:
            target.unlink()
        return digest

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

    @property
    def _exists(self) -> bool:
        """Whether there can be any files: a folder of this machine may not be there yet."""
        folder = self.location.folder
        return folder is None or folder.is_dir()

    @property
    def _store(self) -> ObjectStore:
        """The opened storage. A folder of this machine is created when something is first written to it."""
        if self._objects is None:
            self._objects = self.location.open()
        return self._objects

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn obstore's exceptions into OSErrors of one line.

        Raises:
            FileNotFoundError, FileExistsError: as their names say.
            StorageGone: the bucket or container is missing.
        """
        try:
            yield
        except AlreadyExistsError as error:
            raise FileExistsError(public(one_line(error))) from None
        except (BaseError, FileNotFoundError) as error:
            if any(word in str(error) for word in ABSENT):
                raise StorageGone(f"there is no bucket or container {self.location.bucket}") from None
            if isinstance(error, FileNotFoundError):
                raise
            raise StorageError(public(one_line(error))) from None

    def _look(self, path: str, read: Callable[[], Result]) -> Result | None:
        """The result of reading a file, or None where it does not exist.

        Raises:
            StorageGone: the whole storage is missing.
        """
        _inside(path)
        with contextlib.suppress(FileNotFoundError):
            if self._exists:
                with self._errors():
                    return read()
        self.check_available()
        return None

    def _content(self, path: str) -> Iterator[bytes]:
        """The content of a file, piece by piece. Several parts of an object are read at a time."""
        if (local := self.local(path)) is not None:
            yield from _chunks(local)
            return
        size = obstore.head(self._store, path)["size"]
        with ThreadPoolExecutor(PARALLEL_PARTS) as threads:
            parts: list[Future[obstore.Bytes]] = []
            for start in range(0, size, PART):
                if len(parts) == PARALLEL_PARTS:
                    yield parts.pop(0).result().to_bytes()
                end = min(start + PART, size)
                parts.append(threads.submit(obstore.get_range, self._store, path, start=start, end=end))
            for part in parts:
                yield part.result().to_bytes()

    @contextlib.contextmanager
    def _writer(self, path: str) -> Iterator[Any]:
        """A large file, opened for writing. A folder of this machine gets it under its own name at once, so that `gc`
        finds what a killed process has left."""
        if (local := self.local(path)) is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
            with local.open("wb") as stream:
                yield stream
            return
        with self._errors(), obstore.open_writer(self._store, path) as writer:
            yield writer

    def _flush(self, path: str) -> None:
        """Have a local file on the disk, so that it survives the loss of power."""
        if (local := self.local(path)) is None:
            return
        with contextlib.suppress(FileNotFoundError), local.open("rb") as stream:  # another process may have deleted it
            os.fsync(stream.fileno())


def unsealed(content: bytes | None) -> dict[str, Any] | None:
    """The data that `Files.write_sealed` wrote, or None where it is missing, torn or altered."""
    try:
        sealed = json.loads(content or b"{}")
        data: dict[str, Any] = sealed["manifest"]
        return data if sealed["sha256"] == _seal(data) else None
    except (ValueError, LookupError, TypeError):
        return None


def sha256_of(file: Path) -> str:
    """SHA-256, in hex, of a file of this machine."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _chunks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            yield chunk


def _digest(chunks: Iterable[bytes], write: Callable[[bytes], object] = lambda chunk: None) -> str:
    """SHA-256, in hex, of pieces that are also written somewhere."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        write(chunk)
    return digest.hexdigest()


def _inside(path: str) -> str:
    """The path, if it stays below the root.

    Raises:
        ValueError: it would lead out of the root.
    """
    if path.startswith("/") or ".." in path.split("/") or "\0" in path:
        raise ValueError(f"{path!r} leads out of the storage")
    return path


def _seal(content: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of plain data. Unlike a history, it may hold numbers that are not finite."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
