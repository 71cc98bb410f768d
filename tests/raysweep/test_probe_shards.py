"""An interrupted probe goes on from its last shard, and ends in the same bits."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from raysweep.store.files import Files
from raysweep.store.probe_shards import Shards
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run
from trainables.datasets.latent_set import load_latents
from trainables.evaluation.probing import ProbeResult, chunk
from trainables.training.loop import Context, train
from trainables.training.worker_cache import WorkerCache

RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, ema_decay=0.5, phases=[Phase(until=2, term=NoTerm())])
SPEC = ProbeSpec(detector="effnet_lite0", samples=40, sampler="euler", steps=2, batch_size=8)  # five chunks


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    folder = tmp_path_factory.mktemp("snapshot")
    train(RUN, 2, data=load_latents("emoji9", cache), context=Context()).checkpoint.save(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(snapshot: Path, cache: Path) -> ProbeResult:
    return WorkerCache(Context(), cache).probe(RUN, SPEC, snapshot)


class Counted(Shards):
    """Shards that know which were put there."""

    def __init__(self, files: Files, name: str):
        super().__init__(files, name)
        self.drawn: list[int] = []

    def __setitem__(self, number: int, content: bytes, /) -> None:
        self.drawn.append(number)
        super().__setitem__(number, content)


def _killed(_: int, cache: Path, snapshot: Path, root: Path) -> None:
    """A worker that dies once it has drawn three chunks."""

    def progress(done: int) -> None:
        if done >= 3 * SPEC.batch_size:
            os.kill(os.getpid(), signal.SIGKILL)

    WorkerCache(Context(progress=progress), cache).probe(RUN, SPEC, snapshot, Shards(Store(str(root)).files, "probe"))


def _rank(rank: int, world_size: int, cache: Path, snapshot: Path, root: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = dist.FileStore(str(root / "rendezvous"), world_size)
    dist.init_process_group("gloo", store=rendezvous, rank=rank, world_size=world_size)
    shards = Counted(Store(str(root)).files, "probe")
    probed = WorkerCache(Context(rank=rank, world_size=world_size), cache).probe(RUN, SPEC, snapshot, shards)
    torch.save((vars(probed), shards.drawn), root / f"{rank}.pt")
    dist.destroy_process_group()


def same(one: ProbeResult, other: ProbeResult) -> bool:
    return one.metrics == other.metrics and all(
        torch.equal(getattr(one, name), getattr(other, name)) for name in ("influence", "grid")
    )


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, snapshot: Path, cache: Path) -> Path:
    """A store with what a killed probe has left."""
    folder = tmp_path_factory.mktemp("killed")
    with pytest.raises(mp.ProcessExitedException, match="SIGKILL"):
        mp.spawn(_killed, (cache, snapshot, folder))
    assert sorted(Store(str(folder)).files.names("shards/probe")) == ["0", "1", "2"]
    return folder


@pytest.fixture
def interrupted(killed: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return shutil.copytree(killed, tmp_path, dirs_exist_ok=True)


def test_a_killed_probe_goes_on(interrupted, undisturbed, snapshot, cache):
    shards = Counted(Store(str(interrupted)).files, "probe")
    assert same(WorkerCache(Context(), cache).probe(RUN, SPEC, snapshot, shards), undisturbed)
    assert shards.drawn == [3, 4]
    shards.clear()
    assert Store(str(interrupted)).files.names("shards/probe") == []


def test_more_ranks_continue_an_interrupted_probe(interrupted, undisturbed, snapshot, cache):
    mp.spawn(_rank, (2, cache, snapshot, interrupted), nprocs=2)
    ended = [torch.load(interrupted / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [drawn for _, drawn in ended] == [[4], [3]]
    assert all(same(ProbeResult(**state), undisturbed) for state, _ in ended)


def test_what_was_altered_is_drawn_again_and_a_write_that_fails_does_no_harm(interrupted, undisturbed, snapshot, cache):
    store = Store(str(interrupted))
    whole = store.files.read("shards/probe/1")
    store.files.write("shards/probe/1", whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
    store.files.write("shards/probe/2", whole[:9])
    store.files.write("shards/probe/4", b"")
    (interrupted / "shards/probe/3").mkdir()  # no file can take its place
    shards = Counted(store.files, "probe")
    assert same(WorkerCache(Context(), cache).probe(RUN, SPEC, snapshot, shards), undisturbed)
    assert shards.drawn == [1, 2, 3, 4]


def test_a_larger_probe_begins_with_the_same_samples():
    larger = SPEC.model_copy(update={"samples": 4 * SPEC.samples})
    for number in range(5):
        one, other = (chunk(spec, number, (4, 2, 2), 9) for spec in (SPEC, larger))
        assert one.first == other.first and torch.equal(one.labels, other.labels)
        assert torch.equal(one.noise, other.noise)
