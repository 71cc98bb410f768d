"""Finished parts of unfinished probes, kept in the store so that another worker can continue the probe."""

from __future__ import annotations

import contextlib
import hashlib

from raysweep.store.files import Files

DIGEST_BYTES = hashlib.sha256().digest_size


class Shards:
    """The shards of one probe by their numbers. They only save time: a shard that cannot be written is left out, and a
    shard that is missing or altered is drawn again.

    Args:
        name: identifies the probe and everything else that decides the bits of its shards.
    """

    def __init__(self, files: Files, name: str):
        self._files, self._folder = files, f"shards/{name}"

    def get(self, number: int, /) -> bytes | None:
        """The content of a shard, or None where it is missing or altered."""
        with contextlib.suppress(OSError):
            if sealed := self._files.read(f"{self._folder}/{number}"):
                digest, content = sealed[:DIGEST_BYTES], sealed[DIGEST_BYTES:]
                return content if hashlib.sha256(content).digest() == digest else None
        return None

    def __setitem__(self, number: int, content: bytes, /) -> None:
        with contextlib.suppress(OSError):
            self._files.write(f"{self._folder}/{number}", hashlib.sha256(content).digest() + content)

    def clear(self) -> None:
        """Delete all shards: the probe is finished."""
        with contextlib.suppress(OSError):
            for number in self._files.names(self._folder):
                self._files.delete(f"{self._folder}/{number}")
            self._files.delete_folder(self._folder)
