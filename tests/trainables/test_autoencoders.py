import json
from types import SimpleNamespace

import pytest
import torch

from trainables.datasets import catalog
from trainables.datasets.autoencoders import decode, encode, load_autoencoder, normalisation
from trainables.datasets.latent_set import load_images


@pytest.fixture(scope="module")
def autoencoder():
    return load_autoencoder()


@pytest.fixture(scope="module")
def images():
    images, _ = load_images("emoji9", "test")
    return images[:: len(images) // 64][:64]


def test_reconstruction_of_test_images(autoencoder, images):
    mean, std = encode(autoencoder, images)
    assert mean.shape == std.shape == (64, 8, 8, 8)
    assert mean.dtype == std.dtype == torch.float32
    assert (std > 0).all()
    rebuilt = decode(autoencoder, mean * normalisation(autoencoder).scale)
    assert rebuilt.shape == images.shape and rebuilt.dtype == torch.uint8
    errors = (rebuilt.float() - images.float()).square().mean(dim=(1, 2, 3))
    assert (10 * torch.log10(255**2 / errors)).mean() > 24  # dB


def test_batch_size_changes_only_rounding(autoencoder, images):
    mean, std = encode(autoencoder, images[:10], batch_size=10)
    for whole, parts in zip((mean, std), encode(autoencoder, images[:10], batch_size=4), strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    levels = decode(autoencoder, mean).int() - decode(autoencoder, mean, batch_size=3).int()
    assert levels.abs().max() <= 1


def test_the_scaling_factor_comes_from_the_config(autoencoder, images, tmp_path):
    autoencoder.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"scaling_factor": 2 * config["scaling_factor"]}))
    other = load_autoencoder(tmp_path)
    mean, _ = encode(other, images[:2])
    assert torch.equal(mean, encode(autoencoder, images[:2])[0])
    assert torch.equal(decode(other, 2 * mean), decode(autoencoder, mean))


def test_pixels_span_black_to_white(autoencoder):
    white = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    rebuilt = decode(autoencoder, encode(autoencoder, white)[0] * normalisation(autoencoder).scale)
    assert rebuilt.float().mean() > 250


def test_frozen_and_in_evaluation_mode(autoencoder, images):
    assert not autoencoder.training
    assert not any(parameter.requires_grad for parameter in autoencoder.parameters())
    mean, _ = encode(autoencoder, images[:1])
    assert not mean.is_inference()  # autograd may use it


def test_a_missing_folder_is_an_os_error(tmp_path):
    with pytest.raises(OSError):
        load_autoencoder(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("config", "shift", "scale"),
    [
        ({"scaling_factor": 2.0, "shift_factor": 0.1}, 0.1, 2.0),
        ({"scaling_factor": 1.0, "latents_mean": [1.0] * 8, "latents_std": [4.0] * 8}, 1.0, 0.25),  # as VA-VAE
    ],
)
def test_latents_are_normalised_as_the_config_says(config, shift, scale, autoencoder, images, tmp_path):
    source = catalog.files("emoji9")[1]
    written = json.loads((source / "config.json").read_text()) | config
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / catalog.AUTOENCODER_FILES[1]).write_bytes((source / catalog.AUTOENCODER_FILES[1]).read_bytes())
    other = load_autoencoder(tmp_path)
    mean, _ = encode(other, images[:2])
    normalised = normalisation(other).apply(mean)
    torch.testing.assert_close(normalised, (mean - shift) * scale)
    levels = decode(other, normalised).int() - decode(autoencoder, normalisation(autoencoder).apply(mean)).int()
    assert levels.abs().max() <= 1


def test_two_kinds_of_shift_are_refused():
    config = {"latents_mean": [1.0], "latents_std": [1.0], "shift_factor": 0.1, "scaling_factor": 1.0}
    with pytest.raises(ValueError, match="remove one of them"):
        normalisation(SimpleNamespace(config=config))
