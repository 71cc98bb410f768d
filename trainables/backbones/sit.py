"""SiT, the scalable interpolant transformer, in REPA's form (REPA models/sit.py, after SiT models.py).

Knows neither method nor sampler: it maps (x_t, t, y) to a velocity and lends out hidden states on request.
Labels arrive already dropped; the null class is the last row of the label table.

Shapes: B batch, C latent channels, H W latent grid, p patch, T = (H/p)(W/p) tokens, D width, M heads.
Blocks count from 1 outside and are read after the block; the state dict keeps the ecosystem's names, from 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIME_FEATURES = 256


class BackboneOutput(NamedTuple):
    """What a backbone returns: velocity (B, C, H, W), and the asked blocks' states {block: (B, T, D)}."""

    velocity: Tensor
    hidden: dict[int, Tensor]


# --- embedders ---------------------------------------------------------------------------------------------------


def sincos_positions(width: int, grid: int) -> Tensor:
    """(1, grid * grid, width) float32: half of the width for the column, half for the row, sines before cosines."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D/4,)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (H/p, D/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (H/p, D/2)
    columns = axis[None, :].expand(grid, grid, -1)  # (H/p, W/p, D/2)
    rows = axis[:, None].expand(grid, grid, -1)  # (H/p, W/p, D/2)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()


def time_features(t: Tensor) -> Tensor:
    """(B,) -> (B, 256): cosines, then sines, of t itself, in [0, 1], at 128 frequencies from 1 down to 1/10000."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / half  # (128,)
    angles = t[:, None] * torch.exp(-math.log(10000) * exponents)  # (B, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, 256)


class PatchEmbedder(nn.Module):
    """One token for each p x p patch, rows first."""

    def __init__(self, in_channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, D, T) -> (B, T, D)


class TimeEmbedder(nn.Module):
    """Time to a vector of width D. `reversed_clock`: its weights know t=0 as noise."""

    def __init__(self, width: int, reversed_clock: bool):
        super().__init__()
        self.reversed_clock = reversed_clock
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(1 - t if self.reversed_clock else t))  # (B,) -> (B, 256) -> (B, D)


class LabelEmbedder(nn.Module):
    """A row for each class and one, the last, for none."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)  # (B,) -> (B, D)


# --- transformer -------------------------------------------------------------------------------------------------


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, T, D) scaled and shifted for each image: shift and scale are (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]  # (B, T, D)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, width: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 of (B, M, T, D/M)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, M, T, D/M)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, T, D)


class Mlp(nn.Module):
    """Two layers with GELU in its tanh form."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))  # (B, T, D) -> (B, T, 4D) -> (B, T, D)


class Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition (adaLN-zero, DiT, arXiv 2212.09748)."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.attn = Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.adaLN_modulation(c).chunk(6, dim=1)  # 6 of (B, D)
        x = x + gate_a[:, None] * self.attn(modulate(self.norm1(x), shift_a, scale_a))  # (B, T, D)
        return x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m))  # (B, T, D)


class FinalLayer(nn.Module):
    """From a token to its patch of the velocity."""

    def __init__(self, width: int, patch_values: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # 2 of (B, D)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, T, p*p*C)


class SiT(nn.Module):
    """The velocity at (x_t, t, y) on the clock t=0 data, t=1 noise.

    Weights are torch's defaults until `init_weights` or `load_state_dict`: `trainables.backbones` makes ready ones.

    Args:
        input_size: H = W, in latent cells.
        reversed_clock: the weights were trained with t=0 as noise. Set where a reference's weights are loaded.

    Raises:
        ValueError: sizes that do not divide.
    """

    pos_embed: Tensor

    def __init__(
        self,
        *,
        input_size: int = 32,
        patch_size: int = 2,
        in_channels: int = 4,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        reversed_clock: bool = False,
    ):
        super().__init__()
        if input_size % patch_size:
            raise ValueError(f"input_size {input_size} is not a multiple of patch_size {patch_size}")
        if hidden_size % num_heads or hidden_size % 4:
            raise ValueError(f"hidden_size {hidden_size} must be a multiple of num_heads {num_heads} and of 4")
        self.depth, self.width = depth, hidden_size
        self.patch_size, self.in_channels, self.num_classes = patch_size, in_channels, num_classes
        self.grid = input_size // patch_size
        self.num_tokens = self.grid**2
        self.x_embedder = PatchEmbedder(in_channels, hidden_size, patch_size)
        self.t_embedder = TimeEmbedder(hidden_size, reversed_clock)
        self.y_embedder = LabelEmbedder(num_classes, hidden_size)
        self.register_buffer("pos_embed", sincos_positions(hidden_size, self.grid))  # (1, T, D)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * in_channels)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite every parameter and the positions; all draws come from `generator`, in the parameters' order.

        Zero outputs of adaLN and of the final layer make every block the identity, and the velocity zero, at the start.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:  # the patch convolution counts as the linear layer that it is
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
        self.pos_embed.copy_(sincos_positions(self.width, self.grid))

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, taps: Collection[int] = ()) -> BackboneOutput:
        """Velocity and the hidden states after the blocks in `taps`, those and no others.

        Args:
            x_t: (B, C, H, W).
            t: (B,) in [0, 1], floating.
            y: (B,) int64 classes; `num_classes` is none.
            taps: blocks, counted from 1.

        Raises:
            ValueError: a tap that is no block.
        """
        self._check_blocks(taps)
        hidden: dict[int, Tensor] = {}
        x, c = self._embed(x_t, t, y)  # (B, T, D), (B, D)
        for number, block in enumerate(self.blocks, start=1):
            x = block(x, c)  # (B, T, D)
            if number in taps:
                hidden[number] = x
        velocity = self._unpatchify(self.final_layer(x, c))  # (B, T, p*p*C) -> (B, C, H, W)
        return BackboneOutput(velocity, hidden)

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, block: int) -> Tensor:
        """The state (B, T, D) after `block`, at the cost of that many blocks: nothing behind it is computed.

        Raises:
            ValueError: no such block.
        """
        self._check_blocks((block,))
        x, c = self._embed(x_t, t, y)  # (B, T, D), (B, D)
        for layer in islice(self.blocks, block):
            x = layer(x, c)  # (B, T, D)
        return x

    def _embed(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.x_embedder(x_t) + self.pos_embed  # (B, T, D)
        condition = self.t_embedder(t) + self.y_embedder(y)  # (B, D)
        return tokens, condition

    def _unpatchify(self, x: Tensor) -> Tensor:
        size = self.grid * self.patch_size
        x = x.reshape(-1, self.grid, self.grid, self.patch_size, self.patch_size, self.in_channels)  # (B,H/p,W/p,p,p,C)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, size, size)  # (B, C, H, W)

    def _check_blocks(self, blocks: Collection[int]) -> None:
        for block in blocks:
            if not 1 <= block <= self.depth:
                raise ValueError(f"no block {block}: there are {self.depth}, counted from 1")
