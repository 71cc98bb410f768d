"""Servers that tests start on this machine: MLflow, Azure's blob store, and a link to a server that can be cut."""

import contextlib
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
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
        self._port = free_port()
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


class Azurite:
    """Azurite, Microsoft's emulator of Azure's blob store, with an empty container `bucket`.

    `make storages` installs it.

    Attributes:
        connection: what AZURE_STORAGE_CONNECTION_STRING should be.
    """

    PROGRAM = Path(sys.prefix, "azurite", "node_modules", ".bin", "azurite-blob")
    _ACCOUNT = "devstoreaccount1"  # and its key: public, and the same in every Azurite
    _KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self) -> None:
        from azure.storage.blob import ContainerClient

        port = free_port()
        parts = {"DefaultEndpointsProtocol": "http", "AccountName": self._ACCOUNT, "AccountKey": self._KEY}
        parts["BlobEndpoint"] = f"http://127.0.0.1:{port}/{self._ACCOUNT}"
        self.connection = ";".join(f"{name}={value}" for name, value in parts.items())
        command = [str(self.PROGRAM), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence"]
        command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until(lambda: _listens(port))
        ContainerClient.from_connection_string(self.connection, "bucket").create_container()

    def stop(self) -> None:
        """End it. What it holds is lost."""
        self._process.terminate()
        self._process.wait()


class Link:
    """A port of this machine that leads to another one, until it is cut.

    Attributes:
        port: where it begins.
    """

    def __init__(self, target: int):
        self.port, self._target = free_port(), target
        self._open: list[socket.socket] = []
        self._server: socketserver.ThreadingTCPServer | None = None
        self.mend()

    def mend(self) -> None:
        """Lead to the target."""
        link = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", link._target)) as far:
                    link._open += [self.request, far]
                    back = threading.Thread(target=_pump, args=(far, self.request), daemon=True)
                    back.start()
                    _pump(self.request, far)
                    back.join()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address, daemon_threads, request_queue_size = True, True, 128

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def until(condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
    """Return when the condition holds; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {timeout_s:.0f} s"
        time.sleep(0.05)
