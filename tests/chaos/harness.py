"""A sweep on this machine whose processes are killed: what runs, what it is doing, what it has left behind.

Used by tests/chaos and by benchmarks/chaos.py. Only processes of the sweep that was started here are found, by a marker
in their environment.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
MARKER = "RAYSWEEP_CHAOS"
ROLES = {  # how Ray titles its processes
    "worker": "ray::RayTrainWorker",
    "trial": "ray::ImplicitFunc",
    "controller": "ray::TrainController",
    "dispatcher": "ray::_Shared",
    "host": "ray::_host",
}
MOMENTS = ("teacher", "student", "probe", "publish")
POLL_S = 0.003  # publishing a small checkpoint takes 50 ms

SPACE = """\
study: chaos
trial:
  iterations: 400000
  method:
    kind: self_guided
    guidance_scale: {log_uniform: [1.0, 60.0], default: 30.0}
    stop: {choice: [100000, 200000], default: 100000}
    teacher: {method: vae_align, iterations: {choice: [100000, 200000], default: 200000}}
search: {rungs: [100000, 200000], trials: 6, scheduler: {kind: asha, eta: 2}, startup_trials: 2}
enqueue:
  - {set: {}, fid: 22.91, is: 70.37}
  - {set: {method.guidance_scale: 1.0}, fid: 29.30}
  - {set: {method.stop: 200000}}
"""


class Sweep:
    """`python -m raysweep.run` on a space, started again and again until it is done."""

    def __init__(self, space: Path, storage: Path, *more: str):
        self.storage, self.marker, self.starts = storage, uuid.uuid4().hex, 0
        module = [sys.executable, "-m", "raysweep.run", str(space), "--profile", "smoke", "--storage", str(storage)]
        self._command = [*module, "--json", *more]
        # Two drivers may run on one storage: each writes files of its own.
        self._errors = storage.with_name(f"{storage.name}-{self.marker}-errors.txt")
        self._output = storage.with_name(f"{storage.name}-{self.marker}-output.txt")

    def start(self) -> None:
        """Start the command, or start it again."""
        self.starts += 1
        environment = {**os.environ, MARKER: self.marker, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        with self._errors.open("ab") as errors, self._output.open("wb") as output:
            self.driver = subprocess.Popen(self._command, cwd=ROOT, env=environment, stdout=output, stderr=errors)

    @property
    def running(self) -> bool:
        return self.driver.poll() is None

    @property
    def errors(self) -> str:
        """What all drivers so far have said."""
        return self._errors.read_text()

    def result(self, timeout_s: float = 400) -> dict[str, Any]:
        """The command's answer, when it has ended well."""
        code = self.driver.wait(timeout_s)
        assert code == 0, f"exit code {code}\n{self.errors[-3000:]}"
        found: dict[str, Any] = json.loads(self._output.read_text().strip().splitlines()[-1])
        return found

    def pids(self, role: str) -> list[int]:
        """The living processes of a role."""
        if role == "driver":
            return [self.driver.pid] if self.running else []
        return [pid for pid, title in self.processes().items() if title.startswith(ROLES[role])]

    def processes(self) -> dict[int, str]:
        """All living processes that descend from the command, by their titles."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if f"{MARKER}={self.marker}".encode() in (entry / "environ").read_bytes():
                        found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
                except OSError:
                    continue
        return found

    def kill(self, role: str, pick: Callable[[list[int]], int] = min) -> bool:
        """SIGKILL one process of a role; whether there was one."""
        if not (alive := self.pids(role)):
            return False
        try:
            os.kill(pick(alive), signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def left_behind(self, patience_s: float = 100) -> dict[int, str]:
        """The processes that outlive the command by that long. Ray's own agents take a minute to notice the death of a
        driver that had started them."""
        until = time.monotonic() + patience_s
        while (left := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        return left

    def moments(self) -> set[str]:
        """What the lanes are doing: publishing, or training a teacher or a student, or probing. A dispatcher that was
        killed leaves its leases there for a while."""
        found = set()
        for manifest in self.storage.glob("checkpoints/*/*"):
            if not (manifest / "manifest.json").exists():
                found.add("publish")
        for lease in self.storage.glob("leases/*.json"):
            try:
                facts = json.loads(lease.read_text())["facts"]
            except (OSError, ValueError):
                continue
            if facts["kind"] == "probe":
                found.add("probe")
            if facts["kind"] == "train":
                teaches = '"vae_align"' in facts["run"].split('"phases":[', 1)[1][:200]
                found.add("teacher" if teaches else "student")
        return found

    def wait_for(self, moment: str, role: str, timeout_s: float = 200) -> None:
        """Return when the lanes are at that and the role has a process; raises where the sweep ends before."""
        until = time.monotonic() + timeout_s
        alive, looked = False, 0.0
        while True:
            now = time.monotonic()
            if not alive or now - looked > 1:  # looking through /proc is slower than publishing
                alive, looked = bool(self.pids(role)), now
            if alive and moment in self.moments():
                return
            if not self.running:
                raise AssertionError(f"the sweep ended before '{moment}' came\n{self.errors[-2000:]}")
            if now > until:
                raise AssertionError(f"waited {timeout_s:.0f} s for '{moment}' with a {role}\n{self.errors[-2000:]}")
            time.sleep(POLL_S)


def told(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A sweep's trials without what was measured by the clock."""
    return [{name: value for name, value in trial.items() if name != "cost"} for trial in result["trials"]]


def bits(storage: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of every checkpoint in a store, by key."""
    found = {}
    for manifest in storage.glob("checkpoints/*/*/manifest.json"):
        said = json.loads(manifest.read_text())["manifest"]
        found[said["key"]] = {name.split("/")[-1]: facts["sha256"] for name, facts in said["files"].items()}
    return found


def table(storage: Path) -> list[list[str]]:
    """The cells of a study's table, but for the columns of costs."""
    lines = next(storage.glob("studies/*/table.md")).read_text().splitlines()
    rows = [line.split("|")[1:-1] for line in lines if "|" in line]
    costs = {number for number, name in enumerate(rows[0]) if "hours" in name}
    return [[cell for number, cell in enumerate(row) if number not in costs] for row in rows]


def traces(storage: Path) -> list[str]:
    """Leases and heartbeats that somebody has left in a store."""
    return [str(file.relative_to(storage)) for folder in ("leases", "owners") for file in storage.glob(f"{folder}/*")]
