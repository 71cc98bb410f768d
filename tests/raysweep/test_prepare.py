"""`raysweep prepare` with a real Ray: sets that training can use, interruptions, and mistakes."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from raysweep.commands import prepare
from raysweep.commands import run as run_command
from raysweep.prepare.preparation import PROGRESS, Preparation
from raysweep.store.files import Files
from trainables.datasets import catalog, prepared
from trainables.datasets.autoencoders import load_autoencoder, normalisation
from trainables.datasets.images import centre_crop
from trainables.datasets.latent_files import Shard
from trainables.datasets.latent_set import load_latents

pytestmark = pytest.mark.ray
COUNTS = {"cats": 70, "dogs": 9, "eels": 1}  # as unbalanced as real data sets


def photograph(number):
    draw = np.random.default_rng(number)
    size = (int(draw.integers(33, 90)), int(draw.integers(20, 70)))
    coarse = Image.fromarray(draw.integers(0, 256, (5, 5, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def write_images(place):
    number = 0
    for name, count in COUNTS.items():
        (place / name).mkdir(parents=True)
        for _ in range(count):
            picture = photograph(number)
            picture = picture.convert("L") if number % 7 == 0 else picture
            picture.save(place / name / f"{number:03}.png")
            number += 1
    return place


def run(capsys, *options):
    try:
        code = prepare.main([str(option) for option in options])
    except SystemExit as ended:  # by argparse
        code = ended.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("images"))


@torch.no_grad()
def test_a_folder_becomes_the_latents_that_diffusers_makes(images, tmp_path, capsys, monkeypatch):
    out = tmp_path / "pets"
    options = ["--size", 32, "--mirrored", "--keep-images", "--detectors", "none", "--json"]
    code, stdout, _ = run(capsys, images, "--out", out, *options)
    assert code == 0
    result = json.loads(stdout.splitlines()[-1])
    assert (result["images"], result["classes"], result["latent_shape"]) == (80, 3, [8, 8, 8])

    files = sorted(path for path in images.rglob("*.png"))
    pixels = np.stack([centre_crop(Image.open(file).convert("RGB"), 32) for file in files]).transpose(0, 3, 1, 2)
    batch = torch.from_numpy(pixels.copy())
    autoencoder = load_autoencoder()
    monkeypatch.setenv(prepared.ROOT, str(tmp_path))
    data = load_latents("pets", tmp_path / "cache", mirrored=True, images=True)
    everyone = torch.arange(80)
    assert data.labels(everyone).tolist() == [0] * 70 + [1] * 9 + [2]
    assert torch.equal(data.images(everyone), batch)
    for column, looked_at in (("latent", batch), ("mirrored", batch.flip(-1))):
        direct = [autoencoder.encode(part.float() / 127.5 - 1).latent_dist for part in looked_at.split(64)]
        moments = torch.stack([torch.cat([p.mean for p in direct]), torch.cat([p.std for p in direct])], dim=1)
        assert torch.equal(data.columns.take(column, everyone), moments.half())
    own = normalisation(autoencoder)
    noise = torch.randn(80, 8, 8, 8)
    drawn = data.sample(everyone, noise)
    stored = data.columns.take("latent", everyone).float()
    assert torch.equal(drawn, own.apply(stored[:, 0] + stored[:, 1] * noise))

    about = prepared.read(str(out)).about
    assert about["class_names"] == list(COUNTS) and about["class_images"] == list(COUNTS.values())
    samples = stored[:, 0].double() + 0 * noise
    mean = samples.mean(dim=(0, 2, 3))
    std = ((stored[:, 0].double() ** 2 + stored[:, 1].double() ** 2).mean(dim=(0, 2, 3)) - mean**2).sqrt()
    np.testing.assert_allclose(about["channel_mean"], mean, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(about["channel_std"], std, rtol=1e-6)

    assert run(capsys, images, "--out", out, *options)[0] == 0  # again: the finished set is taken
    code, _, err = run(capsys, images, "--out", out, "--size", 40, *options[2:])
    assert code == 2 and "another size is there or was begun there" in err and err.count("\n") == 1


def test_unreadable_images_are_listed_and_left_out_on_demand(images, tmp_path, capsys):
    source = write_images(tmp_path / "source")
    (source / "cats" / "010.png").write_bytes((source / "cats" / "010.png").read_bytes()[:60])
    (source / "dogs" / "075.png").write_bytes(b"")
    options = [source, "--out", tmp_path / "out", "--size", 32, "--detectors", "none"]
    code, _, err = run(capsys, *options)
    assert code == 2 and "2 of 80 images cannot be read" in err and "--skip-corrupt" in err
    assert "cats/010.png: " in err and "dogs/075.png: " in err
    with pytest.raises(LookupError):
        prepared.read(str(tmp_path / "out"))
    began = time.monotonic()
    code, out, _ = run(capsys, *options, "--skip-corrupt")  # without encoding anything again
    assert code == 0 and "78 images, 2 left out" in out and time.monotonic() - began < 5
    shard = Shard(tmp_path / "out" / "shards" / "00000.arrow")
    sources = shard.batch.column("source").to_pylist()
    assert len(sources) == 78 and "cats/010.png" not in sources and "dogs/075.png" not in sources


EMOJI9 = ("emoji9", "--size", 32, "--images-per-shard", 128)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """emoji9, prepared without interruption."""
    out = tmp_path_factory.mktemp("whole") / "set"
    assert prepare.main([str(option) for option in (*EMOJI9, "--out", out)]) == 0
    return out


def started(*options):
    command = [sys.executable, "-m", "raysweep", "prepare", *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def shards_saved(place):
    return len((Files(str(place)).read_sealed(PROGRESS) or {"shards": []})["shards"])


def run_until_saved(place, how):
    """Run a preparation until it has saved its progress once more, end it by a signal, and return its exit code."""
    process = started(*EMOJI9, "--out", place)
    before, until = shards_saved(place), time.monotonic() + 120
    try:
        while shards_saved(place) <= before:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(how)
        return process.wait(timeout=60)
    finally:
        process.kill()


@pytest.mark.slow
def test_a_preparation_that_was_ended_twice_goes_on_and_ends_in_the_same_bits(whole, tmp_path, capsys):
    place = tmp_path / "ended"
    assert run_until_saved(place, signal.SIGINT) == 130
    assert run_until_saved(place, signal.SIGKILL) == -signal.SIGKILL
    assert Preparation.in_progress(Files(str(place))) and not (place / "manifest.json").exists()
    code, _, err = run(capsys, *EMOJI9, "--out", place)
    assert code == 0 and "continuing after" in err
    resumed, expected = prepared.read(str(place)), prepared.read(str(whole))
    assert resumed.identity == expected.identity and resumed.files == expected.files
    names = [sorted(path.name for path in folder.iterdir()) for folder in (place, whole)]
    assert names[0] == names[1]


MISTAKES = {
    "nothing there": (["no-such-place"], "no-such-place: there is nothing here"),
    "size": (["emoji9", "--size", "30"], "--size 30: the autoencoder needs a multiple of 4"),
    "autoencoder": (["emoji9", "--autoencoder", "{tmp}"], "no config.json"),
    "detector": (
        ["emoji9", "--size", "32", "--detectors", "inception"],
        "--detectors inception: no weights of the FID",
    ),
    "shards": (["emoji9", "--images-per-shard", "0"], "--images-per-shard: '0'; give a whole number of 1 or more"),
    "split": (["emoji9", "--split", "val"], "emoji9: no split 'val'; known: train, test"),
    "occupied": (["emoji9", "--size", "32", "--out", "{tmp}/occupied"], "not empty, it contains novel.txt"),
    "out": (["emoji9", "--size", "32", "--out", "nowhere://x"], "nowhere://x"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_writes_nothing(tmp_path, capsys, monkeypatch, mistake):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    (tmp_path / "occupied").mkdir()
    (tmp_path / "occupied" / "novel.txt").write_text("a user's own")
    before = sorted(tmp_path.rglob("*"))
    given, expected = MISTAKES[mistake]
    given = [option.format(tmp=tmp_path) for option in given]
    code, _, err = run(capsys, *given, *([] if "--out" in given else ["--out", tmp_path / "out"]))
    assert code == 2 and expected in err.splitlines()[-1] and "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_embedded_set_prepared_is_the_one_that_trains(whole, cache):
    """The latents of emoji9, prepared, are those of `data: emoji9` rounded to float16."""
    own, embedded = load_latents(str(whole), cache), load_latents("emoji9", cache)
    everyone, noise = torch.arange(3380), torch.randn(3380, 8, 8, 8)
    assert torch.equal(own.labels(everyone), embedded.labels(everyone))
    torch.testing.assert_close(own.sample(everyone, noise), embedded.sample(everyone, noise), rtol=2e-3, atol=2e-3)
    assert catalog.find(str(whole)).class_names == catalog.find("emoji9").class_names


def test_latents_of_others_are_taken_over(tmp_path, capsys):
    """LightningDiT's latents, normalised by channels; and an autoencoder that cannot have made them."""
    from safetensors.numpy import save_file

    draw = np.random.default_rng(0)
    latents = (3 + 2 * draw.normal(size=(20, 8, 4, 4))).astype(np.float32)
    columns = {"latents": latents, "latents_flip": latents[..., ::-1].copy(), "labels": np.arange(20) % 2}
    (tmp_path / "source").mkdir()
    save_file(columns, tmp_path / "source" / "latents_rank00_shard000.safetensors")
    own = catalog.files("emoji9")[1]
    options = [tmp_path / "source", "--out", tmp_path / "out", "--mirrored", "--normalise", "channels"]
    code, _, err = run(capsys, *options)
    assert code == 2 and "--autoencoder: name the autoencoder that made these latents" in err
    assert run(capsys, *options, "--autoencoder", own)[0] == 0
    data = load_latents(str(tmp_path / "out"), tmp_path, mirrored=True)
    everyone, noise = torch.arange(20), torch.zeros(20, 8, 4, 4)
    sampled = data.sample(everyone, noise)
    assert sampled.mean().abs() < 0.01 and abs(sampled.std() - 1) < 0.01
    torch.testing.assert_close(data.sample(everyone, noise, torch.ones(20, dtype=torch.bool)), sampled.flip(-1))
    undone = normalisation(load_autoencoder(tmp_path / "out" / "autoencoder")).undo(sampled)  # as probes do
    torch.testing.assert_close(undone, torch.from_numpy(latents), rtol=2e-3, atol=2e-3)

    save_file(columns | {"latents": latents[:, :4].copy()}, tmp_path / "source" / "latents_rank00_shard000.safetensors")
    code, _, err = run(capsys, *options[:1], "--out", tmp_path / "other", "--autoencoder", own)
    assert (
        code == 2 and "has 4 channels, but the autoencoder's latents have 8: was it made by another autoencoder?" in err
    )


def test_mixed_latents_are_refused(tmp_path, capsys):
    for number, shape in enumerate([(16, 4, 4)] * 3 + [(16, 8, 8)]):
        (tmp_path / "source").mkdir(exist_ok=True)
        np.save(tmp_path / "source" / f"{number}.npy", np.ones(shape, np.float32))
    pairs = [[f"{number}.npy", 0] for number in range(4)]
    (tmp_path / "source" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    own = catalog.files("emoji9")[1]
    code, _, err = run(capsys, tmp_path / "source", "--out", tmp_path / "out", "--autoencoder", own)
    assert code == 2 and "made by different autoencoders?" in err and "Traceback" not in err


SWEEP = ["search_spaces/table5.yaml", "--profile", "smoke", "--set", "search.trials=1", "--json"]


@pytest.mark.slow
def test_a_sweep_trains_and_probes_on_a_prepared_set_and_shares_wherever_it_lies(whole, tmp_path, capsys, monkeypatch):
    def sweep(study, data):
        options = ["--set", f"study={study}", "--set", f"trial.data={data}", "--storage", str(tmp_path / "runs")]
        code = run_command.main([*SWEEP, *options])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    shutil.copytree(whole, tmp_path / "moved")
    code, out, _ = sweep("first", whole)
    first = json.loads(out.splitlines()[-1])
    assert code == 0 and first["steps"]["computed"] > 0 and first["best"] is not None
    monkeypatch.setenv(prepared.ROOT, str(tmp_path))
    code, out, _ = sweep("second", "moved")
    again = json.loads(out.splitlines()[-1])
    assert code == 0 and again["steps"]["computed"] == 0
    assert again["trials"][0]["history_key"] == first["trials"][0]["history_key"]
    assert again["trials"][0]["metrics"] == first["trials"][0]["metrics"]

    shard = tmp_path / "moved" / "shards" / "00003.arrow"
    shard.write_bytes(shard.read_bytes()[:-8])
    before = sorted((tmp_path / "runs" / "studies").iterdir())
    code, _, err = sweep("third", "moved")
    assert code == 2 and "--set trial.data: " in err and "00003.arrow is truncated" in err and err.count("\n") == 1
    assert sorted((tmp_path / "runs" / "studies").iterdir()) == before
