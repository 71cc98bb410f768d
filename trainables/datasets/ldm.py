"""Autoencoders of the latent-diffusion code base, such as VA-VAE, as diffusers' AutoencoderKL.

Their checkpoints (`AutoencoderKL` of CompVis/latent-diffusion `ldm/models/autoencoder.py`; LightningDiT
`tokenizer/autoencoder.py`) hold the same network under other names. Its sizes follow from the tensors.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from trainables import torchvision_guard  # noqa: F401  before diffusers, which imports torchvision
from trainables.errors import one_line

ENDINGS = (".pt", ".pth", ".ckpt", ".safetensors")
_RESNET = {"nin_shortcut": "conv_shortcut"}
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_NO_LEVELS = {
    "conv_in": "conv_in",
    "conv_out": "conv_out",
    "norm_out": "conv_norm_out",
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}


def load(file: Path) -> Any:
    """The AutoencoderKL in a checkpoint file. No code in the file runs.

    Raises:
        ValueError: the file cannot be read, or holds something else.
    """
    state = {name: tensor for name, tensor in _read(file).items() if name.split(".")[0] in _PARTS}
    try:
        config = _config(state)
        autoencoder = diffusers.AutoencoderKL(**config)
        renamed = {}
        for name, tensor in state.items():
            name = _renamed(name, len(config["block_out_channels"]))
            # Attention layers are 1 x 1 convolutions in the checkpoint and matrices in diffusers.
            attention = ".attentions." in name and tensor.dim() == 4
            renamed[name] = tensor[:, :, 0, 0] if attention else tensor
        autoencoder.load_state_dict(renamed)
    except (KeyError, IndexError, ValueError, RuntimeError) as error:
        raise ValueError(f"{file}: no autoencoder of the latent-diffusion code base ({one_line(error)})") from None
    return autoencoder


_PARTS = ("encoder", "decoder", "quant_conv", "post_quant_conv")


def _read(file: Path) -> dict[str, Tensor]:
    try:
        content: Any = (
            load_file(file)
            if file.suffix == ".safetensors"
            else torch.load(file, map_location="cpu", weights_only=True)
        )
    except (SafetensorError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file}: cannot be read, perhaps truncated ({one_line(error)})") from None
    content = content.get("state_dict", content)
    prefix = "first_stage_model."  # in the checkpoint of a whole latent-diffusion model
    if any(name.startswith(prefix) for name in content):
        content = {name.removeprefix(prefix): tensor for name, tensor in content.items()}
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def _config(state: dict[str, Tensor]) -> dict[str, Any]:
    """The configuration of the AutoencoderKL with these tensors."""
    levels = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.down\.(\d+)\.", name)))
    blocks = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.down\.0\.block\.(\d+)\.", name)))
    attentive = [any(name.startswith(f"encoder.down.{level}.attn.") for name in state) for level in range(levels)]
    return {
        "in_channels": state["encoder.conv_in.weight"].shape[1],
        "out_channels": state["decoder.conv_out.weight"].shape[0],
        "latent_channels": state["post_quant_conv.weight"].shape[1],
        "block_out_channels": tuple(
            len(state[f"encoder.down.{level}.block.{blocks - 1}.conv2.bias"]) for level in range(levels)
        ),
        "layers_per_block": blocks,
        "down_block_types": tuple("AttnDownEncoderBlock2D" if has else "DownEncoderBlock2D" for has in attentive),
        "up_block_types": tuple("AttnUpDecoderBlock2D" if has else "UpDecoderBlock2D" for has in attentive[::-1]),
        "scaling_factor": 1.0,
    }


def _renamed(name: str, levels: int) -> str:
    """The name in diffusers of a tensor with this name in latent-diffusion."""
    part, _, rest = name.partition(".")
    if part not in ("encoder", "decoder"):
        return name
    for old, new in _NO_LEVELS.items():
        if rest.startswith(f"{old}."):
            return f"{part}.{new}.{_inner(rest.removeprefix(f'{old}.'), new)}"
    match = re.fullmatch(r"(down|up)\.(\d+)\.(block|attn|downsample|upsample)\.(.+)", rest)
    if match is None:
        raise KeyError(name)
    way, level, kind, rest = match[1], int(match[2]), match[3], match[4]
    level = level if way == "down" else levels - 1 - level
    if kind in ("downsample", "upsample"):
        return f"{part}.{way}_blocks.{level}.{kind}rs.0.{rest}"
    number, _, rest = rest.partition(".")
    group = "resnets" if kind == "block" else "attentions"
    return f"{part}.{way}_blocks.{level}.{group}.{number}.{_inner(rest, group)}"


def _inner(rest: str, group: str) -> str:
    names = _ATTENTION if "attentions" in group else _RESNET
    first, dot, last = rest.partition(".")
    return f"{names.get(first, first)}{dot}{last}"
