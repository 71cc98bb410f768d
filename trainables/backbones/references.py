"""Weights of reference repositories, converted to ours: their source, their configuration, their clock."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainables.backbones.base import Backbone
from trainables.backbones.lightningdit import LightningDiT
from trainables.backbones.sit import SiT
from trainables.config import BACKBONES


class Reference(NamedTuple):
    """How the weights of a repository are converted."""

    model: type[SiT] | type[LightningDiT]
    reversed_clock: bool = False  # in the repository t=0 is noise and velocity = latents - noise
    unused: tuple[str, ...] = ()  # prefixes of tensors that are left out


REFERENCES = {
    "repa": Reference(SiT, unused=("projectors.",)),  # sihyun-yu/REPA models/sit.py
    "sit": Reference(SiT, reversed_clock=True),  # willisma/SiT models.py
    "lightningdit": Reference(LightningDiT, reversed_clock=True),  # hustvl/LightningDiT models/lightningdit.py
    "sra": Reference(SiT, unused=("ap_head.",)),  # vvvvvjdy/SRA SiT-SRA/models/sit.py, on REPA's clock
    "layersync": Reference(SiT, reversed_clock=True),  # vita-epfl/LayerSync models.py
}

# Arguments of the repositories' constructors that are ignored: they follow from the tensors, or do not matter here.
_IGNORED = frozenset(
    "class_dropout_prob decoder_hidden_size encoder_depth fused_attn gt_encoder_depth learn_sigma path_type "
    "projector_dim qk_norm use_cfg use_checkpoint z_dims".split()
)
_WRAPPERS = re.compile(r"^(module\.|_orig_mod\.)+")  # DistributedDataParallel's and torch.compile's


def from_reference(state_dict: Mapping[str, Tensor], source: str, **config: Any) -> Backbone:
    """A backbone with a reference's weights, on the CPU and on our clock. If the reference's clock is reversed,
    v(x, t) = -v_reference(x, 1 - t).

    Args:
        state_dict: prefixes of DistributedDataParallel and torch.compile are removed.
        source: which repository's model the weights belong to, a key of `REFERENCES`.
        config: arguments of the model, which override those read from the tensors (`reference_config`). Arguments of
            the repositories' constructors that do not matter here, such as `learn_sigma`, are ignored.

    Raises:
        ValueError: there is no such source or argument, or the configuration cannot be read from the tensors.
        RuntimeError: the weights do not fit the model; the message names the tensors.
    """
    if source not in REFERENCES:
        raise ValueError(f"no reference '{source}'; known: {', '.join(REFERENCES)}")
    reference = REFERENCES[source]
    arguments = set(signature(reference.model).parameters) - {"reversed_clock"}
    if unknown := sorted(set(config) - arguments - _IGNORED):
        raise ValueError(f"{reference.model.__name__} has no argument {', '.join(unknown)}")
    state = _unwrapped(state_dict)
    shape = _shape(state, config.get("num_heads")) | (_switches(state) if reference.model is LightningDiT else {})
    given = {key: value for key, value in config.items() if key in arguments}
    with torch.device("meta"):
        empty = reference.model(**shape | given, reversed_clock=reference.reversed_clock)
    model = empty.to_empty(device="cpu")
    model.load_state_dict(
        {
            name: _velocity_rows(tensor, model, reference) if name.startswith("final_layer.linear.") else tensor
            for name, tensor in state.items()
            if not name.startswith(reference.unused)
        }
    )
    return model


def reference_config(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Any]:
    """The model's arguments, read from its tensors, with the switches of a LightningDiT.

    Args:
        num_heads: needed if the tensors have neither a rotary table nor normalised queries, and no named backbone has
            the same depth and width.

    Raises:
        ValueError: this is no backbone's state dict, or the number of heads is needed.
    """
    state = _unwrapped(state_dict)
    return _shape(state, num_heads) | (_switches(state) if _is_lightningdit(state) else {})


def guess_source(state_dict: Mapping[str, Tensor]) -> str | None:
    """The source of weights, a key of `REFERENCES`, or None if the tensors leave it open.

    A SiT with twice the output channels may be LayerSync's or the official one; both are read as "sit". For a SiT with
    the plain output channels the clock is unknown, so the result is None.
    """
    state = _unwrapped(state_dict)
    if any(name.startswith("ap_head.") for name in state):
        return "sra"
    if any(name.startswith("projectors.") for name in state):
        return "repa"
    if _is_lightningdit(state):
        return "lightningdit"
    patch, output = state.get("x_embedder.proj.weight"), state.get("final_layer.linear.weight")
    if patch is not None and output is not None and len(output) == 2 * patch[0].numel():
        return "sit"
    return None


def _unwrapped(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_WRAPPERS.sub("", name): tensor for name, tensor in state_dict.items()}


def _is_lightningdit(state: Mapping[str, Tensor]) -> bool:
    """Whether the state dict has a part that no SiT has."""
    parts = ("blocks.0.mlp.w12.weight", "blocks.0.norm1.weight", "feat_rope.freqs_cos")
    return any(part in state for part in parts) or _without_shift(state)


def _without_shift(state: Mapping[str, Tensor]) -> bool:
    adaln = state.get("blocks.0.adaLN_modulation.1.weight")  # (6D, D), or (4D, D)
    return adaln is not None and len(adaln) == 4 * adaln.shape[1]


def _shape(state: Mapping[str, Tensor], num_heads: int | None) -> dict[str, Any]:
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        depth = len({name.split(".")[1] for name in state if name.startswith("blocks.")})
        return {
            "input_size": math.isqrt(state["pos_embed"].shape[1]) * patch,
            "patch_size": patch,
            "in_channels": channels,
            "hidden_size": width,
            "depth": depth,
            "num_heads": num_heads or _num_heads(state, depth, width),
            "mlp_ratio": _mlp_ratio(state, width),
            "num_classes": len(state["y_embedder.embedding_table.weight"]) - 1,  # the last row is the null class
        }
    except KeyError as missing:
        raise ValueError(f"not a backbone's state dict: it has no {missing.args[0]}") from None


def _switches(state: Mapping[str, Tensor]) -> dict[str, bool]:
    return {
        "use_qknorm": "blocks.0.attn.q_norm.weight" in state,
        "use_swiglu": "blocks.0.mlp.w12.weight" in state,
        "use_rope": "feat_rope.freqs_cos" in state,
        "use_rmsnorm": "blocks.0.norm1.weight" in state,
        "wo_shift": _without_shift(state),
    }


def _num_heads(state: Mapping[str, Tensor], depth: int, width: int) -> int:
    for name in ("blocks.0.attn.q_norm.weight", "feat_rope.freqs_cos"):
        if name in state:
            return width // state[name].shape[-1]
    for size in BACKBONES.values():
        if (size.depth, size.width) == (depth, width):
            return size.heads
    raise ValueError(
        f"num_heads cannot be read from the tensors, and no known backbone has {depth} blocks of width {width}"
    )


def _mlp_ratio(state: Mapping[str, Tensor], width: int) -> float:
    """The smallest ratio that gives the MLP its hidden width."""
    if "blocks.0.mlp.w3.weight" in state:
        hidden = math.ceil(state["blocks.0.mlp.w3.weight"].shape[1] * 3 / 2)  # the inverse of `swiglu_hidden`
    else:
        hidden = len(state["blocks.0.mlp.fc1.weight"])
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)  # the quotient may round down


def _velocity_rows(output: Tensor, model: Backbone, reference: Reference) -> Tensor:
    """Weight or bias (p*p*C or p*p*2C, ...) of a reference's last layer -> (p*p*C, ...) for our velocity.

    With learn_sigma, C unused channels follow the velocity's at every position in the patch. The sign of the velocity
    is changed in the weights, which is exact; the time is reversed by the time embedder (`reversed_clock`).
    """
    positions = model.patch_size**2
    if len(output) == positions * 2 * model.in_channels:
        output = output.unflatten(0, (positions, -1))[:, : model.in_channels].flatten(0, 1)
    return -output if reference.reversed_clock else output
