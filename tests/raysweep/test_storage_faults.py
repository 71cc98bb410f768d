"""A storage that is full, read-only or gone: nothing is torn, people get one line, and work goes on when it is back.

The storage is a small tmpfs.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState as OptunaState

from raysweep import retry
from raysweep.errors import SweepError
from raysweep.space import space
from raysweep.store.files import Files, StorageGone
from raysweep.store.leases import LeaseFacts, Leases
from raysweep.store.manifest import TrainingFacts
from raysweep.store.records import ProbeRecord
from raysweep.store.store import Store
from raysweep.study.journal import Journal
from raysweep.study.proposals import Proposals
from raysweep.study.state import StudyState
from raysweep.tracking.optuna_dashboard import Dashboard
from trainables.config import NoTerm, Phase, Run

RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, phases=[Phase(until=40, term=NoTerm())])


class Disk:
    """A disk of 1 MiB with a store on it."""

    def __init__(self, place: Path):
        self.place = place
        self.command("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place))
        self.store = Store(str(place / "store"))
        self.store.files.check_writable()

    def command(self, *words: str) -> None:
        subprocess.run(words, check=True, capture_output=True)

    def fill(self) -> None:
        with contextlib.suppress(OSError), (self.place / "filler").open("wb") as filler:
            while True:
                filler.write(b"x" * 4096)
                filler.flush()

    def empty(self) -> None:
        (self.place / "filler").unlink()

    def read_only(self, yes: bool) -> None:
        self.command("mount", "-o", f"remount,{'ro' if yes else 'rw'}", str(self.place))

    def move(self, away: bool) -> None:
        there, elsewhere = self.place / "store", self.place / "elsewhere"
        (there if away else elsewhere).rename(elsewhere if away else there)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a tmpfs takes root")
    subprocess.run(["umount", place], check=True)
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", place], check=True)


FAULTS = {
    "full": (lambda disk: disk.fill(), lambda disk: disk.empty()),
    "read-only": (lambda disk: disk.read_only(True), lambda disk: disk.read_only(False)),
    "gone": (lambda disk: disk.move(True), lambda disk: disk.move(False)),
}


@pytest.fixture(params=FAULTS)
def fault(request):
    return FAULTS[request.param]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "state.safetensors").write_bytes(os.urandom(300_000))
    return folder


def test_a_commit_fails_as_a_whole_and_works_again(disk, fault, files):
    begin, end = fault
    disk.store.commit(RUN, 10, files, TrainingFacts(0))
    begin(disk)
    with pytest.raises(OSError):
        disk.store.commit(RUN, 20, files, TrainingFacts(10))
    end(disk)
    assert [(checkpoint.step, fault) for checkpoint, fault in disk.store.verify()] == [(10, None)]
    assert not list(Path(disk.store.uri).glob("checkpoints/20/*/*/*")), (
        "half a checkpoint takes the room of a whole one"
    )
    disk.store.commit(RUN, 20, files, TrainingFacts(10))
    assert [(checkpoint.step, fault) for checkpoint, fault in disk.store.verify()] == [(10, None), (20, None)]


def test_a_record_is_there_whole_or_not_at_all(disk, fault, files):
    begin, end = fault
    disk.store.put_record("one", ProbeRecord({"fid": 1.0}))
    begin(disk)
    with pytest.raises(OSError):
        disk.store.put_record("two", ProbeRecord({"x" * 9000: 1.0}), {"npy": files / "state.safetensors"})
    end(disk)
    assert disk.store.record(ProbeRecord, "two") is None and disk.store.record(ProbeRecord, "one")


def test_a_journal_waits_and_loses_nothing(disk, fault):
    begin, end = fault
    messages: list[str] = []
    journal = Journal(disk.store.files, "study", messages.append)
    journal.append("opened", space={})
    begin(disk)
    writing = threading.Thread(target=lambda: journal.append("proposed", trial=0, point={"a": "x" * 9000}))
    writing.start()
    time.sleep(0.5)
    assert writing.is_alive() and len(messages) == 1 and "waiting for it" in messages[0]
    end(disk)
    writing.join(timeout=10)
    assert not writing.is_alive() and len(messages) == 2 and "again" in messages[1]
    journal.append("ended", trial=0)
    assert [entry["kind"] for entry in Journal(disk.store.files, "study").read()] == ["opened", "proposed", "ended"]


def test_a_proposal_waits_until_the_dashboard_s_database_has_room(disk, write_space, tmp_path):
    text = "study: full\ntrial: {seed: {integers: [0, 99]}}\nsearch: {trials: 40, rungs: []}\n"
    study = StudyState(space.load(write_space(text), "smoke"), Store(str(tmp_path / "store")))
    messages: list[str] = []
    storage = f"sqlite:///{disk.place / 'optuna.db'}"
    Dashboard(study, storage, messages.append)
    proposals = Proposals(study)
    disk.fill()

    def work() -> None:
        while trial := proposals.next():
            study.fail(trial.number, "x" * 9000)

    working = threading.Thread(target=work, daemon=True)
    working.start()
    until = time.monotonic() + 30
    while not messages and time.monotonic() < until:
        time.sleep(0.1)
    assert working.is_alive() and len(messages) == 1 and "waiting for it" in messages[0]
    disk.empty()
    working.join(timeout=60)
    assert not working.is_alive()
    known = optuna.load_study(study_name=study.space.id, storage=storage).trials
    assert [trial.user_attrs["trial"] for trial in known] == list(range(40))
    assert all(trial.state == OptunaState.FAIL for trial in known)


def test_waiting_for_a_storage_ends_after_the_limit(disk, monkeypatch):
    monkeypatch.setattr(retry, "RETRY_LIMIT_S", 1.5)
    journal = Journal(disk.store.files, "study")
    journal.append("opened", space={})
    disk.read_only(True)
    with pytest.raises(SweepError, match=r"could not be used for .* minutes: .*Read-only"):
        journal.append("proposed", trial=0)
    assert [entry["kind"] for entry in Journal(disk.store.files, "study").read()] == ["opened"]


def test_a_vanished_storage_is_not_an_empty_one(disk, files):
    disk.store.commit(RUN, 10, files, TrainingFacts(0))
    seen_by_a_worker = Store(disk.store.uri, disk.store.files.mark)
    disk.move(True)
    (disk.place / "store").mkdir()  # e.g. the mount point without the mount
    for store in (disk.store, seen_by_a_worker):
        for look in (
            lambda store=store: store.find(RUN, 10),
            lambda store=store: store.deepest(RUN, 40),
            lambda store=store: store.record(ProbeRecord, "one"),
            lambda store=store: store.files.write("records/x.json", b"{}"),
            lambda store=store: store.files.create("leases/x.json", b"{}"),
        ):
            with pytest.raises(StorageGone, match="not there any more"):
                look()
    assert not any((disk.place / "store").iterdir())
    (disk.place / "store").rmdir()
    disk.move(False)
    assert seen_by_a_worker.deepest(RUN, 40).step == 10


def test_a_damaged_checkpoint_is_not_set_aside_while_the_storage_is_gone(disk, files):
    checkpoint = disk.store.commit(RUN, 10, files, TrainingFacts(0))
    before = disk.store.find(RUN, 10)
    disk.move(True)
    with pytest.raises(OSError):
        disk.store.open(checkpoint)
    disk.move(False)
    assert disk.store.find(RUN, 10) == before and disk.store.open(checkpoint).is_dir()


def test_leases_are_given_back_when_they_can_be(disk):
    leases = Leases(disk.store.files, beat_s=0.1)
    leases.acquire("work", LeaseFacts())
    disk.read_only(True)
    leases.release("work")
    disk.read_only(False)
    until = time.monotonic() + 5
    while list(Path(disk.store.uri).glob("leases/*")):
        assert time.monotonic() < until
        time.sleep(0.05)
    leases.close()


def test_what_dead_owners_left_is_cleared(tmp_path):
    files = Files(str(tmp_path / "store"))
    held = (
        "import sys, os; from raysweep.store.store import Store; from raysweep.store.leases import LeaseFacts, Leases\n"
    )
    held += "leases = Leases(Store(sys.argv[1]).files); leases.acquire('work', LeaseFacts()); os._exit(9)"
    subprocess.run([sys.executable, "-c", held, files.uri], cwd=Path(__file__).parents[2])
    assert len(files.names("leases")) == len(files.names("owners")) == 1
    living, cleaner = Leases(files), Leases(files)
    living.acquire("other", LeaseFacts())
    cleaner.clear()
    assert [name.split(".")[2] for name in files.names("leases")] == [living.owner]
    assert [name.partition(".")[0] for name in files.names("owners")] == [living.owner]
    living.close(), cleaner.close()
    assert not files.names("leases") and not files.names("owners")


@pytest.mark.parametrize("place", ["../x", "a/../../x", "/etc/passwd", "a/\0"])
def test_nothing_leads_out_of_the_storage(tmp_path, place):
    files = Files(str(tmp_path / "store"))
    for use in (
        files.read,
        files.sha256,
        files.delete,
        lambda place: files.write(place, b""),
        files.names,
    ):
        with pytest.raises(ValueError, match="out of the storage"):
            use(place)
