"""Where a sweep's time goes: its wall time part by part, its CPU time process by process.

Wall time comes from the driver's parts in its `--json` output, and from the store: when each segment was taken, trained
and committed, and each probe recorded. What is not covered is `other`. CPU time is sampled from outside a few times a
second, so shorter processes are missed.
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
    """One piece of a lane's work, in seconds since the epoch. A probe's loading is part of its work."""

    kind: str
    taken: float
    began: float
    ended: float
    kept: float


def pieces(storage: Path) -> list[Piece]:
    """The work of one lane, in order."""
    store, work = Store(str(storage)), []
    for checkpoint in store.checkpoints():
        kept = (storage / "checkpoints" / str(checkpoint.step) / checkpoint.key / "manifest.json").stat().st_mtime
        facts = checkpoint.manifest.training
        work.append(Piece("train", facts.taken, facts.time - facts.seconds, facts.time, kept))
    for file in (storage / "records" / "probes").glob("*.json"):
        if record := store.record(ProbeRecord, file.stem):
            kept = file.stat().st_mtime
            work.append(Piece("probe", kept - record.seconds, kept - record.seconds, kept, kept))
    return sorted(work, key=lambda piece: piece.taken)


def parts(began: float, wall_s: float, output: dict[str, Any], work: list[Piece]) -> dict[str, float]:
    """Seconds of each part of a sweep whose process began at `began`, by name. They add up to `wall_s`.

    Args:
        output: the JSON that the sweep printed.
    """
    driver = output["driver"]
    seconds_of = {"interpreter, imports, reading the space": driver["began"] - began}
    ends, clock = {}, driver["began"]
    for part, seconds in driver["seconds"].items():
        clock += seconds
        ends[part] = clock
        if part == "search":
            search = clock - seconds
            seconds_of["a lane starts"] = max(0.0, work[0].taken - search)
            for piece in work:
                for name, seconds in _of_piece(piece):
                    seconds_of[name] = seconds_of.get(name, 0.0) + seconds
            lane = list(zip(work, work[1:], strict=False))
            seconds_of["the lane asks, trials and journal hear"] = sum(max(0.0, b.taken - a.kept) for a, b in lane)
            seconds_of["the last trial's end, Tune stops"] = clock - work[-1].kept
        else:
            seconds_of[DRIVER[part]] = seconds
    seconds_of["the interpreter ends"] = began + wall_s - clock
    seconds_of["other"] = wall_s - sum(seconds_of.values())
    return seconds_of


def _of_piece(piece: Piece) -> list[tuple[str, float]]:
    if piece.kind == "probe":
        return [("probes", piece.ended - piece.began)]
    return [
        ("segments load", piece.began - piece.taken),
        ("training", piece.ended - piece.began),
        ("checkpoints saved and committed", piece.kept - piece.ended),
    ]


class Processes:
    """CPU seconds of a process and its descendants, by kind of process. A context manager around the process's life."""

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
        """The number of processes of each kind and their CPU seconds, the largest first."""
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
    """The kind of a process: the actor or task in the name of a Ray worker, or else its program."""
    if command[0].startswith("ray::"):
        return command[0].split("(")[0].split(".")[0].strip()
    if "-m" in command[:3]:
        return command[command.index("-m") + 1]
    script = next((word for word in command[1:] if word.endswith(".py")), command[0])
    return Path(script).name
