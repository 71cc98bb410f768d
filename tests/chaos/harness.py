"""A sweep on this machine whose processes are killed: start it, see what it is doing, kill, compare its results.

Used by tests/chaos, tests/raysweep/test_sweep.py and benchmarks/chaos.py. Every process of a sweep carries a marker in
its environment, so that processes of other sweeps are never touched.
"""

from __future__ import annotations

import contextlib
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
    "dispatcher": "ray::DispatcherActor",
    "host": "ray::_host",
}
MOMENTS = ("teacher", "student", "probe", "commit")
POLL_S = 0.003  # committing a small checkpoint takes 50 ms
MOMENT_S = 200.0  # for a moment to come, on a busy machine: a killed lane takes 20 s to come up on a quiet one

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
    """`python -m raysweep.run` on a space, which may be started again and again until it ends well.

    Args:
        space: the search space's file.
        storage: the folder of its store. Output and errors go into files beside it.
        more: further arguments of the command.
        cwd: the folder in which it runs.
    """

    def __init__(self, space: Path, storage: Path, *more: str, cwd: Path = ROOT):
        self.storage, self.marker, self.starts, self._cwd = storage, uuid.uuid4().hex, 0, cwd
        module = [sys.executable, "-m", "raysweep.run", str(space), "--profile", "smoke", "--storage", str(storage)]
        self._command = [*module, "--json", *more]
        # Two sweeps may share a storage: each writes files of its own.
        self._errors = storage.with_name(f"{storage.name}-{self.marker}-errors.txt")
        self._output = storage.with_name(f"{storage.name}-{self.marker}-output.txt")

    def start(self) -> None:
        """Start the command, for the first time or again."""
        self.starts += 1
        environment = {**os.environ, MARKER: self.marker, "OMP_NUM_THREADS": "1", "RAY_worker_niceness": "0"}
        with self._errors.open("ab") as errors, self._output.open("wb") as output:
            self.driver = subprocess.Popen(self._command, cwd=self._cwd, env=environment, stdout=output, stderr=errors)

    @property
    def running(self) -> bool:
        """Whether the driver runs."""
        return self.driver.poll() is None

    @property
    def errors(self) -> str:
        """The stderr of all starts so far."""
        return self._errors.read_text()

    def result(self, timeout_s: float = 400) -> dict[str, Any]:
        """The JSON object of the command, which is waited for and must exit with 0."""
        code = self.driver.wait(timeout_s)
        assert code == 0, f"exit code {code}\n{self.errors[-3000:]}"
        result: dict[str, Any] = json.loads(self._output.read_text().strip().splitlines()[-1])
        return result

    def pids(self, role: str) -> list[int]:
        """The living processes of a role: one of ROLES, or `driver`."""
        if role == "driver":
            return [self.driver.pid] if self.running else []
        return [pid for pid, title in self.processes().items() if title.startswith(ROLES[role])]

    def processes(self) -> dict[int, str]:
        """All living processes that descend from the command, with their titles."""
        titles = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    if f"{MARKER}={self.marker}".encode() in (entry / "environ").read_bytes():
                        title = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                        titles[int(entry.name)] = title.decode().strip()
                except OSError:  # it has ended
                    continue
        return titles

    def kill(self, role: str, pick: Callable[[list[int]], int] = min) -> bool:
        """Send SIGKILL to one process of a role; returns whether there was one. A killed driver is also waited for."""
        if not (alive := self.pids(role)):
            return False
        try:
            os.kill(pick(alive), signal.SIGKILL)
        except ProcessLookupError:
            return False
        if role == "driver":
            self.driver.wait()
        return True

    def kill_all(self) -> None:
        """Send SIGKILL to all processes that descend from the command."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def left_behind(self, timeout_s: float = 100) -> dict[int, str]:
        """The processes that outlive the command by `timeout_s`. Ray's agents take a minute to notice that the driver
        that started them is dead."""
        until = time.monotonic() + timeout_s
        while (processes := self.processes()) and time.monotonic() < until:
            time.sleep(0.2)
        return processes

    def moments(self) -> set[str]:
        """Those of MOMENTS that the lanes are in, read from leases and unfinished checkpoints in the store. The leases
        of a dispatcher that was killed stay there for a while."""
        moments = set()
        for folder in self.storage.glob("checkpoints/*/*"):
            if not (folder / "manifest.json").exists():
                moments.add("commit")
        for lease in self.storage.glob("leases/*"):
            try:
                facts = json.loads(lease.read_text())["facts"]
            except (OSError, ValueError):  # released, or just being written
                continue
            if facts["kind"] == "probe":
                moments.add("probe")
            if facts["kind"] == "train":
                teacher = '"vae_align"' in facts["run"].split('"phases":[', 1)[1][:200]
                moments.add("teacher" if teacher else "student")
        return moments

    def wait_for(self, moment: str, role: str, timeout_s: float = MOMENT_S) -> None:
        """Return when the lanes are in a moment while a process of the role lives.

        Raises:
            AssertionError: the sweep ended before, or `timeout_s` has passed.
        """
        until = time.monotonic() + timeout_s
        alive, looked = False, 0.0
        while True:
            now = time.monotonic()
            if not alive or now - looked > 1:  # looking through /proc takes longer than a commit
                alive, looked = bool(self.pids(role)), now
            if alive and moment in self.moments():
                return
            if not self.running:
                raise AssertionError(f"the sweep ended before '{moment}' came\n{self.errors[-2000:]}")
            if now > until:
                titles = "\n".join(sorted(self.processes().values()))
                raise AssertionError(
                    f"'{moment}' with a {role} did not come in {timeout_s:.0f} s\n{self.errors[-2000:]}\n{titles}"
                )
            time.sleep(POLL_S)


def trials_without_costs(result: dict[str, Any]) -> list[dict[str, Any]]:
    """A sweep's trials without what depends on the clock."""
    return [{name: value for name, value in trial.items() if name != "cost"} for trial in result["trials"]]


def hashes(storage: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of the files of every checkpoint in a store: key -> file name -> hash."""
    hashes = {}
    for path in storage.glob("checkpoints/*/*/manifest.json"):
        manifest = json.loads(path.read_text())["manifest"]
        hashes[manifest["key"]] = {name.split("/")[-1]: facts["sha256"] for name, facts in manifest["files"].items()}
    return hashes


def table(storage: Path) -> list[list[str]]:
    """The cells of a study's table, without the columns of costs."""
    return cells(next(storage.glob("studies/*/table.md")).read_text())


def cells(markdown: str) -> list[list[str]]:
    """The cells of a table, without the columns of costs."""
    lines = markdown.splitlines()
    rows = [line.split("|")[1:-1] for line in lines if "|" in line]
    costs = {number for number, name in enumerate(rows[0]) if "hours" in name}
    return [[cell for number, cell in enumerate(row) if number not in costs] for row in rows]


def traces(storage: Path) -> list[str]:
    """Leases and heartbeats in a store: there are none after a driver has ended well."""
    return [str(file.relative_to(storage)) for folder in ("leases", "owners") for file in storage.glob(f"{folder}/*")]
