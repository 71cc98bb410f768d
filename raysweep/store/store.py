"""Checkpoints and records by key, on any filesystem that pyarrow knows.

    checkpoints/<step>/<key>/<nonce>/<file>     what was published
    checkpoints/<step>/<key>/manifest.json      written last: names the files, their sizes and SHA-256
    records/<kind>/<key>.json                   small facts, e.g. of a probe, sealed with a SHA-256
    records/<kind>/<key>.<ending>               what belongs to them: a probe's picture (png), its influences (npy)
    shards/<probe>/<number>                     parts of probes that are not finished
    aside/…                                     manifests of checkpoints that were found damaged, with what was wrong
    freed/<step>-<key>.json                     manifests of checkpoints whose files `gc` has deleted
    leases/…, owners/…                          who is at work on what: leases.py
    studies/<id>/…                              a study's journal, tables and plots

A checkpoint exists when its manifest does; a damaged one loses it and is never used.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from raysweep.store import history
from raysweep.store.files import CHUNK, Files, sha256_of
from trainables.config import Run

Influence = npt.NDArray[np.float32]


class CheckpointMissing(KeyError):
    """There is no such checkpoint, or there is none any more."""


class CheckpointDamaged(Exception):
    """A published checkpoint is not what its manifest says. It has been set aside."""


@dataclass(frozen=True)
class StoredCheckpoint:
    """A published checkpoint: its key, its step, and what its manifest says."""

    key: str
    step: int
    manifest: dict[str, Any]


class CheckpointIndex(Protocol):
    """What a dispatcher asks of a store."""

    uri: str

    def find(self, run: Run, step: int) -> StoredCheckpoint | None: ...
    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None: ...
    def record(self, kind: str, key: str) -> dict[str, Any] | None: ...


class Store(Files):
    """A folder of checkpoints and records that all hosts see; to be made and reached as `Files` is."""

    @property
    def cache(self) -> Path:
        """A folder of this machine for what can be made again: encoded data, reference statistics."""
        return self.local("cache") or Path(tempfile.gettempdir()) / "raysweep-cache"

    # --- checkpoints

    def publish(self, run: Run, step: int, folder: Path, facts: Mapping[str, Any]) -> str:
        """Publish the files of `folder` as `run`'s checkpoint at `step`, with `facts` in the manifest; returns the
        key."""
        description = history.describe(run, step)
        key = history.key_of(description)
        place, nonce = f"checkpoints/{step}/{key}", uuid.uuid4().hex[:12]
        files = {}
        try:
            for source in sorted(folder.iterdir()):
                target = f"{place}/{nonce}/{source.name}"
                files[f"{nonce}/{source.name}"] = {
                    "bytes": source.stat().st_size,
                    "sha256": self.copy_in(source, target),
                }
            manifest = {"key": key, "step": step, "files": files, "history": description, **facts}
            self.seal(f"{place}/manifest.json", manifest)
        except OSError:
            with contextlib.suppress(OSError):  # on a full disk every byte counts
                self.fs.delete_dir(self.path(place, nonce))
            raise
        return key

    def find(self, run: Run, step: int) -> StoredCheckpoint | None:
        """`run`'s checkpoint at exactly `step`, if it is published."""
        return self._manifest(step, history.key(run, step))

    def deepest(self, run: Run, step: int) -> StoredCheckpoint | None:
        """The latest published checkpoint on `run`'s way to `step`, `step` included."""
        for published in sorted(self._steps(), reverse=True):
            if published <= step and (found := self.find(run, published)):
                return found
        return None

    def has(self, key: str, step: int) -> bool:
        """Whether that checkpoint is published."""
        return self._manifest(step, key) is not None

    def told(self, key: str, step: int) -> dict[str, Any] | None:
        """The manifest of a checkpoint that is published or was, until `free` took its files."""
        found = self._manifest(step, key)
        return found.manifest if found else self.sealed(f"freed/{step}-{key}.json")

    def way(self, run: Run, step: int) -> list[dict[str, Any]]:
        """The manifests of all that led to `run`'s checkpoint at `step`, oldest first; freed ones too."""
        found: list[dict[str, Any]] = []
        while step and (manifest := self.told(history.key(run, step), step)):
            found.append(manifest)
            step = manifest["from_step"]
        return found[::-1]

    def free(self, found: StoredCheckpoint) -> None:
        """Delete a checkpoint; its manifest is kept among the freed ones, for lineages and costs."""
        place = f"checkpoints/{found.step}/{found.key}"
        self.seal(f"freed/{found.step}-{found.key}.json", found.manifest)
        self.delete(f"{place}/manifest.json")  # first: without it, nobody reads the rest
        self.fs.delete_dir(self.path(place))

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
            raise CheckpointMissing(f"no checkpoint {key}")
        place = f"checkpoints/{found.step}/{key}"
        if self.local() is None:
            return self._fetch(place, found)
        if wrong := self._wrong(found):
            raise self.set_aside(found, wrong)
        return Path(self.path(place, next(iter(found.manifest["files"])).split("/")[0]))

    def _fetch(self, place: str, found: StoredCheckpoint) -> Path:
        """The same from an object store: what this machine has already, or a copy."""
        for name, facts in found.manifest["files"].items():
            self.path(place, name)  # refuses a name that leads elsewhere
            copy = self.cache / "checkpoints" / found.key / name
            if copy.exists() and sha256_of(copy) == facts["sha256"]:
                continue
            copy.parent.mkdir(parents=True, exist_ok=True)
            aside = copy.with_name(f"{copy.name}.{uuid.uuid4().hex[:8]}")
            try:
                with self.fs.open_input_stream(self.path(place, name)) as reader, aside.open("wb") as writer:
                    while chunk := reader.read(CHUNK):
                        writer.write(chunk)
                if sha256_of(aside) != facts["sha256"]:
                    raise self.set_aside(found, f"{name} was altered")
                aside.replace(copy)
            except OSError:
                if self.is_there(f"{place}/{name}"):
                    raise
                self.check_there()
                raise self.set_aside(found, f"{name} is missing") from None
            finally:
                aside.unlink(missing_ok=True)
        return copy.parent

    def published(self) -> Iterator[StoredCheckpoint]:
        """All checkpoints, by step."""
        for step in sorted(self._steps()):
            for key in self.names(f"checkpoints/{step}"):
                if found := self._manifest(step, key):
                    yield found

    def verify(self) -> Iterator[tuple[StoredCheckpoint, str | None]]:
        """Every published checkpoint with what is wrong with its files, or None: every byte is read."""
        for found in self.published():
            yield found, self._wrong(found)

    def _wrong(self, found: StoredCheckpoint) -> str | None:
        self.check_there()
        place = f"checkpoints/{found.step}/{found.key}"
        for name, facts in found.manifest["files"].items():
            if self.fs.get_file_info(self.path(place, name)).size != facts["bytes"]:
                return f"{name} is missing or cut short"
            if self.digest(f"{place}/{name}") != facts["sha256"]:
                return f"{name} was altered"
        return None

    def set_aside(self, found: StoredCheckpoint, wrong: str) -> CheckpointDamaged:
        """Take away the manifest of a damaged checkpoint, and with it the checkpoint; the files stay until `gc`."""
        aside = f"aside/{found.step}-{found.key}-{uuid.uuid4().hex[:6]}.json"
        self.write(aside, json.dumps({"wrong": wrong, "manifest": found.manifest}).encode())
        self.delete(f"checkpoints/{found.step}/{found.key}/manifest.json")
        return CheckpointDamaged(f"checkpoint {found.key[:12]} at step {found.step}: {wrong}; set aside")

    # --- records

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that kind and key, if it is there and, with its files, as it was written."""
        sealed = self.sealed(f"records/{kind}/{key}.json")
        if sealed is None:
            return None
        for ending, digest in sealed.get("files", {}).items():  # none in those of an earlier version
            if self.digest(f"records/{kind}/{key}.{ending}") != digest:
                return None
        content: dict[str, Any] = sealed["content"]
        return content

    def noted(self, kind: str, key: str) -> dict[str, Any] | None:
        """What a record says, its files unseen: for who counts, and builds nothing on them."""
        sealed = self.sealed(f"records/{kind}/{key}.json")
        return None if sealed is None else dict(sealed["content"])

    def put_record(
        self, kind: str, key: str, record: Mapping[str, Any], files: Mapping[str, Path] = MappingProxyType({})
    ) -> None:
        """Keep a record; its files, by their endings, are there before it."""
        digests = {ending: self.copy_in(file, f"records/{kind}/{key}.{ending}") for ending, file in files.items()}
        self.seal(f"records/{kind}/{key}.json", {"content": dict(record), "files": digests})

    def influence(self, key: str) -> Influence | None:
        """What each sample of a probe weighs in the metric that decides, (N,) float32, or None where that is not
        stored."""
        content = self.read(f"records/probes/{key}.npy")
        return None if content is None else np.load(io.BytesIO(content), allow_pickle=False)

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

    def _manifest(self, step: int, key: str) -> StoredCheckpoint | None:
        # An altered manifest is none: what it names is computed again and takes its place.
        manifest = self.sealed(f"checkpoints/{step}/{key}/manifest.json")
        return StoredCheckpoint(key, step, manifest) if manifest else None
