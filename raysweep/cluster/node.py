"""The actor that a check-up runs on each node."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
from datetime import timedelta
from typing import Any

import ray
import torch
import torch.distributed as dist

from raysweep.environment import sources_digest
from raysweep.store.files import Files
from trainables.datasets import catalog

MEBIBYTES = 64  # size of an all-reduce
REPEATS = 5


class Node:
    """Answers questions about the node on which it runs."""

    def look(self) -> dict[str, Any]:
        """Facts about the node: host name, versions, GPUs, authentication mode, and the file of the detector's
        weights."""
        try:
            weights: str | None = str(catalog.inception_file(None))
        except LookupError:
            weights = None
        return {
            "host": socket.gethostname(),
            "versions": {
                "python": platform.python_version(),
                "ray": ray.__version__,
                "torch": torch.__version__,
                "raysweep": sources_digest(),
                "driver": _driver(),
            },
            "gpus": [torch.cuda.get_device_name(device) for device in range(torch.cuda.device_count())],
            "auth": os.environ.get("RAY_AUTH_MODE", "unset"),
            "weights": weights,
        }

    def now(self) -> float:
        """This node's clock, in seconds since 1970."""
        return time.time()

    def create(self, storage: str, mark: str | None, place: str, content: bytes) -> bool:
        """Create a file. False where another node has created it."""
        return Files(storage, mark).create(place, content)

    def write(self, storage: str, mark: str | None, place: str, content: bytes) -> None:
        """Write a file, or replace it."""
        Files(storage, mark).write(place, content)

    def read(self, storage: str, mark: str | None, place: str) -> bytes | None:
        """The file as this node sees it; None where there is none."""
        return Files(storage, mark).read(place)

    def rendezvous(self) -> str:
        """An address and a port at which the others can meet this node."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def all_reduce(self, rendezvous: str, rank: int, count: int, timeout_s: float) -> float:
        """The median rate of an all-reduce, in bytes per second that leave and reach each node (NCCL's bus
        bandwidth)."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, init_method=rendezvous, rank=rank, world_size=count, timeout=timedelta(seconds=timeout_s)
        )
        try:
            numbers = torch.ones(MEBIBYTES * 2**18, device=device)
            spent = [_timed(numbers) for _ in range(REPEATS + 1)][1:]  # the first connects
        finally:
            dist.destroy_process_group()
        return 2 * (count - 1) / count * MEBIBYTES * 2**20 / sorted(spent)[REPEATS // 2]


def _timed(numbers: torch.Tensor) -> float:
    dist.barrier()
    began = time.perf_counter()
    dist.all_reduce(numbers)
    numbers[0].item()  # waits for a GPU
    return time.perf_counter() - began


def _driver() -> str:
    """The version of NVIDIA's driver, or `none`."""
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        versions = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return "none"
    return versions[0] if versions else "none"
