"""Parts of probes that are not finished, in the store, so that whoever takes a probe over goes on with it."""

from __future__ import annotations

import contextlib
import hashlib

from raysweep.store.store import Store

DIGEST_BYTES = hashlib.sha256().digest_size


class Shards:
    """The shards of one probe by their numbers. They save time and nothing else: one that cannot be written is not, one
    that cannot be read or was altered is drawn again.

    Args:
        name: of the probe, and of all else that decides their bits.
    """

    def __init__(self, store: Store, name: str):
        self._store, self._place = store, f"shards/{name}"

    def get(self, number: int, /) -> bytes | None:
        """The content of a shard, if it is there."""
        with contextlib.suppress(OSError):
            if sealed := self._store.read(f"{self._place}/{number}"):
                digest, content = sealed[:DIGEST_BYTES], sealed[DIGEST_BYTES:]
                return content if hashlib.sha256(content).digest() == digest else None
        return None

    def __setitem__(self, number: int, content: bytes, /) -> None:
        with contextlib.suppress(OSError):
            self._store.write(f"{self._place}/{number}", hashlib.sha256(content).digest() + content)

    def clear(self) -> None:
        """Delete them all: the probe is finished."""
        with contextlib.suppress(OSError):
            for number in self._store.names(self._place):
                self._store.delete(f"{self._place}/{number}")
            self._store.fs.delete_dir(self._store.path(self._place))
