from concurrent.futures import ThreadPoolExecutor

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from trainables.datasets import cached, catalog
from trainables.datasets.autoencoders import Normalisation, encode, load_autoencoder
from trainables.datasets.latent_files import Held
from trainables.datasets.latent_set import LatentSet, load_images, load_latents


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def latents(cache):
    return load_latents("emoji9", cache)


def test_no_codepoint_is_on_both_sides():
    table = pq.read_table(catalog.files("emoji9")[0], columns=["codepoint", "artwork"]).to_pydict()
    drawings = {"train": [], "test": []}
    for codepoint in table["codepoint"]:
        drawings[catalog.split_of(codepoint)].append(codepoint)
    train, test = set(drawings["train"]), set(drawings["test"])
    assert not train & test
    assert 0.08 < len(test) / len(train | test) < 0.13
    # Both artworks of a codepoint are there, on the same side.
    assert (len(drawings["train"]), len(drawings["test"])) == (2 * len(train), 2 * len(test))


@pytest.mark.parametrize(("split", "count"), [("train", 3380), ("test", 432)])
def test_images_and_labels_of_a_split(split, count):
    images, labels = load_images("emoji9", split)
    assert images.shape == (count, 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
    assert labels.shape == (count,) and labels.dtype == torch.int64
    assert labels.unique().tolist() == list(range(9))
    # Pictograms on white: the corner is nearly always empty.
    assert (images[:, :, 0, 0] > 250).all(dim=1).float().mean() > 0.8


def test_labels_are_the_catalog_s_classes():
    table = pq.read_table(catalog.files("emoji9")[0], columns=["label", "category"]).to_pydict()
    names = dict(zip(table["label"], table["category"], strict=True))
    assert tuple(names[label] for label in range(9)) == catalog.DATASETS["emoji9"].class_names


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no split 'val'; known: train, test"):
        load_images("emoji9", "val")
    for load in (lambda: load_images("imagenet256", "train"), lambda: load_latents("imagenet256", tmp_path)):
        with pytest.raises(LookupError, match="imagenet256"):
            load()
    assert not list(tmp_path.iterdir())


def test_latents_of_the_training_split(latents):
    known = catalog.DATASETS["emoji9"]
    everyone, shape = torch.arange(known.num_images), (known.num_images, *known.latent_shape)
    assert (latents.num_images, latents.latent_shape, latents.num_classes) == (shape[0], shape[1:], 9)
    assert torch.equal(latents.labels(everyone), load_images("emoji9", "train")[1])
    everything = latents.sample(everyone, torch.randn(shape))
    assert everything.dtype == torch.float32
    assert everything.std() == pytest.approx(1, abs=0.05)  # what the scaling factor is for


def test_latents_are_read_back_bit_for_bit(latents, cache):
    assert [path.name for path in cache.iterdir()] == [f"{catalog.identity('emoji9')}.safetensors"]
    again = load_latents("emoji9", cache)
    for column in ("latent", "label"):
        assert torch.equal(latents.columns.columns[column], again.columns.columns[column])
    assert latents.normalisation == again.normalisation and latents.num_classes == again.num_classes


@pytest.mark.parametrize("damage", ["torn", "altered", "empty", "foreign", "unsigned"])
def test_a_damaged_cache_is_noticed(latents, cache, tmp_path, damage):
    whole = next(cache.iterdir()).read_bytes()
    flipped = whole[:-1000] + bytes([whole[-1000] ^ 1]) + whole[-999:]
    path = tmp_path / "cached.safetensors"
    unsigned = save({"mean": torch.zeros(3)})
    files = {"torn": whole[:-1], "altered": flipped, "empty": b"", "foreign": b"latents" * 9, "unsigned": unsigned}
    path.write_bytes(files[damage])
    assert cached.read(path) is None


def test_a_damaged_cache_is_made_anew(latents, cache, tmp_path):
    (source,) = cache.iterdir()
    damaged = tmp_path / source.name
    damaged.write_bytes(source.read_bytes()[:-1])
    again = load_latents("emoji9", tmp_path)
    assert torch.equal(again.columns.columns["latent"], latents.columns.columns["latent"])
    assert damaged.read_bytes() == source.read_bytes()
    assert list(tmp_path.iterdir()) == [damaged]


def test_racing_writers_never_show_a_torn_file(tmp_path):
    path = tmp_path / "new folder" / "cached.safetensors"
    sets = [{"mean": torch.full((200, 100), float(writer))} for writer in range(4)]
    with ThreadPoolExecutor(4) as pool:
        writing = [pool.submit(cached.write, sets[n % 4], path) for n in range(40)]
        while not all(writer.done() for writer in writing):
            written = path.exists()
            assert cached.read(path) is not None or not written
        for writer in writing:
            writer.result()
    assert list(path.parent.iterdir()) == [path]


def held(mean, std, normalisation):
    columns = Held({"latent": torch.stack([mean, std], dim=1), "label": torch.zeros(len(mean))})
    return LatentSet(columns, len(mean), tuple(mean.shape[1:]), num_classes=1, normalisation=normalisation)


def test_sample_is_the_scaled_posterior():
    mean, std = torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1, 1), torch.tensor([0.5, 0.25, 0.125]).reshape(3, 1, 1, 1)
    scale = Normalisation(torch.tensor(0.0), torch.tensor(10.0))
    latents = held(mean, std, scale)
    drawn = latents.sample(torch.tensor([2, 0]), torch.tensor([8.0, -2.0]).reshape(2, 1, 1, 1))
    assert drawn.flatten().tolist() == [40.0, 0.0]


def test_a_channel_has_its_own_statistics():
    mean, std = torch.tensor([3.0, 5.0]).reshape(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    shift, scale = torch.tensor([1.0, 1.0]).reshape(2, 1, 1), torch.tensor([0.5, 2.0]).reshape(2, 1, 1)
    latents = held(mean, std, Normalisation(shift, scale))
    drawn = latents.sample(torch.tensor([0]), torch.zeros(1, 2, 1, 1))
    assert drawn.flatten().tolist() == [1.0, 8.0]
    assert latents.normalisation.undo(drawn).flatten().tolist() == [3.0, 5.0]


def test_mirrored_images_have_the_latents_of_mirror_images(cache):
    data = load_latents("emoji9", cache, mirrored=True, images=True)
    indices, mirror = torch.tensor([5, 5]), torch.tensor([False, True])
    pictures = data.images(indices, mirror)
    assert torch.equal(pictures[1], pictures[0].flip(-1)) and not torch.equal(pictures[0], pictures[1])
    drawn = data.sample(indices, torch.zeros(2, 8, 8, 8), mirror)
    mean, _ = encode(load_autoencoder(), pictures)
    torch.testing.assert_close(drawn, data.normalisation.apply(mean), rtol=1e-3, atol=1e-3)
    assert load_latents("emoji9", cache).images(indices) is None
