"""A published checkpoint is whole or not there."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raysweep.errors import UserError
from raysweep.store import history
from raysweep.store.manifest import Platform, TrainingFacts
from raysweep.store.records import FailureRecord, ProbeRecord
from raysweep.store.store import CheckpointDamaged, CheckpointMissing, Store
from raysweep.study.comparison import difference
from raysweep.study.rungs import Difference
from trainables.config import NoTerm, Phase, ProbeSpec, Run, SelfGuidedTerm, TeacherRef

RUN = Run(backbone="SiT-T/2", data="emoji9", batch_size=4, phases=[Phase(until=40, term=NoTerm())])

SPEC = ProbeSpec(samples=500)


def commit(store: Store, folder: Path, step: int) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "snapshot.safetensors").write_bytes(b"ema" * 100)
    (folder / "state.safetensors").write_bytes(b"state" * 100)
    return store.commit(RUN, step, folder, TrainingFacts(seconds=1.0)).key


def open_at(store: Store, step: int) -> Path:
    """The files of `RUN`'s checkpoint, as a worker opens them."""
    checkpoint = store.find(RUN, step)
    if checkpoint is None:
        raise CheckpointMissing
    return store.open(checkpoint)


def test_a_committed_checkpoint_is_found_by_its_history(tmp_path, storage):
    store = Store(storage)
    assert store.deepest(RUN, 40) is None
    for step in (10, 20):
        assert commit(store, tmp_path / "files", step) == history.key(RUN, step)
    assert store.deepest(RUN, 40).step == 20
    assert store.deepest(RUN, 19).step == 10
    assert store.deepest(RUN, 9) is None
    folder = open_at(store, 20)
    assert (folder / "state.safetensors").read_bytes() == b"state" * 100
    assert all(wrong is None for _, wrong in store.verify())


def student(stop: int, until: int) -> Run:
    """A run that is guided up to step `stop` by a teacher of `until` steps."""
    teacher = TeacherRef(run=RUN, step=until)
    guided = Phase(
        until=stop, term=SelfGuidedTerm(layers=(8, 6), guidance_scale=2.0), projector_width=8, teacher=teacher
    )
    return Run(**RUN.model_dump(exclude={"phases"}), phases=[guided, Phase(until=40, term=NoTerm())])


RUNS = [RUN, *(student(stop, until) for stop in (10, 15, 20) for until in (10, 20))]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    committed=st.sets(st.tuples(st.sampled_from(RUNS), st.integers(1, 40)), max_size=12),
    freed=st.sets(st.integers(0, 11)),
    earlier=st.integers(0, 12),
)
def test_the_deepest_checkpoint_is_the_same_with_and_without_an_index(tmp_path_factory, committed, freed, earlier):
    root = tmp_path_factory.mktemp("store")
    store, folder = Store(str(root / "store")), root / "files"
    folder.mkdir()
    checkpoints = []
    for number, (run, step) in enumerate(sorted(committed, key=str)):
        checkpoints.append(store.commit(run, step, folder, TrainingFacts()))
        if number < earlier:  # an earlier version committed it
            shutil.rmtree(root / "store" / "trunks")
    for number in freed & set(range(len(checkpoints))):
        store.free(checkpoints[number])
    asked = [(run, step) for run in RUNS for step in (1, 9, 10, 15, 16, 20, 21, 40)]
    scanned = [store.deepest(run, step) for run, step in asked]
    store.index()
    assert [store.deepest(run, step) for run, step in asked] == scanned
    assert [Store(store.uri).deepest(run, step) for run, step in asked] == scanned


def test_how_many_calls_find_the_deepest_checkpoint_does_not_depend_on_the_store(tmp_path):
    store = Store(str(tmp_path / "store"))
    store.index()
    calls: list[str] = []
    for name in ("names", "read"):
        method = getattr(store.files, name)
        setattr(store.files, name, lambda path, method=method: calls.append(path) or method(path))
    counts = []
    for step in (5, 12, *range(20, 40)):
        commit(store, tmp_path / "files", step)
        calls.clear()
        assert store.deepest(student(10, 10), 40) is None and store.deepest(RUN, 40).step == step
        counts.append(len(calls))
    assert set(counts) == {counts[0]}


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), how=st.sampled_from(["truncate", "flip", "delete"]))
def test_any_damaged_file_is_noticed_and_set_aside(tmp_path_factory, data, how):
    root = tmp_path_factory.mktemp("store")
    store = Store(str(root / "store"))
    commit(store, root / "files", 10)
    victim = data.draw(st.sampled_from(sorted(p for p in (root / "store" / "checkpoints").rglob("*") if p.is_file())))
    content = victim.read_bytes()
    if how == "delete":
        victim.unlink()
    elif how == "truncate":
        victim.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        victim.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises((CheckpointDamaged, CheckpointMissing)):
        open_at(store, 10)
    assert store.find(RUN, 10) is None  # so that it will be computed again
    commit(store, root / "files", 10)
    assert (open_at(store, 10) / "snapshot.safetensors").read_bytes() == b"ema" * 100


@pytest.mark.parametrize("how", ["truncate", "flip", "delete"])
@pytest.mark.parametrize("name", ["snapshot.safetensors", "state.safetensors", "manifest.json"])
def test_a_damaged_object_is_noticed_too(tmp_path, s3, name, how):
    store = Store(s3.format(tmp_path.name))
    key = commit(store, tmp_path / "files", 10)
    nonce = next(iter(store.find(RUN, 10).manifest.files)).split("/")[0]
    place = f"checkpoints/10/{key}/" + (name if name == "manifest.json" else f"{nonce}/{name}")
    content = store.files.read(place)
    if how == "delete":
        store.files.delete(place)
    else:
        store.files.write(
            place, content[:-1] if how == "truncate" else content[:9] + bytes([content[9] ^ 1]) + content[10:]
        )
    with pytest.raises((CheckpointDamaged, CheckpointMissing)):
        open_at(store, 10)
    assert store.find(RUN, 10) is None
    commit(store, tmp_path / "files", 10)
    assert (open_at(store, 10) / "snapshot.safetensors").read_bytes() == b"ema" * 100


def test_a_copy_of_an_object_that_was_altered_on_this_machine_is_fetched_again(tmp_path, s3):
    store = Store(s3.format(tmp_path.name))
    commit(store, tmp_path / "files", 10)
    copy = open_at(store, 10) / "snapshot.safetensors"
    copy.write_bytes(b"something else")
    assert (open_at(store, 10) / "snapshot.safetensors").read_bytes() == b"ema" * 100


def test_records_come_back_with_their_files(tmp_path, storage):
    store = Store(storage)
    picture, influence = tmp_path / "grid.png", tmp_path / "influence.npy"
    picture.write_bytes(b"png")
    np.save(influence, np.arange(5, dtype=np.float32))
    store.put_record("k", ProbeRecord({"fd": 1.5}), {"png": picture, "npy": influence})
    assert store.influence("k").tolist() == [0, 1, 2, 3, 4] and store.influence("other") is None
    assert store.record(ProbeRecord, "k") == ProbeRecord({"fd": 1.5})
    assert store.record(ProbeRecord, "other") is None
    assert store.picture("k") == b"png" and store.picture("other") is None
    store.files.write("records/probes/k.png", b"another")
    assert store.record(ProbeRecord, "k") is None


def probed(store: Store, folder: Path, key: str, value: float, influence: list[float]) -> None:
    np.save(folder / f"{key}.npy", np.array(influence, dtype=np.float32))
    metrics = {SPEC.metric: value, f"{SPEC.metric}_se": float(np.std(influence, ddof=1)) / len(influence) ** 0.5}
    store.put_record(key, ProbeRecord(metrics), {"npy": folder / f"{key}.npy"})


def test_probes_that_drew_the_same_noise_differ_by_less_than_their_errors(tmp_path):
    store = Store(str(tmp_path / "store"))
    common, own = np.random.default_rng(0).normal(size=(2, 500))
    probed(store, tmp_path, "a", 20.0, common)
    probed(store, tmp_path, "b", 20.5, common + 0.1 * own)
    apart = difference(store, "b", "a", SPEC)
    assert apart.value == 0.5 and apart.error == pytest.approx(0.1 * own.std(ddof=1) / 500**0.5, rel=1e-4)
    assert apart.is_worse(0.95)
    store.files.delete("records/probes/a.npy")  # and with it the record
    assert not difference(store, "b", "a", SPEC).is_worse(0.95)


def test_without_influences_the_errors_of_two_probes_count_as_independent(tmp_path):
    store = Store(str(tmp_path / "store"))
    for key, value, error in (("a", 20.0, 0.3), ("b", 20.5, 0.4)):
        store.put_record(key, ProbeRecord({SPEC.metric: value, f"{SPEC.metric}_se": error}))
    assert difference(store, "b", "a", SPEC) == Difference(0.5, 0.5)


def test_a_relative_storage_is_the_same_from_every_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = Store("store")
    commit(store, tmp_path / "files", 10)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Store(store.uri).find(RUN, 10) and store.find(RUN, 10)


def test_an_unwritable_storage_is_the_user_s_mistake(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="--storage"):
        Store(str(tmp_path / "file" / "below")).files.check_writable()
    with pytest.raises(UserError, match="--storage"):
        Store("nonsense://bucket/folder")


def test_a_record_may_hold_what_is_not_finite(storage):
    store = Store(storage)
    failure = FailureRecord(3, {"loss": math.nan, "grad_norm": math.inf}, {}, 0, {}, Platform())
    store.put_record("k", failure)
    terms = Store(storage).record(FailureRecord, "k").terms
    assert math.isnan(terms["loss"]) and terms["grad_norm"] == math.inf
