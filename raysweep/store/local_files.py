"""Files that must lie on this machine because other programs open them: SQLite's, and reports.

In a store that is a folder they lie there. For an object store they lie in this machine's cache, and the store gets
copies.
"""

from __future__ import annotations

import contextlib
import sqlite3
import tempfile
import uuid
from pathlib import Path

from raysweep.retry import Notify
from raysweep.store.store import Store
from raysweep.uris import sqlite_uri
from trainables.errors import one_line
from trainables.location import inside


def local_place(store: Store, path: str) -> Path:
    """The path on this machine of a file or folder of the store."""
    return store.files.local(path) or store.cache / inside(path)


def copy_into_store(store: Store, path: str, file: Path) -> None:
    """Copy a file of this machine into the store as `path`, unless `local_place` is in the store itself.

    Raises:
        OSError: the storage cannot be used.
    """
    if store.files.local() is None:
        store.files.copy_in(file, path)


class Database:
    """A SQLite file of a store, on this machine. If this machine has none, the store's copy is taken. A damaged file is
    set aside: what is in it is made again from the journals.

    Args:
        path: its path in the store.
        notify: receives a message about a damaged file, and one if `save` fails.

    Raises:
        OSError: the storage cannot be used.
    """

    def __init__(self, store: Store, path: str, notify: Notify):
        self._store, self._path, self._notify = store, path, notify
        self.file = local_place(store, path)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        if not self.file.exists() and store.files.local() is None:
            self._fetch()
        if self.file.exists() and not _is_sound(self.file):
            aside = self.file.with_name(f"{self.file.name}.damaged-{uuid.uuid4().hex[:6]}")
            self.file.replace(aside)
            notify(f"{self.file.name} was damaged and is made again; the old one is {aside.name}")

    @property
    def uri(self) -> str:
        """Its URI for SQLAlchemy, MLflow and Optuna."""
        return sqlite_uri(self.file)

    def save(self) -> None:
        """Copy the database, as it is now, into the store, unless it lies there. It may be in use. A failure is only
        notified, because nothing depends on the copy."""
        if self._store.files.local() is not None or not self.file.exists():
            return
        try:
            with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
                snapshot = Path(folder, self.file.name)
                with (
                    contextlib.closing(sqlite3.connect(self.file)) as source,
                    contextlib.closing(sqlite3.connect(snapshot)) as target,
                ):
                    source.backup(target)
                copy_into_store(self._store, self._path, snapshot)
        except (OSError, sqlite3.Error) as error:
            self._notify(f"{self.file} was not copied into the storage: {one_line(error)}; the next sweep copies it")

    def _fetch(self) -> None:
        """Take the store's copy, if it has one."""
        with tempfile.TemporaryDirectory(dir=self.file.parent) as folder:
            copy = Path(folder, self.file.name)
            if self._store.files.copy_out(self._path, copy):
                copy.replace(self.file)


def _is_sound(database: Path) -> bool:
    try:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return connection.execute("PRAGMA quick_check").fetchone() == ("ok",)
    except sqlite3.DatabaseError:
        return False
