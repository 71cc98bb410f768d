"""Checkpoints and records by key, in a folder or in an object store.

    checkpoints/<step>/<key>/<nonce>/<file>     the files of a checkpoint
    checkpoints/<step>/<key>/manifest.json      written last: names the files, their sizes and SHA-256
    records/<kind>/<key>.json                   small facts, e.g. of a probe, sealed with a SHA-256
    records/<kind>/<key>.<ending>               files of a record: a probe's picture (png), its influences (npy)
    shards/<probe>/<number>                     parts of probes that are not finished
    aside/…                                     manifests of damaged checkpoints, with what was wrong
    freed/<step>-<key>.json                     manifests of checkpoints whose files `gc` has deleted
    trunks/<trunk>/<step>                       that there is, or was, a checkpoint at a step of a trunk; empty
    trunks/complete                             that trunks/ lists every checkpoint; an earlier version wrote no trunks/
    leases/…, generations/…, owners/…           which driver works on what: leases.py
    studies/<id>/…                              a study's journal, tables and plots

A checkpoint is committed when its manifest is written. A damaged checkpoint loses its manifest and is never used again.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from raysweep.errors import UserError
from raysweep.store import history
from raysweep.store.files import PARALLEL_CALLS, Files, unsealed
from raysweep.store.manifest import FileFacts, Manifest, TrainingFacts
from raysweep.store.records import ProbeRecord, Record
from trainables.config import Run
from trainables.location import Location
from trainables.node_cache import Altered, Copies, Verified, budget_bytes, private_folder

BUDGET = "RAYSWEEP_CACHE_GIB"  # environment variable: most GiB of copies of checkpoints on a machine, for one user
DEFAULT_BUDGET_GIB = 100.0
INDEXED = "trunks/complete"
MANIFESTS = 1024  # that are read before any is given
Influence = npt.NDArray[np.float32]
RecordType = TypeVar("RecordType", bound=Record)


class CheckpointMissing(KeyError):
    """The checkpoint does not exist, or no longer exists."""


class CheckpointDamaged(Exception):
    """A checkpoint's files are not what its manifest says. The checkpoint has been set aside."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A committed checkpoint: its key, its step, and its manifest."""

    key: str
    step: int
    manifest: Manifest


class CheckpointIndex(Protocol):
    """The part of a store that a dispatcher needs."""

    uri: str

    def find(self, run: Run, step: int) -> StoredCheckpoint | None: ...
    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None: ...
    def record(self, kind: type[RecordType], key: str) -> RecordType | None: ...


class Store:
    """Checkpoints and records in a folder that all hosts see.

    Args:
        uri, mark: as `Files` takes them.

    Attributes:
        files: access to all files of the store, e.g. those that are neither checkpoints nor records.

    Raises:
        UserError: the storage cannot be reached, or RAYSWEEP_CACHE_GIB is no size.
    """

    def __init__(self, uri: str, mark: str | None = None):
        self.files = Files(uri, mark)
        self.uri = self.files.uri
        with _user_errors():
            self._budget = budget_bytes(BUDGET, DEFAULT_BUDGET_GIB)
        self._is_indexed = False

    @property
    def cache(self) -> Path:
        """A folder of this machine for data that can be computed again: encoded images, reference statistics. That of
        an object store belongs to one user and one store.

        Raises:
            UserError: it cannot be created, or other users could have put files there.
        """
        if (folder := self.files.local("cache")) is not None:
            return folder
        with _user_errors():
            return private_folder(_name(self.files.location))

    # --- checkpoints

    def commit(self, run: Run, step: int, folder: Path, training: TrainingFacts) -> StoredCheckpoint:
        """Copy the files of `folder` into the store as `run`'s checkpoint at `step`, a step from 1. Its manifest is
        written last.

        Raises:
            OSError: the storage cannot be used. Nothing is committed then.
        """
        description = history.describe(run, step)
        key = history.key_of(description)
        place, nonce = _folder(step, key), uuid.uuid4().hex[:12]
        files = {}
        try:
            for source in sorted(folder.iterdir()):
                name = f"{nonce}/{source.name}"
                files[name] = FileFacts(source.stat().st_size, self.files.copy_in(source, f"{place}/{name}"))
            manifest = Manifest(key, step, files, description, training)
            self.files.write(_on_trunk(description), b"")
            self.files.write_sealed(_manifest(step, key), manifest.as_dict())
        except OSError:
            with contextlib.suppress(OSError):  # free the space of a disk that may be full
                self.files.delete_folder(f"{place}/{nonce}")
            raise
        return StoredCheckpoint(key, step, manifest)

    def get(self, key: str, step: int) -> StoredCheckpoint | None:
        """The committed checkpoint with that key and step."""
        # An altered manifest counts as missing: the checkpoint is computed again and replaces it.
        content = self.files.read_sealed(_manifest(step, key))
        return StoredCheckpoint(key, step, Manifest.from_dict(content)) if content else None

    def find(self, run: Run, step: int) -> StoredCheckpoint | None:
        """`run`'s committed checkpoint at exactly `step`."""
        return self.get(history.key(run, step), step)

    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None:
        """`run`'s last committed checkpoint at or before `step`. How long that takes does not depend on how much is in
        the store, once `index` has been called."""
        for earlier in self._steps_of(run, step) if self._indexed else sorted(self._steps(), reverse=True):
            if earlier <= step and (checkpoint := self.find(run, earlier)):
                return checkpoint
        return None

    def index(self) -> None:
        """Have `deepest` find checkpoints by their trunks, also those of an earlier version. These are read once."""
        if self._indexed:
            return
        with ThreadPoolExecutor(PARALLEL_CALLS) as threads:
            for _ in threads.map(self._index, self.checkpoints()):
                pass
        self.files.write(INDEXED, b"")

    def manifest(self, key: str, step: int) -> Manifest | None:
        """The manifest of a checkpoint, also of one that `free` has deleted."""
        if checkpoint := self.get(key, step):
            return checkpoint.manifest
        content = self.files.read_sealed(_freed(step, key))
        return Manifest.from_dict(content) if content else None

    def segments(self, run: Run, step: int) -> list[Manifest]:
        """The manifests of all segments that led to `run`'s checkpoint at `step`, oldest first; deleted ones too."""
        manifests: list[Manifest] = []
        while step and (manifest := self.manifest(history.key(run, step), step)):
            manifests.append(manifest)
            step = manifest.training.from_step
        return manifests[::-1]

    def checkpoints(self) -> Iterator[StoredCheckpoint]:
        """All committed checkpoints, by step."""
        for step in sorted(self._steps()):
            keys = self.files.names(f"checkpoints/{step}")
            for some in (keys[first : first + MANIFESTS] for first in range(0, len(keys), MANIFESTS)):
                contents = self.files.read_many(_manifest(step, key) for key in some)
                for key, content in zip(some, map(unsealed, contents), strict=True):
                    if content:
                        yield StoredCheckpoint(key, step, Manifest.from_dict(content))

    def open(self, checkpoint: StoredCheckpoint) -> Path:
        """A folder of this machine with the checkpoint's files, each compared with its SHA-256.

        The files of a folder are compared once by each machine, and again after they were written to: see `Verified`
        for what that does not notice. `verify` always reads every byte. The files of an object store are copied once to
        each machine: see `Copies` for how long the copy stays.

        Raises:
            CheckpointDamaged: a file is missing or altered; the checkpoint has been set aside.
            OSError: the storage cannot be used.
            UserError: there is no safe place for a copy.
        """
        files = checkpoint.manifest.files
        place = f"{_folder(checkpoint.step, checkpoint.key)}/{_nonce(checkpoint)}"
        contents = {name.rpartition("/")[2]: (facts.bytes, facts.sha256) for name, facts in files.items()}
        try:
            if (folder := self.files.local(place)) is None:
                source = f"{_name(self.files.location)}/{place}"
                return self._copies.get(source, contents, lambda name, to: self.files.copy_out(f"{place}/{name}", to))
            self._verified.check(folder, contents)
            return folder
        except Altered as error:
            self.files.check_available()  # in a storage that is gone, files are missing too
            raise self.set_aside(checkpoint, str(error)) from None

    @property
    def _copies(self) -> Copies:
        # Made anew each time, because a user may delete the cache. One folder for all stores: they share the budget.
        with _user_errors():
            return Copies(private_folder("checkpoints"), Verified(private_folder("verified")), self._budget)

    @property
    def _verified(self) -> Verified:
        try:
            return Verified(private_folder("verified"))
        except ValueError:  # a storage in a folder needs no cache to be used
            return Verified(None)

    def verify(self) -> Iterator[tuple[StoredCheckpoint, str | None]]:
        """Every checkpoint with what is wrong with its files, or None. Reads every byte."""
        for checkpoint in self.checkpoints():
            yield checkpoint, self._wrong(checkpoint)

    def _wrong(self, checkpoint: StoredCheckpoint) -> str | None:
        self.files.check_available()
        for name, expected in checkpoint.manifest.files.items():
            path = f"{_folder(checkpoint.step, checkpoint.key)}/{name}"
            if self.files.size(path) != expected.bytes:
                return f"{name} is missing or cut short"
            if self.files.sha256(path) != expected.sha256:
                return f"{name} was altered"
        return None

    def free(self, checkpoint: StoredCheckpoint) -> None:
        """Delete a checkpoint. Its manifest moves to `freed/`, for provenance and costs."""
        folder, path = _folder(checkpoint.step, checkpoint.key), _manifest(checkpoint.step, checkpoint.key)
        # The manifest is copied as it is, because another version may have written it with other keys.
        if manifest := self.files.read(path):
            self.files.write(_freed(checkpoint.step, checkpoint.key), manifest)
        self.files.delete(path)  # first: without a manifest, no process reads the files
        self.files.delete_folder(folder)
        self.files.delete(_on_trunk(checkpoint.manifest.history))

    def set_aside(self, checkpoint: StoredCheckpoint, wrong: str) -> CheckpointDamaged:
        """Move the manifest of a damaged checkpoint to `aside/`, so that the checkpoint is not used any more; returns
        the exception to raise. The files stay until `gc`. Nothing is moved if another process has set the checkpoint
        aside or has committed it again."""
        key, step = checkpoint.key, checkpoint.step
        manifest = self.files.read_sealed(_manifest(step, key))
        if manifest and Manifest.from_dict(manifest).files == checkpoint.manifest.files:
            content = json.dumps({"wrong": wrong, "manifest": manifest}).encode()
            self.files.write(f"aside/{step}-{key}-{_nonce(checkpoint)[:6]}.json", content)
            self.files.delete(_manifest(step, key))
        return CheckpointDamaged(f"checkpoint {key[:12]} at step {step}: {wrong}; set aside")

    # --- records

    def record(self, kind: type[RecordType], key: str) -> RecordType | None:
        """The record of that kind and key, or None where it or one of its files is missing or altered.

        Raises:
            UserError: one of its files would lie outside the store. Nobody but an attacker writes that.
        """
        sealed = self.files.read_sealed(f"{_record(kind, key)}.json")
        if sealed is None:
            return None
        for ending, digest in sealed.get("files", {}).items():  # an earlier version wrote no "files"
            if "/" in ending:
                raise UserError(
                    f"{_record(kind, key)}.json: the file {ending!r} leads out of its folder; delete the record"
                )
            if self.files.sha256(f"{_record(kind, key)}.{ending}") != digest:
                return None
        return kind.from_dict(sealed["content"])

    def peek(self, kind: type[RecordType], key: str) -> RecordType | None:
        """Like `record`, without checking the record's files. For reports, which no result depends on."""
        sealed = self.files.read_sealed(f"{_record(kind, key)}.json")
        return None if sealed is None else kind.from_dict(sealed["content"])

    def put_record(self, key: str, record: Record, files: Mapping[str, Path] = MappingProxyType({})) -> None:
        """Write a record, after its files, which are given by their endings."""
        place = _record(type(record), key)
        digests = {ending: self.files.copy_in(file, f"{place}.{ending}") for ending, file in files.items()}
        self.files.write_sealed(f"{place}.json", {"content": record.as_dict(), "files": digests})

    def influence(self, key: str) -> Influence | None:
        """The influence of each sample of a probe on the deciding metric, shape (N,); None where it is not stored."""
        content = self.files.read(f"{_record(ProbeRecord, key)}.npy")
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)

    def picture(self, key: str) -> bytes | None:
        """A probe's grid of samples (PNG); None where it is not stored."""
        return self.files.read(f"{_record(ProbeRecord, key)}.png")

    # --- inside

    def _steps(self) -> list[int]:
        return [int(name) for name in self.files.names("checkpoints") if name.isdigit()]

    def _steps_of(self, run: Run, end: int) -> Iterator[int]:
        """The steps of `run` up to `end` at which there is, or was, a checkpoint. The last comes first."""
        ends = [0, *(phase.until for phase in run.phases)]
        for begin, until in reversed([*pairwise(ends)]):
            if begin < end:
                names = self.files.names(f"trunks/{history.trunk(run, begin + 1)}")
                steps = (int(name) for name in names if name.isdigit())
                yield from sorted((step for step in steps if begin < step <= min(until, end)), reverse=True)

    @property
    def _indexed(self) -> bool:
        self._is_indexed = self._is_indexed or self.files.exists(INDEXED)
        return self._is_indexed

    def _index(self, checkpoint: StoredCheckpoint) -> None:
        self.files.write(_on_trunk(checkpoint.manifest.history), b"")


def _folder(step: int, key: str) -> str:
    return f"checkpoints/{step}/{key}"


def _manifest(step: int, key: str) -> str:
    return f"{_folder(step, key)}/manifest.json"


def _on_trunk(description: dict[str, Any]) -> str:
    return f"trunks/{history.trunk_of(description)}/{description['step']}"


def _nonce(checkpoint: StoredCheckpoint) -> str:
    """The folder of a checkpoint's files: each commit of a checkpoint has another one."""
    return next(iter(checkpoint.manifest.files)).partition("/")[0]


def _freed(step: int, key: str) -> str:
    return f"freed/{step}-{key}.json"


def _record(kind: type[Record], key: str) -> str:
    return f"records/{kind.KIND}/{key}"


def _name(location: Location) -> str:
    """Names an object store in this machine's cache."""
    return hashlib.sha256(location.identity.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turn a ValueError into the UserError of the same message."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None
