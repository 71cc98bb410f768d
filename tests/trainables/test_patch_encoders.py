"""Frozen encoders: their tokens are those of the network behind them, and what is missing is named."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainables.encoders import effnet, patch_encoders
from trainables.encoders.patch_encoders import IMAGENET_MEAN, IMAGENET_STD


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# --- effnet_lite0 -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite_pytorch")
    return patch_encoders.create("effnet_lite0", grid=5)


def test_effnet_gives_the_last_map_at_stride_16(lite, images):
    tokens = lite(images)
    assert tokens.shape == (3, 25, lite.width) == (3, 25, 112) and tokens.dtype == torch.float32
    maps = {}
    network = effnet.load(80)
    for number, block in enumerate(network._blocks):
        block.register_forward_hook(lambda _, inputs, output, number=number: maps.update({number: output}))
    network.extract_features(effnet.pixels(images, 80))
    last = max(number for number, of_block in maps.items() if of_block.shape[-1] == 5)
    torch.testing.assert_close(tokens, maps[last].flatten(2).transpose(1, 2))


def test_tokens_stand_rows_first(lite, images):
    changed = images.clone()
    changed[:, :, :8, -8:] = 255 - changed[:, :, :8, -8:]  # the upper right corner
    difference = (lite(changed) - lite(images)).norm(dim=-1)  # (3, 25)
    assert difference.argmax(dim=1).tolist() == [4, 4, 4]


# --- dinov2 -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["", "WithRegisters"])
def tiny(request, tmp_path_factory):
    """A folder with a small DINOv2 of random weights."""
    transformers = pytest.importorskip("transformers")
    config, model = (getattr(transformers, f"Dinov2{request.param}{part}") for part in ("Config", "Model"))
    torch.manual_seed(0)
    network = model(
        config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=14, image_size=70)
    ).eval()
    folder = tmp_path_factory.mktemp("dinov2")
    network.save_pretrained(folder)
    return folder, network


def test_dinov2_gives_the_patch_tokens_after_the_last_norm(tiny, images):
    folder, network = tiny
    encoder = patch_encoders.create("dinov2", grid=4, path=folder)
    tokens = encoder(images)
    assert tokens.shape == (3, 16, encoder.width) == (3, 16, 32) and tokens.dtype == torch.float32
    pixels = torch.nn.functional.interpolate(images.float(), (56, 56), mode="bicubic") / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    with torch.no_grad():
        expected = network(pixel_values=(pixels - mean) / std).last_hidden_state
    torch.testing.assert_close(tokens, expected[:, -16:])


def test_dinov2_is_float32_whatever_the_file_holds(tiny, images, tmp_path):
    _, network = tiny
    network.to(torch.float16).save_pretrained(tmp_path)
    network.float()
    assert patch_encoders.create("dinov2", grid=2, path=tmp_path)(images).dtype == torch.float32


def test_dinov2_needs_its_folder(tiny, tmp_path):
    folder, _ = tiny
    for path in (None, tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="needs the folder of a DINOv2 model"):
            patch_encoders.create("dinov2", grid=4, path=path)
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ValueError, match="holds something else: a vit"):
        patch_encoders.create("dinov2", grid=4, path=tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack layernorm.weight"):
        patch_encoders.create("dinov2", grid=4, path=tmp_path)


# --- both ---------------------------------------------------------------------------------------------------------


def test_an_encoder_is_frozen_and_draws_nothing_from_the_global_generator(lite, tiny):
    state = torch.get_rng_state()
    for encoder in (
        patch_encoders.create("effnet_lite0", grid=2),
        patch_encoders.create("dinov2", grid=2, path=tiny[0]),
    ):
        assert not any(module.training for module in encoder.modules())
        assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_an_unknown_encoder_is_refused():
    with pytest.raises(ValueError, match="no encoder 'clip'; known: effnet_lite0, dinov2"):
        patch_encoders.create("clip", grid=4)


def test_a_missing_package_names_the_remedy():
    program = """
import sys
sys.modules["transformers"] = sys.modules["efficientnet_lite_pytorch"] = None
from trainables.encoders import patch_encoders
for kind in ("effnet_lite0", "dinov2"):
    try:
        patch_encoders.create(kind, grid=4)
    except ImportError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    laptop, repa = done.stdout.splitlines()
    assert "pip install 'raysweep[laptop]'" in laptop and "pip install 'raysweep[repa]'" in repa
