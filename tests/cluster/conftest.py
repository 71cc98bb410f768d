"""A cluster of three hosts for all tests of this folder: `ray up` with the file for on-premises machines."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lab import Lab, missing  # noqa: E402

ROOT = Path(__file__).parents[2]
NODES = 3


class Cluster(Lab):
    """A lab with Ray on it.

    Attributes:
        file: the cluster file that `ray` is given.
        store: a folder that all hosts share, where each test has its storage.
    """

    file: Path
    store: Path

    def write_file(self) -> None:
        """Write deploy/onprem.yaml with this lab's addresses, user and key."""
        text = (ROOT / "deploy" / "onprem.yaml").read_text(encoding="utf-8")
        others = ", ".join(self.address(host) for host in range(1, self.count))
        values = {"HEAD_IP": self.address(0), "WORKER_IP": others, "USER": "root", "KEY": str(self.key)}
        for name, value in values.items():
            text = text.replace(f"SET_{name}", value)
        self.file = self.folder / "cluster.yaml"
        self.file.write_text(text, encoding="utf-8")

    def up(self) -> None:
        """Run `ray up` and wait for all nodes."""
        self.laptop("ray", "up", "-y", str(self.file))
        self.await_nodes(NODES)

    def await_nodes(self, count: int, timeout_s: float = 150) -> None:
        """Wait until that many nodes are alive."""
        until = time.monotonic() + timeout_s
        while (alive := self.alive()) != count:
            assert time.monotonic() < until, f"{alive} nodes of {count} after {timeout_s} s"
            time.sleep(2)

    def alive(self) -> int:
        """How many nodes Ray counts as alive; 0 where Ray does not run."""
        code = "import ray; ray.init(logging_level=50); print('alive', sum(n['Alive'] for n in ray.nodes()))"
        output = self.on(0, f'bash -ic "python -W ignore -c \\"{code}\\""', check=False)
        return next((int(line.split()[1]) for line in output.splitlines() if line.startswith("alive ")), 0)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := missing():
        pytest.skip(f"three hosts on one machine: {reason}")
    with Cluster(tmp_path_factory.mktemp("lab"), ROOT, NODES) as lab:
        lab.store = tmp_path_factory.mktemp("store")
        lab.write_file()
        lab.laptop("ray", "get-auth-token", "--generate")
        for host in range(NODES):
            lab.install(host)
        lab.up()
        yield lab
