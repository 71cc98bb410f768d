"""One sweep in a folder, in S3 and in Azure: the same table, the same checkpoints, and nothing beside the storage.

S3 and Azure are emulators on this machine: moto's server and Azurite. `gs://` is not tried.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from chaos.harness import ROOT, Sweep, cells
from servers import Azurite, Link, until

from raysweep.store.store import Store

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.storages, pytest.mark.timeout(1500)]

AWAY_S = 300.0


@dataclass(frozen=True)
class Outcome:
    """What a sweep has left in its storage: the cells of its table, the files of each checkpoint, and all records."""

    table: list[list[str]]
    checkpoints: dict[str, dict[str, str]]
    records: set[str]

    @classmethod
    def read(cls, storage: str) -> Outcome:
        """The outcome of the only sweep in a storage."""
        store = Store(storage)
        (study,) = store.files.names("studies")
        table = (store.files.read(f"studies/{study}/table.md") or b"").decode()
        checkpoints = {checkpoint.key: checkpoint.manifest.checksums for checkpoint in store.checkpoints()}
        return cls(cells(table), checkpoints, {entry.path for entry in store.files.walk("records")})


@pytest.fixture(scope="module")
def az() -> Iterator[str]:
    """An empty container of an Azurite; `{}` stands for a folder."""
    if not Azurite.PROGRAM.exists():
        pytest.skip("Azurite is not installed: `make storages` takes it from npm")
    server = Azurite()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_CONNECTION_STRING", server.connection)
        yield "az://bucket/{}"
    server.stop()


@pytest.fixture(scope="module")
def begin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[Sweep, Path]]]:
    """Start the sweep on a storage, in an empty working directory. What a failed test has left running is killed."""
    started = []

    def start(storage: str) -> tuple[Sweep, Path]:
        folder = tmp_path_factory.mktemp("sweep")
        work = folder / "work"
        work.mkdir()
        space = ROOT / "search_spaces" / "table5.yaml"
        sweep = Sweep(space, folder / "log", "--storage", storage, cwd=work)
        sweep.start()
        started.append(sweep)
        return sweep, work

    yield start
    for sweep in started:
        sweep.kill_all()


@pytest.fixture(scope="module")
def in_a_folder(begin, tmp_path_factory) -> Outcome:
    """The outcome of the sweep in a folder."""
    storage = str(tmp_path_factory.mktemp("folder") / "a store")
    return run_twice(begin, storage)


def run_twice(begin, storage: str) -> Outcome:
    """Run the sweep, then the same command again, which computes nothing and changes nothing."""
    outcomes = []
    for computed in (True, False):
        sweep, work = begin(storage)
        result = sweep.result()
        assert (result["steps"]["computed"] > 0) == computed
        assert list(work.iterdir()) == [], "something was written into the working directory"
        assert "Traceback" not in sweep.errors and sweep.left_behind() == {}
        outcomes.append(Outcome.read(storage))
    assert outcomes[0] == outcomes[1]
    return outcomes[0]


@pytest.mark.parametrize("kind", ["s3", "az"])
def test_a_sweep_in_a_new_bucket_is_the_same_as_in_a_folder(kind, begin, in_a_folder, request):
    storage = request.getfixturevalue(kind).format(f"table5 {uuid.uuid4().hex[:8]}")
    assert run_twice(begin, storage) == in_a_folder
    left = {entry.path.partition("/")[0] for entry in Store(storage).files.walk("")}
    assert not left & {"leases", "owners"} and {"mlflow.db", "mlartifacts"} <= left


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_storage_that_is_away_for_five_minutes_is_waited_for(kind, begin, in_a_folder, request, tmp_path):
    if kind == "folder":
        storage = read = str(tmp_path / "store")
        elsewhere = Path(f"{storage} elsewhere")
        leave, return_ = lambda: Path(storage).rename(elsewhere), lambda: elsewhere.rename(storage)
    else:
        read = request.getfixturevalue("s3").format(uuid.uuid4().hex[:8])
        port = int(read.partition("127.0.0.1:")[2].partition("&")[0])
        link = Link(port)
        storage, leave, return_ = read.replace(f":{port}", f":{link.port}"), link.cut, link.mend
    sweep, _ = begin(storage)
    until(lambda: sum(1 for _ in Store(read).checkpoints()) >= 8, 300)
    leave()
    time.sleep(AWAY_S)
    assert sweep.running and "waiting for it" in sweep.errors
    return_()
    sweep.result()
    assert Outcome.read(read) == in_a_folder
    assert "Traceback" not in sweep.errors and sweep.left_behind() == {}
