"""What this machine keeps for one user: copies of remote files, and which files it has verified.

    <cache>/raysweep/<kind>/<name>/…         a copy, renamed into place when all its files are verified
    <cache>/raysweep/<kind>/<name>.part/…    a copy that is being made
    <cache>/raysweep/<kind>/<name>.making    locked by the process that makes the copy
    <cache>/raysweep/<kind>/<name>.used      locked by the processes that make or use the copy; its time: the last use
    <cache>/raysweep/verified/<name>.json    the stamps of files whose contents were compared

`<cache>` is `$XDG_CACHE_HOME`, else `~/.cache`. It should be on a disk of the machine.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

Contents = Mapping[str, tuple[int, str]]  # file name -> its size in bytes and its SHA-256 in hex
Copy = Callable[[str, Path], str | None]  # copies a file to a path; its SHA-256 in hex, or None where it is missing

FILES_AT_ONCE = 4  # files that are copied or read at a time
REMEMBERED_S = 30 * 86400.0  # how long this machine remembers that it has verified a file


class Altered(Exception):
    """A file is missing, or its contents are not what they should be. The message names it."""


def private_folder(*names: str) -> Path:
    """A folder in this user's cache, which is created with mode 0700 where it does not exist.

    Raises:
        ValueError: it cannot be created, or other users could have put files there.
    """
    home = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(home) if os.path.isabs(home) else Path.home() / ".cache"
        for name in ("raysweep", *names):
            folder /= name
            _create(folder)
            if fault := _exposure(folder.lstat()):
                raise ValueError(f"the cache {folder} {fault}; delete it, or set XDG_CACHE_HOME to a folder of yours")
    except (OSError, RuntimeError) as error:  # RuntimeError: this user has no home
        raise ValueError(f"no cache can be made ({error}); set XDG_CACHE_HOME to a folder of yours") from None
    return folder


def budget_bytes(variable: str, default_gib: float) -> float:
    """The bytes that an environment variable names in GiB.

    Raises:
        ValueError: it names none.
    """
    text = os.environ.get(variable) or str(default_gib)
    with contextlib.suppress(ValueError):
        if 0 <= float(text) < math.inf:
            return float(text) * 2**30
    raise ValueError(f"{variable}={text}: give the GiB that copies may take on this machine, such as {default_gib:g}")


class Verified:
    """Files of this machine that are compared with their SHA-256 once, and again after they have changed.

    A file has changed when its size, its inode, or the time of its last write or change of status is another one. What
    the machine verified before it was last started counts no more, because a crash can take the contents of a file and
    leave its times; nor does what it verified more than 30 days ago. A disk that alters bits by itself is noticed only
    then.

    Args:
        memory: the folder in which the machine remembers what it has verified; None: every call reads every byte.
    """

    def __init__(self, memory: Path | None):
        self._memory = memory

    def check(self, folder: Path, contents: Contents) -> None:
        """Compare the files of a folder. Of several processes that ask at the same time, one reads.

        Raises:
            Altered: a file is missing or altered.
            OSError: a file cannot be read.
        """
        stamps = _stamps(folder, contents)
        if self._remembered(folder) == stamps:
            return
        with contextlib.ExitStack() as stack:
            if self._memory:
                with contextlib.suppress(OSError):  # without a place for locks, every process reads for itself
                    stack.enter_context(_one_at_a_time(self._memory / f"{_name(str(folder))}.lock"))
            if self._remembered(folder) != stamps:
                _compare(contents, _read(folder, contents))
                self.remember(folder, stamps)

    def remember(self, folder: Path, stamps: Mapping[str, Any]) -> None:
        """Remember that the files of a folder, with these stamps, were compared."""
        if self._memory is None:
            return
        with contextlib.suppress(OSError):  # then they are compared again
            _forget(self._memory)
            with tempfile.NamedTemporaryFile(dir=self._memory, delete=False) as stream:
                stream.write(json.dumps(stamps).encode())
            os.replace(stream.name, self._file(self._memory, folder))

    def _remembered(self, folder: Path) -> Any:
        if self._memory and not _is_old(file := self._file(self._memory, folder)):
            with contextlib.suppress(OSError, ValueError):
                return json.loads(file.read_bytes())
        return None

    @staticmethod
    def _file(memory: Path, folder: Path) -> Path:
        return memory / f"{_name([str(folder), _started()])}.json"


class Copies:
    """Copies of remote files, each made once for all processes of this machine and user.

    When a new copy needs room, the least recently used ones are deleted until all fit into the budget and onto the
    disk. A copy that a process uses or makes stays, even if the budget is exceeded.

    Args:
        folder: where the copies lie.
        budget: the bytes that they may take.
    """

    def __init__(self, folder: Path, verified: Verified, budget: float):
        self.folder, self._verified, self._budget = folder, verified, budget

    def get(self, source: str, contents: Contents, copy: Copy) -> Path:
        """A folder with these files, each compared with its SHA-256. It stays until this process ends or calls
        `release`.

        One process copies and the others wait. If it fails, those that waited raise its error, so that a storage that
        does not answer delays each of them only once. If it is killed, one of them copies.

        Args:
            source: names the place that the files come from.

        Raises:
            Altered: a file is missing or is not what `contents` says.
            OSError: a file cannot be read, or there is no room on this machine.
        """
        place = self.folder / _name([source, contents])
        _hold(self._beside(place, "used"))
        if not self._intact(place, contents):
            with _one_at_a_time(self._beside(place, "making")):
                if not self._intact(place, contents):
                    self._make_room(place, sum(size for size, _ in contents.values()))
                    self._make(place, contents, copy)
        return place

    def _intact(self, place: Path, contents: Contents) -> bool:
        try:
            self._verified.check(place, contents)
        except Altered:
            return False
        return True

    def _make(self, place: Path, contents: Contents, copy: Copy) -> None:
        part = self._beside(place, "part")
        shutil.rmtree(part, ignore_errors=True)  # left by a killed process
        try:
            part.mkdir(0o700)
            with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
                digests = list(threads.map(lambda name: copy(name, part / name), contents))
            _compare(contents, dict(zip(contents, digests, strict=True)))
            self._verified.remember(place, _stamps(part, contents))
            shutil.rmtree(place, ignore_errors=True)  # a copy that was altered on this machine
            part.rename(place)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):  # writing to a file does not say where it is
                raise OSError(error.errno, os.strerror(error.errno), str(self.folder)) from None
            raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _make_room(self, incoming: Path, needed: int) -> None:
        places = {entry.with_suffix("") for entry in self.folder.iterdir()} - {incoming}
        for place in [place for place in places if not place.is_dir()]:
            if self._delete(place):  # what a process has left that failed or was killed
                places.remove(place)
        sizes = {place: self._bytes(place) for place in places}
        room = min(self._budget, shutil.disk_usage(self.folder).free + sum(sizes.values()))
        for place in sorted(places, key=lambda place: _written(self._beside(place, "used"))):
            if needed + sum(sizes.values()) <= room:
                return
            if self._delete(place):
                del sizes[place]

    def _bytes(self, place: Path) -> int:
        files = [*place.rglob("*"), *self._beside(place, "part").rglob("*")]
        return sum(_size(file) for file in files)

    def _delete(self, place: Path) -> bool:
        """Delete a copy that no process makes or uses. Returns whether it is deleted."""
        with contextlib.suppress(BlockingIOError), _lock(self._beside(place, "used"), wait=False):
            shutil.rmtree(place, ignore_errors=True)
            shutil.rmtree(self._beside(place, "part"), ignore_errors=True)
            self._beside(place, "making").unlink(missing_ok=True)
            self._beside(place, "used").unlink()
            return True
        return False

    @staticmethod
    def _beside(place: Path, ending: str) -> Path:
        return place.with_suffix(f".{ending}")


_in_use: dict[Path, BinaryIO] = {}  # open files, whose locks mark the copies that this process uses


def release() -> None:
    """This process uses the copies that it got from `Copies.get` no longer. They may be deleted."""
    while _in_use:
        _in_use.popitem()[1].close()


def _hold(file: Path) -> None:
    stream = _lock(file, shared=True)
    os.utime(file)
    if before := _in_use.pop(file, None):
        before.close()
    _in_use[file] = stream


def _lock(file: Path, *, shared: bool = False, wait: bool = True) -> BinaryIO:
    """A file that is locked until it is closed. Whoever holds its only lock may delete it.

    Raises:
        BlockingIOError: another process holds the lock, and this one shall not wait.
    """
    while True:
        stream = file.open("a+b")
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                    return stream
        except BaseException:
            stream.close()
            raise
        stream.close()  # it was deleted before this process got the lock


@contextlib.contextmanager
def _one_at_a_time(file: Path) -> Iterator[None]:
    """Have one process of this machine at a time do something. When it fails, those that waited for it raise its error
    and do not try.

    Raises:
        Altered, OSError: that error.
    """
    waited = False
    try:
        stream = _lock(file, wait=False)
    except BlockingIOError:
        waited, stream = True, _lock(file)
    with stream:
        stream.seek(0)
        if waited and (failure := stream.read()):
            raise (Altered if failure[:1] == b"A" else OSError)(failure[1:].decode())
        stream.truncate(0)
        try:
            yield
        except (Altered, OSError) as error:
            with contextlib.suppress(OSError):  # then those that wait try for themselves
                os.write(stream.fileno(), f"{'A' if isinstance(error, Altered) else 'O'}{error}".encode())
            raise
        file.unlink(missing_ok=True)


def _create(folder: Path) -> None:
    """Create a folder, and those above it, with mode 0700. One that exists stays as it is."""
    if not folder.parent.exists():
        _create(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir(0o700)


def _exposure(status: os.stat_result) -> str | None:
    """Why other users could have put files into a folder, or None."""
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link"
    if not stat.S_ISDIR(status.st_mode):
        return "is no folder"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    return "can be written by other users" if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) else None


def _stamps(folder: Path, contents: Contents) -> dict[str, list[int | str]]:
    """What tells whether the files of a folder have changed.

    Raises:
        Altered: a file is missing or of another size.
    """
    stamps: dict[str, list[int | str]] = {}
    for name, (size, sha256) in contents.items():
        try:
            status = (folder / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            raise Altered(f"{name} is missing") from None
        if status.st_size != size:
            raise Altered(f"{name} is of another size: {status.st_size:,} bytes, not {size:,}")
        stamps[name] = [size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, sha256]
    return stamps


def _read(folder: Path, contents: Contents) -> dict[str, str]:
    """SHA-256, in hex, of the files of a folder."""
    with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
        return dict(zip(contents, threads.map(lambda name: _sha256(folder / name), contents), strict=True))


def _compare(contents: Contents, digests: Mapping[str, str | None]) -> None:
    for name, (_, sha256) in contents.items():
        if digests[name] != sha256:
            raise Altered(f"{name} is missing" if digests[name] is None else f"{name} was altered")


def _forget(memory: Path) -> None:
    """Delete what was written too long ago: what was verified then, and files that killed processes have left."""
    for file in memory.iterdir():
        if _is_old(file):
            file.unlink(missing_ok=True)


def _is_old(file: Path) -> bool:
    return time.time() - _written(file) > REMEMBERED_S


def _started() -> str:
    """Names the time from a start of this machine to the next one; empty where the system does not tell."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _written(file: Path) -> float:
    """When a file was last written, in seconds since 1970; 0 where there is none."""
    with contextlib.suppress(OSError):
        return file.stat().st_mtime
    return 0.0


def _size(file: Path) -> int:
    with contextlib.suppress(FileNotFoundError):  # another process has renamed or deleted it
        return file.stat().st_size
    return 0


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _name(facts: Any) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
