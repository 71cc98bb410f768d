"""`raysweep probe` gives a sweep's numbers, for our checkpoints and for files of reference repositories."""

import argparse
import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from raysweep.commands import probe
from raysweep.store.manifest import TrainingFacts
from raysweep.store.store import Store
from trainables.config import NoTerm, Phase, ProbeSpec, Run
from trainables.datasets import catalog
from trainables.datasets.latent_set import load_latents
from trainables.evaluation.inception import FEATURES, SPATIAL, Inception
from trainables.training.checkpoint import Checkpoint, load_weights
from trainables.training.loop import Context, train
from trainables.training.worker_cache import WorkerCache

pytestmark = pytest.mark.slow  # the real images go through the detector once
RUN = Run(
    backbone="SiT-T/2",
    data="emoji9",
    batch_size=4,
    ema_decay=0.5,
    optimizer={"lr": 1e-2},
    phases=[Phase(until=4, term=NoTerm())],
)
QUICK = ["--detector", "effnet_lite0", "--samples", "40", "--sampler", "euler", "--steps", "2", "--batch-size", "16"]
SPEC = ProbeSpec(detector="effnet_lite0", samples=40, sampler="euler", steps=2, batch_size=16)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A store with one run's checkpoints at steps 2 and 4."""
    root = tmp_path_factory.mktemp("storage")
    (root / "cache").symlink_to(cache)
    store, start = Store(str(root)), None
    for step in (2, 4):
        start = train(RUN, step, data=load_latents("emoji9", cache), context=Context(), start=start).checkpoint
        with tempfile.TemporaryDirectory() as folder:
            start.save(Path(folder))
            store.commit(RUN, step, Path(folder), TrainingFacts())
    return root


@pytest.fixture(scope="module")
def committed(storage: Path) -> tuple[str, Path]:
    """The key and the folder of the checkpoint at step 4."""
    store = Store(str(storage))
    checkpoint = store.find(RUN, 4)
    return checkpoint.key, store.open(checkpoint)


@pytest.fixture(scope="module")
def recorded(storage: Path, committed, cache: Path) -> dict[str, float]:
    """What a sweep records for the checkpoint at step 4."""
    return WorkerCache(Context(), cache).probe(RUN, SPEC, committed[1]).metrics


@pytest.fixture
def call(storage: Path, capsys):
    """Run the command; returns its exit code, its JSON and stderr."""

    def call(checkpoint: str | Path, *options: str) -> tuple[int, dict, str]:
        code = probe.main([str(checkpoint), "--storage", str(storage), "--json", *options])
        printed = capsys.readouterr()
        return code, json.loads(printed.out.splitlines()[-1]) if code == 0 else {}, printed.err

    return call


def save_repa(folder: Path, path: Path, **more) -> Path:
    """Our snapshot as REPA's train.py would have saved it."""
    args = argparse.Namespace(model="SiT-T/2", num_classes=9)
    state = {"model": load_weights(folder, "raw"), "ema": load_weights(folder), "opt": {}, "args": args, "steps": 4}
    torch.save(state | more, path)
    return path


# --- numbers


def test_a_key_gives_the_numbers_of_the_sweep(call, committed, recorded, tmp_path):
    picture = tmp_path / "grid.png"
    code, result, _ = call(committed[0][:10], *QUICK, "--picture", str(picture))
    assert code == 0
    assert result["metrics"] == recorded and set(recorded) == {
        "fd_effnet_40",
        "fd_effnet_40_se",
        "is_effnet_40",
        "is_effnet_40_se",
    }
    assert (result["backbone"], result["source"], result["step"]) == ("SiT-T/2", "raysweep", 4)
    assert (result["data"], result["reference"], result["weights"]) == ("emoji9", "training images of emoji9", "ema")
    assert result["probe"] == SPEC.model_dump(mode="json")
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_folder_gives_the_numbers_of_the_sweep(call, committed, recorded):
    for folder in (committed[1], committed[1].parent):
        code, result, _ = call(folder, *QUICK)
        assert code == 0
        assert (result["metrics"], result["step"], result["data"]) == (recorded, 4, "emoji9")


def test_a_reference_copy_gives_the_same_numbers(call, committed, recorded, tmp_path):
    path = save_repa(committed[1], tmp_path / "0000004.pt")
    code, result, _ = call(path, "--source", "repa", *QUICK)
    assert code == 0
    assert result["metrics"] == recorded
    assert (result["source"], result["step"], result["data"], result["reference"]) == (
        "repa",
        4,
        None,
        "training images of emoji9",
    )
    code, result, _ = call(path, "--source", "repa", "--weights", "raw", *QUICK)
    assert code == 0 and result["weights"] == "raw" and result["metrics"] != recorded


def test_the_data_sets_own_autoencoder_by_its_path_changes_nothing(call, committed, recorded):
    path = Path(catalog.files("emoji9")[1])
    assert call(committed[0], "--autoencoder", str(path), *QUICK)[1]["metrics"] == recorded


def test_guidance_and_seed_change_the_samples(call, committed, recorded):
    options = ["--guidance-scale", "3", "--guidance-interval", "0", "0.9"]
    code, result, _ = call(committed[0], *QUICK, *options)
    assert code == 0 and result["metrics"] != recorded
    assert (result["probe"]["guidance_scale"], result["probe"]["guidance_interval"]) == (3, [0, 0.9])
    assert call(committed[0], *QUICK, "--seed", "1")[1]["metrics"] != recorded


def test_metrics_are_chosen_by_name(call, committed, recorded):
    code, result, _ = call(
        committed[0], *QUICK, "--metrics", "fid", "kid", "precision", "recall", "fid_infinity", "fid_floor"
    )
    assert code == 0 and result["metrics"]["fd_effnet_40"] == recorded["fd_effnet_40"]
    assert set(result["metrics"]) == {
        f"{name}_effnet_40{end}"
        for name in ("fd", "kid", "precision", "recall", "fd_infinity", "fd_floor")
        for end in ("", "_se")
    }
    floor, limit = (result["metrics"][f"fd_{which}_effnet_40"] for which in ("floor", "infinity"))
    assert 0 < floor < recorded["fd_effnet_40"] and limit < recorded["fd_effnet_40"]
    assert 0 <= result["metrics"]["recall_effnet_40"] <= result["metrics"]["precision_effnet_40"] <= 1
    for wrong in (["is", "fid"], ["fid", "fid"], ["lpips"]):
        code, _, err = call(committed[0], *QUICK, "--metrics", *wrong)
        assert code == 2 and "--metrics" in err and len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def standin(tmp_path_factory) -> tuple[Path, Path]:
    """An Inception of random weights, and statistics to compare with, in the form of ADM's."""
    folder = tmp_path_factory.mktemp("inception")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(Inception().state_dict(), folder / "inception.pth")
    chance = np.random.default_rng(0)
    sizes = {"mu": FEATURES, "mu_s": SPATIAL}
    arrays = {name: chance.random(size) for name, size in sizes.items()}
    arrays |= {name.replace("mu", "sigma"): np.diag(chance.random(size)) for name, size in sizes.items()}
    np.savez(folder / "reference.npz", **arrays)
    return folder / "inception.pth", folder / "reference.npz"


def test_the_inception_of_a_file_judges_against_statistics_of_a_file(call, committed, standin):
    weights, reference = map(str, standin)
    quick = ["--detector", "inception", "--samples", "16", "--sampler", "euler", "--steps", "1", "--batch-size", "16"]
    options = [*quick, "--metrics", "fid", "sfid", "is", "--reference", reference, "--detector-weights", weights]
    code, _, err = call(committed[0], *options)
    begins = catalog.file_identity(standin[0])[:8]
    assert code == 2 and f"--detector-sha256 {begins}" in err, "other weights need --detector-sha256"
    code, result, _ = call(committed[0], *options, "--detector-sha256", begins)
    names = [f"{name}_{begins}_16" for name in ("fid", "sfid", "is")]
    assert code == 0 and set(result["metrics"]) == {name + end for name in names for end in ("", "_se")}
    assert all(math.isfinite(value) for value in result["metrics"].values())
    assert result["probe"]["reference_sha256"] == catalog.file_identity(standin[1])


def test_missing_or_wrong_files_are_reported(call, committed, standin, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    code, _, err = call(committed[0], "--detector", "inception")
    assert code == 2 and str(tmp_path) in err and catalog.INCEPTION_URL in err and "--detector-weights FILE" in err
    own = ["--detector-weights", str(standin[0]), "--detector-sha256", catalog.file_identity(standin[0])[:8]]
    inception = ["--detector", "inception", *own]
    (tmp_path / "some.npz").write_text("no arrays")
    for options, message in (
        (["--reference", "/nowhere.npz"], "no reference statistics at"),
        (["--reference", str(tmp_path / "some.npz")], "is not an .npz file"),
        (["--reference", str(standin[1]), "--reference-sha256", "0" * 8], "begins with"),
        (["--reference", str(standin[1]), "--metrics", "fid", "recall"], "has no arr_0, which recall compares with"),
    ):
        code, _, err = call(committed[0], *inception, *options)
        assert code == 2 and message in err and len(err.strip().splitlines()) == 1
    code, _, err = call(committed[0], *QUICK, "--resize", "clean")
    assert code == 2 and "this needs detector: inception" in err


def test_without_json_a_table_is_printed(storage, committed, recorded, capsys):
    assert probe.main([committed[0], "--storage", str(storage), *QUICK]) == 0
    out = capsys.readouterr().out
    assert f"{recorded['fd_effnet_40']:.4f}" in out
    for words in ("fd_effnet_40", "SiT-T/2 at step 4", "40 samples by euler in 2 steps, no guidance", "parameters"):
        assert words in out


# --- mistakes

MISTAKES = {
    "unknown key": ("abcdefabcdef", [], "none of the 2 keys in --storage"),
    "every key": ("", [], "may be any of 2"),
    "missing file": ("nowhere/last.pt", [], "no such file or folder"),
    "one sample": ("KEY", ["--samples", "1"], "--samples: input should be greater than 1"),
    "reversed interval": ("KEY", ["--guidance-interval", "0.9", "0.1"], "--guidance-interval: [0.9, 0.1] is reversed"),
    "shifted SDE": ("KEY", ["--sampler", "euler_maruyama", "--timestep-shift", "0.3"], "--timestep-shift: the SDE"),
    "unknown detector": ("KEY", ["--detector", "eye"], "--detector: input should be"),
    "unknown data": ("KEY", ["--data", "cats"], "--data cats: no data set 'cats'; known: emoji9"),
    "data not here": (
        "KEY",
        ["--data", "imagenet256"],
        "--data imagenet256: data set 'imagenet256' is not on this machine",
    ),
    "no folder for the picture": ("KEY", ["--picture", "nowhere/a.png"], "--picture nowhere/a.png: there is no folder"),
    "no autoencoder": ("KEY", ["--autoencoder", "nowhere"], "--autoencoder nowhere: "),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(call, storage, committed, mistake):
    checkpoint, options, message = MISTAKES[mistake]
    before = sorted(storage.rglob("*"))
    code, _, err = call(committed[0] if checkpoint == "KEY" else checkpoint, *QUICK, *options)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1 and "Traceback" not in err
    assert sorted(storage.rglob("*")) == before


def test_data_of_another_shape_is_refused(call, committed, tmp_path):
    state = load_weights(committed[1])
    name = "y_embedder.embedding_table.weight"
    path = save_repa(committed[1], tmp_path / "last.pt", ema=state | {name: state[name][:5].clone()})
    for options, message in {
        (): "which no known data set has; name one by --data: emoji9",
        ("--data", "emoji9"): "has 9 classes of latents 8x8x8, but the checkpoint has 4 classes",
    }.items():
        code, _, err = call(path, "--source", "repa", *options, *QUICK)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


def test_a_storage_that_cannot_be_written_to(committed, tmp_path, capsys):
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    assert probe.main([str(committed[1]), "--storage", str(in_the_way), *QUICK]) == 2
    err = capsys.readouterr().err
    assert "cannot write to its cache" in err and err.count("\n") == 1


class Program:
    def __init__(self, made: Path):
        self.made = made

    def __reduce__(self):
        return os.system, (f"touch {self.made}",)


def test_a_pickled_function_is_refused_and_not_run(call, committed, tmp_path):
    path = save_repa(committed[1], tmp_path / "evil.pt", hook=Program(tmp_path / "made"))
    code, _, err = call(path, "--source", "repa", *QUICK)
    assert (code, err.count("\n")) == (2, 1)
    assert "posix.system" in err and "refused" in err
    assert not (tmp_path / "made").exists()


def test_an_altered_checkpoint_is_not_probed(call, storage, committed, tmp_path, cache):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_bytes((committed[1].parent / "manifest.json").read_bytes())
    nonce = copy / committed[1].name
    nonce.mkdir()
    Checkpoint(4, {}, load_weights(committed[1], "raw")).save(nonce)
    code, _, err = call(copy, *QUICK)
    assert (code, err.count("\n")) == (2, 1)
    assert "snapshot.safetensors: altered" in err
