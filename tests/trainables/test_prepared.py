"""Prepared sets: their files, what is refused, copies of remote ones, and what training sees of them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import fs

from trainables.datasets import catalog, prepared
from trainables.datasets.autoencoders import autoencoder_identity, load_autoencoder, save_autoencoder
from trainables.datasets.latent_files import Mapped, Shard, content_sha256, write_shard
from trainables.datasets.latent_set import load_latents

SHAPE = (8, 4, 4)
SHARDS = (5, 3, 4)


def rows(count, seed, mirrored=True, images=True):
    draw = np.random.default_rng(seed)
    columns = {
        "latent": draw.normal(size=(count, 2, *SHAPE)).astype(np.float16),
        "label": draw.integers(0, 3, count).astype(np.int32),
    }
    if mirrored:
        columns["mirrored"] = draw.normal(size=(count, 2, *SHAPE)).astype(np.float16)
    if images:
        columns["image"] = draw.integers(0, 256, (count, 3, 16, 16), dtype=np.uint8)
    return columns


def make(folder, mirrored=True, images=True, seed=0):
    """A small prepared set, and the columns of all its shards together."""
    parts = [rows(count, seed + number, mirrored, images) for number, count in enumerate(SHARDS)]
    (folder / "shards").mkdir(parents=True)
    for number, part in enumerate(parts):
        write_shard(
            folder / f"shards/{number:05}.arrow",
            {**part, "source": [f"{number}/{n}" for n in range(len(part["label"]))]},
        )
    autoencoder = load_autoencoder()
    save_autoencoder(autoencoder, folder / "autoencoder")
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": prepared._sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    content = {
        "latent_shape": list(SHAPE),
        "num_classes": 3,
        "mirrored": mirrored,
        "shift": [0.5] * SHAPE[0],
        "scale": [2.0] * SHAPE[0],
        "autoencoder": autoencoder_identity(autoencoder),
        "shards": [{"images": len(part["label"]), "sha256": content_sha256(part)} for part in parts],
    }
    about = {"source": "noise", "class_names": ["a", "b", "c"]}
    made = prepared.Prepared(str(folder), content, "f" * 64 if images else None, files, about)
    (folder / prepared.MANIFEST).write_bytes(made.spell())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture
def made(tmp_path):
    return str(tmp_path / "set"), make(tmp_path / "set")


def test_rows_are_read_back_from_any_shard(made):
    place, columns = made
    manifest = prepared.read(place)
    mapped = Mapped([catalog.Path(place, shard) for shard in manifest.shards], manifest.images)
    indices = torch.tensor([11, 0, 4, 5, 7, 8, 0])
    for name, values in columns.items():
        mapped.expect(name, indices)
        taken = mapped.take(name, indices)
        assert np.array_equal(taken.numpy(), values[indices.numpy()]) and taken.numpy().dtype == values.dtype


def test_any_arrow_reader_sees_shapes_and_sources(made):
    with pa.memory_map(f"{made[0]}/shards/00001.arrow") as stream:
        table = pa.ipc.open_file(stream).read_all()
    assert table.schema.field("latent").type == pa.fixed_shape_tensor(pa.float16(), (2, *SHAPE))
    assert table["source"].to_pylist() == ["1/0", "1/1", "1/2"]
    assert table["latent"].chunk(0).to_numpy_ndarray().shape == (3, 2, *SHAPE)


@pytest.mark.parametrize("held", [False, True])
def test_training_sees_the_posterior_normalised_and_mirrored(made, tmp_path, held):
    place, columns = made
    device = torch.device("cpu") if held else None
    data = load_latents(place, tmp_path, mirrored=True, images=True, device=device)
    assert (data.num_images, data.latent_shape, data.num_classes) == (12, SHAPE, 3)
    indices, noise = torch.tensor([9, 2, 2]), torch.randn(3, *SHAPE)
    for mirror in (None, torch.tensor([False, True, False]), torch.tensor([True] * 3)):
        which = [bool(mirror is not None and mirror[n]) for n in range(3)]
        rows = [columns["mirrored" if other else "latent"][i] for i, other in zip(indices, which, strict=True)]
        moments = torch.from_numpy(np.stack(rows)).float()
        expected = (moments[:, 0] + moments[:, 1] * noise - 0.5) * 2
        assert torch.equal(data.sample(indices, noise, mirror), expected)
        pictures = [
            columns["image"][i][..., ::-1] if other else columns["image"][i]
            for i, other in zip(indices, which, strict=True)
        ]
        assert np.array_equal(data.images(indices, mirror).numpy(), np.stack(pictures))
    assert data.labels(indices).tolist() == columns["label"][indices].tolist()
    data.expect(indices, torch.tensor([0.1, 0.7, 0.2]))


def test_a_set_is_known_by_name_and_by_place(made, tmp_path, monkeypatch):
    place, _ = made
    assert catalog.find(place).num_images == 12 and catalog.find(place).class_names == ("a", "b", "c")
    with pytest.raises(LookupError, match="no data set 'set'; known: emoji9"):
        catalog.find("set")
    monkeypatch.setenv(prepared.ROOT, str(tmp_path))
    assert catalog.identity("set") == catalog.identity(place) and "set" in catalog.known()
    with pytest.raises(LookupError, match="no data set 'sat'; known: .*, set; nothing prepared at"):
        catalog.find("sat")


def test_the_identity_is_that_of_the_content_alone(tmp_path):
    identities = {}
    for name, options in {"a": {}, "b": {}, "c": {"seed": 1}, "d": {"mirrored": False}, "e": {"images": False}}.items():
        make(tmp_path / name, **options)
        identities[name] = catalog.identity(str(tmp_path / name))
    assert identities["a"] == identities["b"] == identities["e"]  # images are repa's alone
    assert len(set(identities.values())) == 3


def test_a_set_of_another_shape_is_not_taken_for_a_known_one(made, tmp_path, monkeypatch):
    monkeypatch.setenv(prepared.ROOT, str(tmp_path))
    shutil.copytree(made[0], tmp_path / "imagenet256")
    with pytest.raises(LookupError, match="has 3 classes of latents 8x4x4, but 'imagenet256' is 1000 classes"):
        catalog.identity("imagenet256")


def test_an_error_about_a_set_names_the_option_that_helps(tmp_path):
    make(tmp_path / "set", mirrored=False, images=False)
    with pytest.raises(LookupError, match="--mirrored"):
        load_latents(str(tmp_path / "set"), tmp_path, mirrored=True)
    with pytest.raises(LookupError, match="--keep-images"):
        load_latents(str(tmp_path / "set"), tmp_path, images=True)
    with pytest.raises(LookupError, match="no statistics of its images for inception-tensorflow-6726825d"):
        catalog.reference_file(str(tmp_path / "set"), "inception-tensorflow-6726825d")


DAMAGES = {
    "a truncated shard": ("shards/00001.arrow", lambda content: content[:-1], "truncated"),
    "an altered shard": ("shards/00001.arrow", lambda content: content[:700] + b"?" + content[701:], "altered"),
    "a missing shard": ("shards/00002.arrow", None, "missing"),
    "another autoencoder": ("autoencoder/config.json", lambda content: content.replace(b"32", b"33", 1), "altered"),
    "a torn manifest": ("manifest.json", lambda content: content[:-9], "truncated"),
    "an altered manifest": ("manifest.json", lambda content: content.replace(b"0.5", b"0.6", 1), "altered"),
    "another format": ("manifest.json", lambda content: content.replace(b'"format": 1', b'"format": 2'), "format 2"),
}


def spoil(folder, damage):
    name, how, _ = DAMAGES[damage]
    path = catalog.Path(folder, name)
    content = path.read_bytes()
    path.unlink() if how is None else path.write_bytes(how(content))
    prepared.read.cache_clear()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("used", [False, True])
def test_a_damaged_set_is_refused_in_a_line_that_names_the_file(made, tmp_path, damage, used):
    if used:
        load_latents(made[0], tmp_path)
    spoil(made[0], damage)
    with pytest.raises(LookupError) as raised:
        load_latents(made[0], tmp_path)
    message = raised.value.args[0]
    assert DAMAGES[damage][0] in message and DAMAGES[damage][2] in message and "\n" not in message


def test_a_file_that_is_no_shard_is_refused(tmp_path):
    (tmp_path / "torn.arrow").write_bytes(b"ARROW1\0\0")
    with pytest.raises(ValueError, match="torn.arrow: cannot be read"):
        Shard(tmp_path / "torn.arrow")


def upload(folder, uri):
    filesystem, path = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(folder), path, source_filesystem=fs.LocalFileSystem(), destination_filesystem=filesystem)
    return filesystem, path


def test_a_remote_set_is_copied_once_and_read_alike(made, tmp_path, s3, monkeypatch):
    uri = s3.format(f"sets-{tmp_path.name}/noise")
    filesystem, path = upload(made[0], uri)
    assert catalog.identity(uri) == catalog.identity(made[0])
    monkeypatch.setenv(prepared.ROOT, s3.format(f"sets-{tmp_path.name}"))
    cache = tmp_path / "cache"
    remote, local = load_latents("noise", cache), load_latents(made[0], cache)
    everyone, noise = torch.arange(12), torch.randn(12, *SHAPE)
    assert torch.equal(remote.sample(everyone, noise), local.sample(everyone, noise))
    filesystem.delete_dir(path)
    again = load_latents("noise", cache)  # from the copy
    assert torch.equal(again.sample(everyone, noise), local.sample(everyone, noise))


@pytest.mark.parametrize("damage", [name for name in DAMAGES if "manifest" not in name and "format" not in name])
def test_a_damaged_remote_set_leaves_no_copy(made, tmp_path, s3, damage):
    spoil(made[0], damage)
    uri = s3.format(f"spoilt-{tmp_path.name}-{abs(hash(damage))}")
    upload(made[0], uri)
    with pytest.raises(LookupError) as raised:
        load_latents(uri, tmp_path / "cache")
    assert DAMAGES[damage][0] in raised.value.args[0] and "\n" not in raised.value.args[0]
    assert not [entry for entry in (tmp_path / "cache" / "data").iterdir() if entry.is_dir()]
    if "altered" not in DAMAGES[damage][2]:  # sizes can be seen from afar
        with pytest.raises(LookupError, match=DAMAGES[damage][2]):
            catalog.examine(uri, tmp_path)


def test_copies_go_when_the_budget_is_spent_but_not_those_in_use(tmp_path, s3, monkeypatch):
    uris = []
    for seed in range(3):
        make(tmp_path / f"set{seed}", seed=10 * seed)
        uris.append(s3.format(f"budget-{tmp_path.name}/{seed}"))
        upload(tmp_path / f"set{seed}", uris[-1])
    size = sum(file["bytes"] for file in prepared.read(uris[0]).files.values())
    monkeypatch.setenv(prepared.BUDGET, str(2.5 * size / 2**30))
    cache = tmp_path / "cache"
    program = "import sys; from pathlib import Path; from trainables.datasets.latent_set import load_latents\n"
    program += "load_latents(sys.argv[1], Path(sys.argv[2]))"

    def use(uri):  # by a process that ends
        subprocess.run(
            [sys.executable, "-c", program, uri, str(cache)], check=True, env=os.environ | {"PYTHONPATH": os.getcwd()}
        )

    def there():
        return [(cache / "data" / catalog.identity(uri) / "manifest.json").is_file() for uri in uris]

    use(uris[0])
    use(uris[1])
    use(uris[0])  # used later than the second
    use(uris[2])
    assert there() == [True, False, True]
    load_latents(uris[0], cache)  # in use by this process
    load_latents(uris[2], cache)
    use(uris[1])
    assert there() == [True, True, True]  # whatever the budget says


def test_what_a_machine_has_compared_is_remembered_where_only_its_user_can_write(made, tmp_path, monkeypatch):
    folder, home = Path(made[0]), tmp_path / "home"
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    before = os.umask(0o002)
    try:
        prepared.fetch(prepared.read(str(folder)), tmp_path)
    finally:
        os.umask(before)
    assert (home / "raysweep").stat().st_mode & 0o777 == 0o700 and list((home / "raysweep").glob("*.checked"))
    (home / "raysweep").chmod(0o777)  # others may say that a file was compared
    shard = folder / "shards" / "00000.arrow"
    stamps = shard.stat()
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    os.utime(shard, ns=(stamps.st_atime_ns, stamps.st_mtime_ns))
    with pytest.raises(LookupError, match="was altered"):
        prepared.fetch(prepared.read(str(folder)), tmp_path)


def test_a_manifest_is_plain_json_of_known_parts(made):
    written = json.loads(catalog.Path(made[0], "manifest.json").read_bytes())
    assert set(written) == {"format", "identity", "content", "pictures", "files", "about", "sha256"}
