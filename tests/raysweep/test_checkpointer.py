"""The checkpoints that a training commits on its way and at its end."""

from pathlib import Path

import pytest

from raysweep.execution.checkpointer import Checkpointer
from raysweep.store.files import Files
from raysweep.store.manifest import TrainingFacts
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, Run
from trainables.datasets.latent_set import load_latents
from trainables.training.loop import Context, Outcome, train

RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, phases=[Phase(until=6, term=NoTerm())])


def facts(run: Run, step: int) -> TrainingFacts:
    return TrainingFacts(between=step < 6)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def train_and_save(store: Store, cache: Path, save_at: tuple[int, ...]) -> list[int]:
    """Train with checkpoints at these steps. Returns the steps at which one was begun."""
    checkpointer, saved = Checkpointer(store, [RUN], 0, facts), []

    def save(outcomes: list[Outcome]) -> None:
        checkpointer.begin(outcomes)
        saved.append(outcomes[0].checkpoint.step)

    context = Context(should_checkpoint=lambda step: step in save_at, on_checkpoint=save)
    outcome = train(RUN, 6, data=load_latents("emoji9", cache), context=context)
    checkpointer.finish([outcome])
    checkpointer.close()
    return saved


def test_the_next_checkpoint_takes_the_place_of_one_between(store, cache):
    assert train_and_save(store, cache, (2, 4)) == [2, 4]
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [6]
    way = store.segments(RUN, 6)
    assert [(manifest.training.from_step, manifest.step) for manifest in way] == [(0, 2), (2, 4), (4, 6)]
    assert [point["step"] for manifest in way for point in manifest.training.curve] == [1, 2, 3, 4, 5, 6]
    assert all(manifest.training.seconds > 0 for manifest in way)


def test_intermediate_checkpoints_do_not_change_the_last_one(tmp_path, store, cache):
    train_and_save(store, cache, (1, 3))
    other = Store(str(tmp_path / "other"))
    train_and_save(other, cache, ())
    (one,), (two,) = list(store.checkpoints()), list(other.checkpoints())
    assert one.manifest.checksums == two.manifest.checksums and one.key == two.key


class Full(Files):
    """A storage without room until it is said to have some."""

    full = True

    def copy_in(self, source: Path, target: str) -> str:
        if self.full:
            raise OSError(28, "No space left on device")
        return super().copy_in(source, target)


def test_what_a_failed_commit_measured_is_in_the_next_one(tmp_path, cache):
    store = Store(str(tmp_path / "store"))
    store.files = files = Full(store.uri)
    checkpointer = Checkpointer(store, [RUN], 0, facts)
    context = Context(should_checkpoint=lambda step: step == 2, on_checkpoint=checkpointer.begin)
    outcome = train(RUN, 6, data=load_latents("emoji9", cache), context=context)
    for _ in range(2):
        with pytest.raises(OSError, match="No space"):
            checkpointer.finish([outcome])
    files.full = False
    checkpointer.finish([outcome])
    checkpointer.close()
    (checkpoint,) = store.checkpoints()
    assert checkpoint.manifest.training.from_step == 0
    assert [point["step"] for point in checkpoint.manifest.training.curve] == [1, 2, 3, 4, 5, 6]
