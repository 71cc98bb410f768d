"""Every kind of source is recognised, and yields its images with their labels in a fixed order."""

import gzip
import io
import json
import struct
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from raysweep.errors import UserError
from raysweep.prepare.sources import open_source

CLASSES = ("n01440764", "n02102040", "n03000684")


def picture(number):
    stream = io.BytesIO()
    Image.new("RGB", (4, 5), (number, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def number_of(content):
    return Image.open(io.BytesIO(content)).getpixel((0, 0))[0]


# Seven images of three classes (3 + 2 + 2); the red value of each is its number.
LABELS = [0, 0, 0, 1, 1, 2, 2]


def write_tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def folder(place):
    for number, label in enumerate(LABELS):
        (place / "train" / CLASSES[label] / "deeper").mkdir(parents=True, exist_ok=True)
        name = f"{number}.JPEG" if number % 2 else f"deeper/{number}.png"
        (place / "train" / CLASSES[label] / name).write_bytes(picture(number))
    (place / "train" / CLASSES[0] / ".hidden.png").write_bytes(b"of a Mac")
    (place / "train" / CLASSES[0] / "notes.txt").write_text("no image")
    return place


def class_tars(place):
    place.mkdir()
    for label, name in enumerate(CLASSES):
        images = [(f"{name}_{n}.JPEG", picture(n)) for n, own in enumerate(LABELS) if own == label]
        write_tar(place / f"{name}.tar", images)
    return place


def imagenet_tar(place):
    parts = class_tars(place)
    members = [(tar.name, tar.read_bytes()) for tar in sorted(parts.iterdir())]
    for tar in list(parts.iterdir()):
        tar.unlink()
    return write_tar(place / "ILSVRC2012_img_train.tar", members)


def webdataset(place):
    place.mkdir()
    for shard, numbers in enumerate(([0, 1, 2, 3], [4, 5, 6])):
        members = []
        for n in numbers:
            label = ("cls", str(LABELS[n]).encode()) if n % 2 else ("json", json.dumps({"label": LABELS[n]}).encode())
            members += [(f"./{n:04}.{label[0]}", label[1]), (f"./{n:04}.png", picture(n))]
        write_tar(place / f"shard-{shard:06}.tar", members)
    return place


def hub(place):
    (place / "data").mkdir(parents=True)
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    features = {"info": {"features": {"label": {"names": ["tench", "boxer", "chain saw"], "_type": "ClassLabel"}}}}
    for part, numbers in enumerate(([0, 1, 2, 3, 4], [5, 6])):
        images = pa.array([{"bytes": picture(n), "path": f"{n}.png"} for n in numbers], kind)
        table = pa.table({"image": images, "label": pa.array([LABELS[n] for n in numbers])})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        pq.write_table(table, place / "data" / f"train-{part:05}-of-00002.parquet", row_group_size=2)
    images = pa.array([{"bytes": picture(n), "path": None} for n in range(3)], kind)
    table = pa.table({"image": images, "label": pa.array([2, 1, 0])})
    pq.write_table(table, place / "data" / "validation-00000-of-00001.parquet")
    return place


def idx(place):
    place.mkdir()
    images = np.stack([np.full((4, 5), number, np.uint8) for number in range(7)])
    for name, array in (("images-idx3", images), ("labels-idx1", np.array(LABELS, np.uint8))):
        head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
        (place / f"train-{name}-ubyte.gz").write_bytes(gzip.compress(head + array.tobytes()))
    return place


IMAGES = {make.__name__: make for make in (folder, class_tars, imagenet_tar, webdataset, hub, idx)}


@pytest.mark.parametrize("kind", IMAGES)
def test_images_come_with_their_labels_in_one_order(tmp_path, kind):
    place = IMAGES[kind](tmp_path / "place")
    source = open_source(str(place))
    assert len(source.items) == 7 and len(source.class_names) == 3 and not source.latents
    pictures = list(source.reader(source.items))
    numbers = [number_of(p.content) if isinstance(p.content, bytes) else int(p.content[0, 0]) for p in pictures]
    assert sorted(numbers) == list(range(7)) and [p.label for p in pictures] == [LABELS[n] for n in numbers]
    assert len({p.source for p in pictures}) == 7 and not any(str(tmp_path) in p.source for p in pictures)
    some = list(source.reader(source.items[4:6]))
    assert [p.source for p in some] == [p.source for p in pictures[4:6]]
    again = open_source(str(place))
    assert again.fingerprint() == source.fingerprint()


def test_classes_are_named_as_their_places_say(tmp_path):
    assert open_source(str(folder(tmp_path / "a"))).class_names == CLASSES
    assert open_source(str(imagenet_tar(tmp_path / "b"))).class_names == CLASSES
    assert open_source(str(hub(tmp_path / "c"))).class_names == ("tench", "boxer", "chain saw")
    assert open_source(str(idx(tmp_path / "d"))).class_names == ("0", "1", "2")


def test_another_split_is_another_source(tmp_path):
    assert len(open_source(str(hub(tmp_path / "hub")), "validation").items) == 3
    assert len(open_source("emoji9").items) == 3380 and len(open_source("emoji9", "test").items) == 432


def moments(number, channels=4):
    return np.random.default_rng(number).normal(size=(2, channels, 8, 8)).astype(np.float32)


def repa(place):
    (place / "vae-sd" / "00000").mkdir(parents=True)
    pairs = []
    for number, label in enumerate(LABELS):
        name = f"00000/img-mean-std-{number:08}.npy"
        np.save(place / "vae-sd" / name, moments(number).reshape(8, 8, 8))
        pairs.append([name, label])
    (place / "vae-sd" / "dataset.json").write_text(json.dumps({"labels": pairs}))
    return place


def dit(place):
    for what in ("features", "labels"):
        (place / f"imagenet256_{what}").mkdir(parents=True)
    for number, label in enumerate(LABELS):
        np.save(place / "imagenet256_features" / f"{number}.npy", moments(number)[:1])
        np.save(place / "imagenet256_labels" / f"{number}.npy", np.array([label]))
    return place


def lightningdit(place):
    place.mkdir()
    for shard, numbers in enumerate(([0, 1, 2, 3], [4, 5, 6])):
        columns = {"latents": np.stack([moments(n)[0] for n in numbers])}
        columns |= {"latents_flip": -columns["latents"], "labels": np.array([LABELS[n] for n in numbers])}
        save_file(columns, place / f"latents_rank00_shard{shard:03}.safetensors")
    return place


@pytest.mark.parametrize("kind", [repa, dit, lightningdit])
def test_latents_of_others_come_with_their_labels(tmp_path, kind):
    place = kind(tmp_path / "place")
    if kind is dit:  # (1, C, H, W), as its extract_features.py writes them
        for number in range(7):
            np.save(place / "imagenet256_features" / f"{number}.npy", moments(number)[0][None])
    source = open_source(str(place))
    chunk = list(source.reader(source.items))
    assert source.latents and source.scaled == (kind is dit) and [latents.label for latents in chunk] == LABELS
    for number, latents in enumerate(chunk):
        assert np.array_equal(latents.latent[0], moments(number)[0])
        assert np.array_equal(latents.latent[1], moments(number)[1] if kind is repa else np.zeros((4, 8, 8)))
        if kind is lightningdit:
            assert np.array_equal(latents.mirrored[0], -moments(number)[0])


def broken(place, how):
    """Make a place with something wrong in it; returns what the message must say."""
    if how == "an empty class":
        folder(place)
        (place / "train" / "n09999999").mkdir()
        return "no images of n09999999"
    if how == "a hole in the labels":
        hub(place)
        table = pa.table({"image": pa.array([picture(0)]), "label": pa.array([2])})
        for file in (place / "data").iterdir():
            pq.write_table(table, file)
        return "no images of 0, 1"
    if how == "a label below 0":
        pq.write_table(pa.table({"image": pa.array([picture(0)]), "label": pa.array([-1])}), tar := place)
        return f"{tar}: row 0 of row group 0 has the label -1"
    if how == "no column of labels":
        pq.write_table(pa.table({"image": pa.array([picture(0)]), "caption": pa.array(["a"])}), place)
        return "none of the columns label"
    if how == "a torn parquet":
        place.write_bytes(b"PAR1 and no more")
        return "not a Parquet file, or truncated"
    if how == "a torn tar":
        tar = imagenet_tar(place)
        tar.write_bytes(tar.read_bytes()[:5000])
        return "not a tar, compressed, or truncated"
    if how == "an image without a label":
        place.mkdir()
        write_tar(place / "shard-0.tar", [("0.png", picture(0))])
        return "image 0 has no label"
    if how == "a torn idx":
        idx(place)
        file = place / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:-5])
        return "not an IDX file, or truncated"
    if how == "labels missing":
        dit(place)
        (place / "imagenet256_labels" / "3.npy").unlink()
        return "3.npy: its label is missing"
    if how == "no list of labels":
        repa(place)
        (place / "vae-sd" / "dataset.json").write_text('{"labels": null}')
        return "dataset.json: expected"
    if how == "an empty folder":
        place.mkdir()
        return "not a known kind of source; give a folder of classes"
    return "there is nothing here; give a folder of classes"


@pytest.mark.parametrize(
    "how",
    [
        "an empty class",
        "a hole in the labels",
        "a label below 0",
        "no column of labels",
        "a torn parquet",
        "a torn tar",
        "an image without a label",
        "a torn idx",
        "labels missing",
        "no list of labels",
        "an empty folder",
        "nothing",
    ],
)
def test_a_place_with_something_wrong_is_refused_in_a_line(tmp_path, how):
    place = tmp_path / ("place.parquet" if "label below" in how or "column" in how or "parquet" in how else "place")
    expected = broken(place, how)
    with pytest.raises(UserError) as raised:
        open_source(str(place / "ILSVRC2012_img_train.tar" if how == "a torn tar" else place))
    assert expected in str(raised.value) and "\n" not in str(raised.value)
