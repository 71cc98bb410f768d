"""How many calls of an object store raysweep makes, and what they take when each call takes 30 ms.

    python benchmarks/storage.py [--drivers 100] [--claims 400] [--trials 10000] [--checkpoints 100000] [--ms 30]

The store lies in memory (obstore's MemoryStore). Every call waits `--ms` milliseconds, as an answer of a real one
takes; a listing is one call for each 1,000 names. Calls that are made at the same time wait at the same time. Measured
are:

* `look`: a driver looks at the leases of `--drivers` other drivers, which hold `--claims` tasks in all.
* `append`: a driver adds an entry to a journal, and several entries that belong together, to a new and to a long one.
* `open`: a driver takes over a study of `--trials` trials.
* `start`: a driver begins a new study in an empty store, and in one of `--checkpoints` checkpoints at 1,000 different
  steps: it checks the storage, opens the study, and looks for the latest checkpoint of a student and of its teacher.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
from obstore.store import MemoryStore
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from raysweep.planning.simulation import trust_names
from raysweep.space import runs, space
from raysweep.space.space import Space
from raysweep.store import files as files_module
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.store import Store
from raysweep.study.extension import changed_from
from raysweep.study.journal import Journal
from raysweep.study.state import StudyState

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "search_spaces" / "table5.yaml"
PAGE = 1000  # names in one answer to a listing
STEPS = 1000  # different steps of the checkpoints
URI = "s3://memory/store?endpoint_override=127.0.0.1:1&scheme=http"  # of a server that is never asked

Row = dict[str, float]


class Simulated:
    """obstore's functions on one store in memory, whose calls are counted and take a time.

    Attributes:
        calls: made since `measure` was last called.
        wait_s: how long a call takes.
    """

    Bytes = obstore.Bytes

    def __init__(self) -> None:
        self.calls, self.wait_s = 0, 0.0
        self._objects = MemoryStore()

    def __getattr__(self, function: str) -> Callable[..., Any]:
        def call(store: Any, *arguments: Any, **options: Any) -> Any:
            result = getattr(obstore, function)(self._objects, *arguments, **options)
            names = 1
            if function == "list":
                result = list(result)
                names = sum(map(len, result))
            elif function == "list_with_delimiter":
                names = len(result["objects"]) + len(result["common_prefixes"])
            pages = max(1, -(-names // PAGE))
            self.calls += pages
            time.sleep(self.wait_s * pages)
            return result

        return call

    def measure(self, wait_s: float, work: Callable[[], object]) -> Row:
        """The calls that `work` makes, and the seconds that it takes if each takes `wait_s`."""
        self.calls, self.wait_s = 0, wait_s
        began = time.perf_counter()
        work()
        row = {"calls": self.calls, "seconds": time.perf_counter() - began}
        self.wait_s = 0.0
        return row


def look(storage: Simulated, drivers: int, claims: int, wait_s: float) -> Row:
    """A look at the leases of many drivers."""
    files = Store(URI).files
    owners = [Leases(files, beat_s=1e6) for _ in range(drivers)]
    for number, owner in zip(range(claims), itertools.cycle(owners)):
        owner.acquire(f"task-{number}", LeaseFacts("train", 0, 10))
    mine = Leases(files)
    row = storage.measure(wait_s, lambda: list(mine.others()))
    assert len(list(mine.others())) == claims
    for owner in owners:
        owner.close()
    return row


def append(storage: Simulated, entries: int, together: int, wait_s: float) -> Row:
    """One more batch of a journal that has `entries` entries."""
    journal = Journal(Store(URI).files, f"append-{entries}-{together}")
    for number in range(entries):
        journal.append("noted", number=number)

    def write() -> None:
        with journal.together():
            for number in range(together):
                journal.append("noted", number=number)

    return storage.measure(wait_s, write)


def open_study(storage: Simulated, searched: Space, trials: int, wait_s: float) -> Row:
    """Another driver takes over a study with so many trials."""
    store = Store(URI)
    study = StudyState(searched, store)
    first = searched.rungs(searched.trial({})[0])[0]
    for number in range(trials):
        point = searched.defaults | {"method.guidance_scale": 1.0 + 59.0 * number / trials}
        study.probed(study.propose(point).number, first, {study.metric: float(number % 97)})

    def again() -> None:
        journal = Journal(store.files, searched.id)
        journal.take_over()
        opened = StudyState(searched, store, journal, changed_from(searched, store))
        assert len(opened.trials) == trials

    return storage.measure(wait_s, again)


def start(storage: Simulated, searched: Space, checkpoints: int, wait_s: float) -> Row:
    """A driver begins a study in a store with so many checkpoints."""
    for number in range(checkpoints):
        key, step = hashlib.sha256(str(number).encode()).hexdigest(), 1 + number % STEPS
        storage.put(None, f"checkpoints/{step}/{key}/manifest.json", b"{}")
        storage.put(None, f"trunks/{key[::-1]}/{step}", b"")
    if checkpoints:
        storage.put(None, "trunks/complete", b"")

    def begin() -> None:
        store = Store(URI)
        store.files.check_writable()
        store.index()
        leases = Leases(store.files, beat_s=1e6)
        leases.acquire(f"study-{searched.id}", LeaseFacts("study"))
        journal = Journal(store.files, searched.id)
        journal.take_over()
        study = StudyState(searched, store, journal, changed_from(searched, store))
        run = study.run(study.propose(searched.defaults))
        for asked in (run, *(teacher.run for teacher in runs.teachers(run))):
            assert store.deepest(asked, asked.steps) is None
        leases.clear()
        leases.close()

    return storage.measure(wait_s, begin)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", type=int, default=100)
    parser.add_argument("--claims", type=int, default=400)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--checkpoints", type=int, default=100_000)
    parser.add_argument("--ms", type=float, default=30.0, help="that a call takes")
    options = parser.parse_args()
    trust_names()  # the data sets of the space need not be here
    wait_s = options.ms / 1000
    wide = ["trial.method.guidance_scale={uniform: [1.0, 60.0]}", f"search.trials={options.trials + 1}"]
    searched = space.load(FILE, overrides=[*wide, "enqueue=[{set: {}}]"])
    parts: dict[str, Callable[[Simulated], Row]] = {
        f"look at {options.drivers} drivers, {options.claims} tasks": lambda storage: look(
            storage, options.drivers, options.claims, wait_s
        ),
        "append to a new journal": lambda storage: append(storage, 0, 1, wait_s),
        f"append to one of {options.trials} entries": lambda storage: append(storage, options.trials, 1, wait_s),
        "append five entries together": lambda storage: append(storage, 10, 5, wait_s),
        f"open a study of {options.trials} trials": lambda storage: open_study(
            storage, searched, options.trials, wait_s
        ),
        "start in an empty store": lambda storage: start(storage, searched, 0, wait_s),
        f"start beside {options.checkpoints} checkpoints": lambda storage: start(
            storage, searched, options.checkpoints, wait_s
        ),
    }
    rows: dict[str, Row] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress:
        for name, part in progress.track(parts.items(), description="storage calls"):
            files_module.obstore = storage = Simulated()  # type: ignore[attr-defined]
            rows[name] = part(storage)
    table = Table("what", "storage calls", f"seconds at {options.ms:g} ms a call")
    for name, row in rows.items():
        table.add_row(name, f"{row['calls']:.0f}", f"{row['seconds']:.2f}")
    console.print(table)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
