import dataclasses
import shutil
import subprocess
import sys

import pytest

from trainables.datasets import catalog
from trainables.datasets.catalog import DATASETS


def test_importing_the_catalog_does_not_import_torch():
    program = "import sys, trainables.datasets.catalog; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_names_and_shapes():
    shapes = {name: (known.num_classes, known.latent_shape, known.embedded) for name, known in DATASETS.items()}
    assert shapes == {
        "emoji9": (9, (8, 8, 8), True),
        "imagenet256": (1000, (4, 32, 32), False),
        "imagenet256_vavae": (1000, (32, 16, 16), False),
        "imagenet512": (1000, (4, 64, 64), False),
    }
    assert len(DATASETS["emoji9"].class_names) == 9
    with pytest.raises(dataclasses.FrozenInstanceError):
        DATASETS["emoji9"].num_classes = 10  # type: ignore[misc]


def test_the_identity_of_emoji9_is_fixed():
    # It is part of every history on this data: where it moves, all checkpoints are trained again.
    assert catalog.identity("emoji9") == "aaed54966ebb1830d7132da1e9015d67bf08f57f1e3765a9f8016a11a9576935"


def test_identity_follows_content_not_place(tmp_path):
    image_file, autoencoder = catalog.files("emoji9")
    identities = {catalog.identity("emoji9")}
    for altered in (None, "images", *catalog.AUTOENCODER_FILES):
        images = shutil.copy(image_file, tmp_path / f"{altered}.parquet")
        folder = shutil.copytree(autoencoder, tmp_path / f"{altered}.d")
        if altered:
            path = images if altered == "images" else folder / altered
            path.write_bytes(path.read_bytes()[:-1] + b"!")
        identities.add(catalog.content_identity(images, folder))
    assert len(identities) == 4


@pytest.mark.parametrize("name", ["imagenet256", "imagenet512", "emoji10"])
def test_a_set_that_is_not_shipped_has_no_identity(name):
    with pytest.raises(LookupError, match=f"'{name}'") as raised:
        catalog.identity(name)
    assert "emoji9" in str(raised.value) and "\n" not in str(raised.value)


def test_the_split_keeps_its_sides():
    sides = {codepoint: catalog.split_of(codepoint) for codepoint in ("1F600", "1F1E9-1F1EA", "2764-FE0F")}
    assert sides == {"1F600": "train", "1F1E9-1F1EA": "train", "2764-FE0F": "test"}
