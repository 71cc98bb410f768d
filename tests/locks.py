"""Waiting until other processes wait."""

import time
from collections.abc import Callable
from pathlib import Path


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def waiting_in(folder: Path) -> int:
    """How many wait for a lock on a file of the folder."""
    inodes = {str(file.stat().st_ino) for file in folder.iterdir()}
    lines = Path("/proc/locks").read_text().splitlines()
    return sum("->" in line and line.split()[6].split(":")[-1] in inodes for line in lines)
