"""Prepared data sets: folders of latents that `raysweep prepare` writes, wherever `trainables.location` finds them.

    manifest.json                        the list of contents; written last
    shards/00000.arrow …                 the latents (latent_files.py)
    autoencoder/                         the one that made the latents, in diffusers' format; probes decode with it
    reference-<detector>.safetensors     statistics of the real images, for probes

The manifest's `content` is everything that the numbers of a training depend on. Its SHA-256 is the set's identity,
which enters history keys; the place of the set does not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from obstore.exceptions import BaseError

from trainables.errors import one_line
from trainables.location import Location, inside
from trainables.node_cache import private_folder
from trainables.redaction import public, public_uri

if TYPE_CHECKING:
    from obstore.store import ObjectStore

ROOT = "RAYSWEEP_DATA"  # environment variable: the folder or URI that contains sets by name
BUDGET = "RAYSWEEP_DATA_CACHE_GIB"  # environment variable: most GiB of copies of remote sets on a machine
DEFAULT_BUDGET_GIB = 500.0
MANIFEST = "manifest.json"
FORMAT = 1
_PART = 1 << 24  # bytes of a remote file that are read with one request
_THREADS = 8  # threads that copy or read files; enough to saturate a disk or a network


class Absent(LookupError):
    """There is no prepared set in that place."""


@dataclass(frozen=True)
class Prepared:
    """A prepared set's manifest."""

    location: str  # a folder or a URI
    content: dict[str, Any]  # everything that the numbers of a training depend on
    pictures: str | None  # SHA-256 of the images in the shards, if they are kept
    files: dict[str, dict[str, Any]]  # by path: bytes and SHA-256
    about: dict[str, Any]  # for people: source, classes, statistics, versions

    @property
    def identity(self) -> str:
        """SHA-256 (hex) of the content, which enters history keys."""
        return _sealed(self.content)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        channels, height, width = self.content["latent_shape"]
        return channels, height, width

    @property
    def images(self) -> list[int]:
        """The number of images of each shard, in order."""
        return [shard["images"] for shard in self.content["shards"]]

    @property
    def shards(self) -> list[str]:
        """The paths of the shards in the set, in order."""
        return [f"shards/{number:05}.arrow" for number in range(len(self.content["shards"]))]

    def spell(self) -> bytes:
        """The bytes of the manifest file."""
        facts = {name: value for name, value in vars(self).items() if name != "location"}
        facts |= {"format": FORMAT, "identity": self.identity}
        return json.dumps(facts | {"sha256": _sealed(facts)}, indent=1).encode()


def _sealed(facts: dict[str, Any]) -> str:
    """SHA-256 (hex) of plain data."""
    spelled = json.dumps(facts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(spelled.encode()).hexdigest()


def locate(name: str) -> str | None:
    """The folder or URI of a set. A name with a slash is one itself; other names are looked up in `RAYSWEEP_DATA`. None
    if that is not set.

    Raises:
        LookupError: `RAYSWEEP_DATA` is neither a folder nor a URI, or the name leads out of it.
    """
    if "/" in name:
        return absolute(name)
    root = os.environ.get(ROOT)
    if not root:
        return None
    try:
        return str(Location.parse(root) / name)
    except ValueError as error:
        raise LookupError(f"no data set '{public_uri(name)}': {ROOT}={public_uri(root)}: {error}") from None


def absolute(name: str) -> str:
    """`name`, with a relative folder made absolute, so that it means the same set in every working directory."""
    return os.path.abspath(os.path.expanduser(name)) if "/" in name and "://" not in name else name


def names() -> list[str]:
    """The names of the sets in `RAYSWEEP_DATA`."""
    root = os.environ.get(ROOT)
    if not root:
        return []
    with contextlib.suppress(OSError, BaseError, ValueError):
        place = Location.parse(root)
        if place.folder:
            return sorted(folder.name for folder in place.folder.iterdir() if (folder / MANIFEST).is_file())
        store = place.open()
        folders = obstore.list_with_delimiter(store)["common_prefixes"]
        manifests = {f"{folder}/{MANIFEST}" for folder in folders}
        with ThreadPoolExecutor(_THREADS) as threads:
            there = threads.map(lambda manifest: _has(store, manifest), sorted(manifests))
            return [name.split("/")[0] for name, has in zip(sorted(manifests), there, strict=True) if has]
    return []


@lru_cache
def read(location: str) -> Prepared:
    """The manifest of the set at `location`. Cached per process.

    Raises:
        LookupError: there is no prepared set (`Absent`), the storage cannot be read, or the manifest is truncated,
            altered or of another format.
    """
    try:
        place = Location.parse(location)
        written = _read_manifest(place)
    except FileNotFoundError:
        raise Absent(f"nothing prepared at {public_uri(location)}: raysweep prepare makes a set") from None
    except (OSError, BaseError, ValueError) as error:
        reason = public(one_line(error))
        raise LookupError(f"the data set at {public_uri(location)} cannot be read: {reason}") from None
    manifest = _shown(place, MANIFEST)
    try:
        facts = json.loads(written)
        intact, written_as = facts.pop("sha256") == _sealed(facts), facts["format"]
        parts = {name: facts[name] for name in ("content", "pictures", "files", "about")}
        names = list(parts["files"])
    except (ValueError, LookupError, TypeError, AttributeError):
        raise LookupError(f"{manifest} is truncated; prepare the set again") from None
    if written_as != FORMAT:
        raise LookupError(f"{manifest}: of format {written_as}, but this version reads {FORMAT}")
    if not intact:
        raise LookupError(f"{manifest} was altered since it was written; prepare the set again")
    try:
        for name in names:
            inside(name)
    except ValueError as error:  # a copy of the set would be written outside the cache
        raise LookupError(f"{manifest}: {error}; raysweep prepare wrote no such set") from None
    return Prepared(location, **parts)


def fetch(prepared: Prepared, cache: Path) -> Path:
    """The set's folder on this machine. Each file is compared with the manifest once.

    A set on a local filesystem is used in place. A remote set is copied into `cache`, where the least recently used
    sets are deleted once all together exceed `RAYSWEEP_DATA_CACHE_GIB`; sets in use by a process stay. One process
    copies, and others wait for it.

    Raises:
        LookupError: a file is missing, truncated or altered; the message names it.
    """
    place = Location.parse(prepared.location)
    if place.folder:
        stamps = _stamps_file(prepared)
        with _exclusive_lock(stamps.with_suffix(".lock")) if stamps else contextlib.nullcontext():
            _compare(prepared, place.folder, stamps)
        return place.folder
    (copies := cache / "data").mkdir(parents=True, exist_ok=True)
    folder = copies / prepared.identity
    _mark_in_use(copies / f"{prepared.identity}.used")
    with _exclusive_lock(copies / "copying"):
        if not (folder / MANIFEST).is_file():
            _evict(copies, prepared)
            _copy(prepared, place, folder)
        os.utime(copies / f"{prepared.identity}.used")
    return folder


def examine(prepared: Prepared, cache: Path) -> None:
    """Compare the set with its manifest. A local set is compared as in `fetch`. Of a remote set only the sizes of its
    files are compared, as `fetch` compares the contents of what it copies.

    Raises:
        LookupError: a file is missing, truncated or altered; the message names it.
    """
    place = Location.parse(prepared.location)
    if place.folder:
        fetch(prepared, cache)
    else:
        _compare_sizes(prepared, place)


def _compare(prepared: Prepared, folder: Path, stamps_file: Path | None) -> None:
    """Compare the sizes of all files, and the contents of those that changed since this machine last compared them;
    without a file that says so, of all."""
    known = _read_stamps(stamps_file) if stamps_file else {}
    due = []
    for name, wanted in prepared.files.items():
        try:
            status = (folder / name).stat()
        except OSError:
            raise LookupError(f"{folder / name} is missing; prepare the set again") from None
        _check_size(str(folder / name), status.st_size, wanted["bytes"])
        if known.get(name) != [status.st_size, status.st_mtime_ns]:
            due.append((name, [status.st_size, status.st_mtime_ns]))
    with ThreadPoolExecutor(_THREADS) as threads:
        contents = threads.map(lambda item: _sha256(folder / item[0]), due)
        for (name, stamp), sha256 in zip(due, contents, strict=True):
            if sha256 != prepared.files[name]["sha256"]:
                raise LookupError(
                    f"{folder / name} was altered: its SHA-256 is not the manifest's; prepare the set again"
                )
            known[name] = stamp
    if due and stamps_file:
        _write(stamps_file, json.dumps(known).encode())


def _compare_sizes(prepared: Prepared, place: Location) -> None:
    """Compare the sizes of all files of a remote set, which one listing tells."""
    try:
        chunks = obstore.list(place.open())
        sizes = {entry["path"]: entry["size"] for chunk in chunks for entry in chunk}
    except (OSError, BaseError, ValueError) as error:
        reason = public(one_line(error))
        raise LookupError(f"the data set at {public_uri(prepared.location)} cannot be read: {reason}") from None
    for name, wanted in prepared.files.items():
        _check_size(_shown(place, name), sizes.get(name), wanted["bytes"])


def _check_size(place: str, size: int | None, wanted: int) -> None:
    if size is None:
        raise LookupError(f"{place} is missing; prepare the set again")
    if size != wanted:
        raise LookupError(f"{place} is truncated: {size:,} bytes of {wanted:,}; prepare the set again")


def _stamps_file(prepared: Prepared) -> Path | None:
    """The file in which this machine records the size and modification time of every file that it has compared. There
    is one per location, because a copy of a set may have the same times. None where this user has no folder in which
    nobody else could have put it."""
    name = _sealed({"location": prepared.location, "identity": prepared.identity})
    with contextlib.suppress(ValueError):
        return private_folder() / f"{name}.checked"
    return None


def _copy(prepared: Prepared, place: Location, folder: Path) -> None:
    _compare_sizes(prepared, place)
    store = place.open()
    temporary = folder.with_name(f"{folder.name}.{uuid.uuid4().hex[:8]}")

    def copy(name: str) -> None:
        digest, target, size = hashlib.sha256(), temporary / name, prepared.files[name]["bytes"]
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("wb") as stream:
            for start in range(0, size, _PART):
                try:
                    part = obstore.get_range(store, name, start=start, end=min(start + _PART, size))
                except (OSError, BaseError) as error:
                    reason = public(one_line(error))
                    raise LookupError(f"{_shown(place, name)} cannot be read: {reason}") from None
                digest.update(part)
                stream.write(part)
        if digest.hexdigest() != prepared.files[name]["sha256"]:
            raise LookupError(f"{_shown(place, name)} was altered; prepare the set again")

    try:
        with ThreadPoolExecutor(_THREADS) as threads:
            list(threads.map(copy, prepared.files))
        (temporary / MANIFEST).write_bytes(prepared.spell())
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _evict(folder: Path, incoming: Prepared) -> None:
    """Make room for a set: delete copies, least recently used first, until all sets fit into the budget. A copy that a
    process uses is kept, even if the budget is exceeded."""
    budget = float(os.environ.get(BUDGET) or DEFAULT_BUDGET_GIB) * 2**30
    for torn in folder.glob("????????????????????????????????????????????????????????????????.????????"):
        shutil.rmtree(torn, ignore_errors=True)  # left by a killed process; this one holds the lock for copying
    copies = [place for place in folder.iterdir() if (place / MANIFEST).is_file()]
    sizes = {place: sum(file.stat().st_size for file in place.rglob("*") if file.is_file()) for place in copies}
    needed = sum(file["bytes"] for file in incoming.files.values())
    for place in sorted(copies, key=lambda place: place.with_name(f"{place.name}.used").stat().st_mtime):
        if needed + sum(sizes.values()) <= budget:
            return
        with place.with_name(f"{place.name}.used").open("ab") as used:
            try:
                fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            shutil.rmtree(place, ignore_errors=True)
            del sizes[place]


_in_use: dict[Path, Any] = {}  # open files whose locks mark the copies that this process uses


def _mark_in_use(file: Path) -> None:
    if file not in _in_use:
        stream = file.open("ab")
        fcntl.flock(stream, fcntl.LOCK_SH)
        _in_use[file] = stream


@contextlib.contextmanager
def _exclusive_lock(file: Path) -> Iterator[None]:
    """Hold a lock that only one process of this machine can have at a time."""
    with file.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read_stamps(file: Path) -> dict[str, list[int]]:
    try:
        known: dict[str, list[int]] = json.loads(file.read_bytes())
        return known
    except (OSError, ValueError):
        return {}


def _write(file: Path, content: bytes) -> None:
    """Write atomically. Errors are ignored, as the content can be computed again."""
    with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=file.parent, delete=False) as stream:
        stream.write(content)
        os.replace(stream.name, file)


def _read_manifest(place: Location) -> bytes:
    if place.folder:
        return (place.folder / MANIFEST).read_bytes()
    return obstore.get(place.open(), MANIFEST).bytes().to_bytes()


def _has(store: ObjectStore, path: str) -> bool:
    try:
        obstore.head(store, path)
    except FileNotFoundError:
        return False
    return True


def _shown(place: Location, name: str) -> str:
    """The place of a file of a set, for people."""
    return public(str(place / name))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
