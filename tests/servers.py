"""The MLflow server that tests start on this machine."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient


class MlflowServer:
    """A real MLflow server on a free port.

    Args:
        folder: where its database, artifacts and log go.
    """

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{self._port}", folder

    def start(self) -> None:
        """Start it and return when it answers."""
        command = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
        command += ["--host", "127.0.0.1", "--port", str(self._port)]
        command += ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}"]
        command += ["--artifacts-destination", str(self._folder / "artifacts")]
        with (self._folder / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # jobs are seven more processes
                start_new_session=True,
            )
        until(lambda: self._answers("/health"))

    def kill(self) -> None:
        """Kill it and the processes that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, experiment: str, count: int) -> None:
        """Return when an experiment has that many runs."""
        client = MlflowClient(self.uri)

        def complete() -> bool:
            logged = client.get_experiment_by_name(experiment)
            return bool(logged) and len(client.search_runs([logged.experiment_id])) >= count

        until(complete)

    def _answers(self, path: str) -> bool:
        try:
            return urllib.request.urlopen(self.uri + path, timeout=2).status == 200
        except OSError:
            return False


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Return when the condition holds; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {timeout_s:.0f} s"
        time.sleep(0.05)
