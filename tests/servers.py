"""Servers of this machine that tests start for themselves."""

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
    """A real MLflow server on a port of its own."""

    def __init__(self, folder: Path):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.uri, self._folder = f"http://127.0.0.1:{self._port}", folder

    def start(self) -> None:
        place = ["--backend-store-uri", f"sqlite:///{self._folder / 'server.db'}", "--artifacts-destination"]
        command = [sys.executable, "-m", "mlflow", "server", *place, str(self._folder / "artifacts"), "--workers", "1"]
        with (self._folder / "server.txt").open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self._port)],
                stdout=log,
                stderr=log,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},  # seven processes more
                start_new_session=True,
            )
        until(lambda: self._answers("/health"))

    def kill(self) -> None:
        """With the processes that it has started."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def wait_for(self, experiment: str, count: int) -> None:
        """Until so many runs are there."""
        client = MlflowClient(self.uri)

        def there() -> bool:
            found = client.get_experiment_by_name(experiment)
            return bool(found) and len(client.search_runs([found.experiment_id])) >= count

        until(there)

    def _answers(self, path: str) -> bool:
        try:
            return urllib.request.urlopen(self.uri + path, timeout=2).status == 200
        except OSError:
            return False


def until(condition: Callable[[], bool], patience_s: float = 120.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, "too long"
        time.sleep(0.05)
