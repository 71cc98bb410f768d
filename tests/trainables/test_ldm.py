"""Autoencoders of the latent-diffusion code base: the same network under other names.

The encoder below is written after that code base's description, layer by layer, so that what diffusers builds from its
tensors is compared with something else than itself.
"""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from trainables.datasets.autoencoders import encode, open_autoencoder

LEVELS, BLOCKS, LATENT = (32, 32, 64), 1, 4


def norm(width):
    return nn.GroupNorm(32, width, eps=1e-6)


class ResnetBlock(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.norm1, self.conv1 = norm(inside), nn.Conv2d(inside, outside, 3, padding=1)
        self.norm2, self.conv2 = norm(outside), nn.Conv2d(outside, outside, 3, padding=1)
        if inside != outside:
            self.nin_shortcut = nn.Conv2d(inside, outside, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x):
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.q, self.k, self.v))  # (B, C, T)
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(dim=2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).reshape(x.shape))


class Level(nn.Module):
    def __init__(self, inside, outside, count, attentive):
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(inside if n == 0 else outside, outside) for n in range(count))
        self.attn = nn.ModuleList(AttnBlock(outside) for _ in range(count if attentive else 0))

    def forward(self, x):
        for number, block in enumerate(self.block):
            x = block(x)
            x = self.attn[number](x) if len(self.attn) else x
        return x


def resample(width, stride=1):
    holder = nn.Module()
    holder.conv = nn.Conv2d(width, width, 3, stride=stride, padding=0 if stride == 2 else 1)
    return holder


class Middle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResnetBlock(width, width), AttnBlock(width), ResnetBlock(width, width)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(3, LEVELS[0], 3, padding=1)
        self.down = nn.ModuleList()
        for number, width in enumerate(LEVELS):
            last = number == len(LEVELS) - 1
            level = Level(LEVELS[max(0, number - 1)], width, BLOCKS, attentive=last)
            if not last:
                level.downsample = resample(width, stride=2)
            self.down.append(level)
        self.mid = Middle(LEVELS[-1])
        self.norm_out, self.conv_out = norm(LEVELS[-1]), nn.Conv2d(LEVELS[-1], 2 * LATENT, 3, padding=1)

    def forward(self, x):
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
            if hasattr(level, "downsample"):
                x = level.downsample.conv(F.pad(x, (0, 1, 0, 1)))
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_in = nn.Conv2d(LATENT, LEVELS[-1], 3, padding=1)
        self.mid = Middle(LEVELS[-1])
        self.up = nn.ModuleList()
        for number, width in enumerate(LEVELS):  # stored from the finest to the coarsest, run the other way
            above = LEVELS[min(number + 1, len(LEVELS) - 1)]
            level = Level(above, width, BLOCKS + 1, attentive=number == len(LEVELS) - 1)
            if number:
                level.upsample = resample(width)
            self.up.append(level)
        self.norm_out, self.conv_out = norm(LEVELS[0]), nn.Conv2d(LEVELS[0], 3, 3, padding=1)

    def forward(self, z):
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
            if hasattr(level, "upsample"):
                x = level.upsample.conv(F.interpolate(x, scale_factor=2.0))
        return self.conv_out(F.silu(self.norm_out(x)))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = Encoder(), Decoder()
        self.quant_conv = nn.Conv2d(2 * LATENT, 2 * LATENT, 1)
        self.post_quant_conv = nn.Conv2d(LATENT, LATENT, 1)


@pytest.fixture(scope="module")
def known():
    torch.manual_seed(0)
    return Autoencoder().eval()


def stored(known, path, how):
    state = known.state_dict()
    if how == "safetensors":
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path / "vavae.safetensors")
        return path / "vavae.safetensors"
    inside = {"whole model": "first_stage_model.", "lightning": ""}[how]
    content = {f"{inside}{name}": tensor for name, tensor in state.items()} | {
        "loss.discriminator.weight": torch.ones(3)
    }
    torch.save({"state_dict": content, "epoch": 3}, path / "vavae.pt")
    return path / "vavae.pt"


@pytest.mark.parametrize("how", ["lightning", "whole model", "safetensors"])
@torch.no_grad()
def test_encoding_and_decoding_equal_the_code_base_s_own(known, tmp_path, how):
    autoencoder = open_autoencoder(str(stored(known, tmp_path, how)))
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = encode(autoencoder, images)
    moments = known.quant_conv(known.encoder(images.float() / 127.5 - 1))
    torch.testing.assert_close(mean, moments[:, :LATENT], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(std, (moments[:, LATENT:].clamp(-30, 20) / 2).exp(), rtol=1e-4, atol=1e-5)
    latents = torch.randn(2, LATENT, 8, 8)
    decoded = known.decoder(known.post_quant_conv(latents))
    torch.testing.assert_close(autoencoder.decode(latents).sample, decoded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("content", [b"", b"no zip", {"state_dict": {"encoder.conv_in.weight": torch.ones(1)}}, {}])
def test_what_is_no_autoencoder_is_refused_in_a_line(tmp_path, content):
    file = tmp_path / "vavae.pt"
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError) as raised:
        open_autoencoder(str(file))
    assert str(file) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("given", ["no/such/name", "{}"])
def test_a_place_without_an_autoencoder_is_refused_in_a_line(tmp_path, given):
    with pytest.raises(ValueError) as raised:
        open_autoencoder(given.format(tmp_path))
    assert given.format(tmp_path) in str(raised.value) and "\n" not in str(raised.value)
