"""Where a sweep's time goes: its wall time part by part, its CPU time process by process.

Wall time comes from what the sweep says and keeps: the driver's parts in `--json`, and in the store when each stretch
was taken, trained and published, and each probe recorded. Whatever none of them covers is `other`. CPU time is looked
at from outside, a few times a second, so what is shorter than that is missed.
"""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store

LOOK_S = 0.25
DRIVER = {
    "checks": "the driver checks space, data and storage",
    "studies": "leases, journal",
    "ray": "Ray starts",
    "mlflow": "MLflow opens",
    "proposals": "Optuna's views open",
    "verified": "sharing verified",
    "lanes": "lanes stop",
    "ray's end": "Ray stops",
    "leases": "leases returned",
    "report": "report: tables, pictures, page",
    "mlflow's end": "MLflow hears the rest",
}


class Piece(NamedTuple):
    """Work of a lane, in seconds since the epoch. A probe's loading is part of its work."""

    kind: str
    taken: float
    began: float
    ended: float
    kept: float


def pieces(storage: Path) -> list[Piece]:
    """What one lane has done, in order."""
    store, found = Store(str(storage)), []
    for each in store.checkpoints():
        kept = (storage / "checkpoints" / str(each.step) / each.key / "manifest.json").stat().st_mtime
        facts = each.manifest.training
        found.append(Piece("train", facts.taken, facts.time - facts.seconds, facts.time, kept))
    for file in (storage / "records" / "probes").glob("*.json"):
        if record := store.record(ProbeRecord, file.stem):
            kept = file.stat().st_mtime
            found.append(Piece("probe", kept - record.seconds, kept - record.seconds, kept, kept))
    return sorted(found, key=lambda piece: piece.taken)


def parts(began: float, wall_s: float, told: dict[str, Any], work: list[Piece]) -> dict[str, float]:
    """Seconds of each part of a sweep whose process began at `began`, by its name; they add up to `wall_s`."""
    driver = told["driver"]
    found = {"interpreter, imports, reading the space": driver["began"] - began}
    ends, clock = {}, driver["began"]
    for part, seconds in driver["seconds"].items():
        clock += seconds
        ends[part] = clock
        if part == "search":
            search = clock - seconds
            found["a lane starts"] = max(0.0, work[0].taken - search)
            for piece in work:
                for name, seconds in _of_piece(piece):
                    found[name] = found.get(name, 0.0) + seconds
            lane = list(zip(work, work[1:], strict=False))
            found["the lane asks, trials and journal hear"] = sum(max(0.0, b.taken - a.kept) for a, b in lane)
            found["the last trial's end, Tune stops"] = clock - work[-1].kept
        else:
            found[DRIVER[part]] = seconds
    found["the interpreter ends"] = began + wall_s - clock
    found["other"] = wall_s - sum(found.values())
    return found


def _of_piece(piece: Piece) -> list[tuple[str, float]]:
    if piece.kind == "probe":
        return [("probes", piece.ended - piece.began)]
    return [
        ("stretches load", piece.began - piece.taken),
        ("training", piece.ended - piece.began),
        ("checkpoints saved and published", piece.kept - piece.ended),
    ]


class Processes:
    """CPU seconds of a process and all that it started, by what each is; to be used around its life."""

    def __init__(self, pid: int):
        self._root = psutil.Process(pid)
        self._seen: dict[tuple[int, float], tuple[str, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Processes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def by_name(self) -> dict[str, tuple[int, float]]:
        """How many there were of each, and their CPU seconds, most first."""
        count, seconds = Counter[str](), Counter[str]()
        for name, spent in self._seen.values():
            count[name] += 1
            seconds[name] += spent
        return {name: (count[name], spent) for name, spent in seconds.most_common()}

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            try:
                there = [self._root, *self._root.children(recursive=True)]
            except psutil.Error:
                return
            for process in there:
                try:
                    used = process.cpu_times()
                    name = "driver" if process == self._root else _name(process.cmdline())
                    self._seen[process.pid, process.create_time()] = (name, used.user + used.system)
                except (psutil.Error, IndexError):
                    continue


def _name(command: list[str]) -> str:
    """What a process of Ray's is: the actor or task that a worker names itself after, or its program."""
    if command[0].startswith("ray::"):
        return command[0].split("(")[0].split(".")[0].strip()
    if "-m" in command[:3]:
        return command[command.index("-m") + 1]
    script = next((word for word in command[1:] if word.endswith(".py")), command[0])
    return Path(script).name
