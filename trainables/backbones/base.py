"""What the backbones share: embedders, the position table, the forward pass, initial weights.

A backbone maps (x_t, t, y) to a velocity and returns hidden states on request. It knows neither methods nor samplers.
Labels are dropped before they reach the backbone; the null class is the last row of the label table.

Shapes: B batch, C latent channels, H W latent grid, p patch, T = (H/p)(W/p) tokens, D width, M heads.
Block k, counted from 1, means the state after it. The state dict keeps the usual names, which count from 0.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from itertools import islice
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

TIME_FEATURES = 256


class BackboneOutput(NamedTuple):
    """The velocity (B, C, H, W), and the states {block: (B, T, D)} of the requested blocks."""

    velocity: Tensor
    hidden: dict[int, Tensor]


# --- embedders ---------------------------------------------------------------------------------------------------


def sincos_positions(width: int, grid: int) -> Tensor:
    """Table (1, grid * grid, width) float32: half of the width for the column, half for the row, sines before
    cosines."""
    frequencies = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))  # (D/4,)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (H/p, D/4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (H/p, D/2)
    columns = axis[None, :].expand(grid, grid, -1)  # (H/p, W/p, D/2)
    rows = axis[:, None].expand(grid, grid, -1)  # (H/p, W/p, D/2)
    return torch.cat([columns, rows], dim=-1).reshape(1, grid * grid, width).float()


def time_features(t: Tensor) -> Tensor:
    """Times (B,) in [0, 1] -> (B, 256): cosines, then sines, of t at 128 frequencies from 1 down to 1/10000."""
    half = TIME_FEATURES // 2
    exponents = torch.arange(half, dtype=t.dtype, device=t.device) / half  # (128,)
    angles = t[:, None] * torch.exp(-math.log(10000) * exponents)  # (B, 128)
    return torch.cat([angles.cos(), angles.sin()], dim=1)  # (B, 256)


class PatchEmbedder(nn.Module):
    """One token per p x p patch, rows first."""

    def __init__(self, in_channels: int, width: int, patch_size: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, width, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, D, T) -> (B, T, D)


class TimeEmbedder(nn.Module):
    """Times to vectors of width D. `reversed_clock`: the weights were trained with t=0 as noise."""

    def __init__(self, width: int, reversed_clock: bool):
        super().__init__()
        self.reversed_clock = reversed_clock
        self.mlp = nn.Sequential(nn.Linear(TIME_FEATURES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(time_features(1 - t if self.reversed_clock else t))  # (B,) -> (B, 256) -> (B, D)


class LabelEmbedder(nn.Module):
    """A table with a row per class and a last row for the null class."""

    def __init__(self, num_classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)  # (B,) -> (B, D)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Scale and shift x (B, T, D) per image by scale and shift (B, D)."""
    return x * (1 + scale[:, None]) + shift[:, None]  # (B, T, D)


# --- forward pass ------------------------------------------------------------------------------------------------


class Backbone(nn.Module):
    """The velocity at (x_t, t, y), with t=0 data and t=1 noise. A subclass adds `blocks` and `final_layer`.

    Weights are torch's defaults until `init_weights` or `load_state_dict` is called. `trainables.backbones.create`
    calls `init_weights`.

    Args:
        input_size: height and width of a latent, H = W.
        reversed_clock: whether the weights were trained with t=0 as noise, as in some reference repositories.

    Raises:
        ValueError: sizes do not divide.
    """

    pos_embed: Tensor
    blocks: nn.ModuleList
    final_layer: nn.Module
    checkpoint_blocks: bool = False  # in training, recompute each block in the backward pass: less memory, more time

    def __init__(
        self,
        *,
        input_size: int,
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        num_classes: int,
        reversed_clock: bool,
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

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator) -> None:
        """Overwrite all parameters and tables, drawing from `generator` in the order of the parameters.

        The output layers of adaLN and the final layer are zero, so at the start blocks are the identity and the
        velocity is zero.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("weight") and parameter.dim() == 1:  # of a norm
                nn.init.ones_(parameter)
            elif name.endswith("bias") or "adaLN_modulation" in name or name.startswith("final_layer"):
                nn.init.zeros_(parameter)
            elif name.startswith(("t_embedder", "y_embedder")):
                nn.init.normal_(parameter, std=0.02, generator=generator)
            else:  # the patch convolution too, as a linear layer
                nn.init.xavier_uniform_(parameter.flatten(1), generator=generator)
        self._write_tables()

    def forward(self, x_t: Tensor, t: Tensor, y: Tensor, taps: Collection[int] = ()) -> BackboneOutput:
        """The velocity, and the hidden states after the blocks in `taps`.

        Args:
            x_t: (B, C, H, W).
            t: (B,) in [0, 1], floating.
            y: (B,) int64 classes; `num_classes` is the null class.
            taps: numbers of blocks, counted from 1.

        Raises:
            ValueError: there is no such block.
        """
        self._check_blocks(taps)
        hidden: dict[int, Tensor] = {}
        x, c = self._embed(x_t, t, y)  # (B, T, D), (B, D)
        for number, block in enumerate(self.blocks, start=1):
            x = self._through(block, x, c)  # (B, T, D)
            if number in taps:
                hidden[number] = x
        velocity = self._unpatchify(self.final_layer(x, c))  # (B, T, p*p*C) -> (B, C, H, W)
        return BackboneOutput(velocity, hidden)

    def features(self, x_t: Tensor, t: Tensor, y: Tensor, block: int) -> Tensor:
        """The state (B, T, D) after `block`. Later blocks are not computed.

        Raises:
            ValueError: there is no such block.
        """
        return self.states(x_t, t, y, (block,))[block]

    def states(self, x_t: Tensor, t: Tensor, y: Tensor, blocks: Collection[int]) -> dict[int, Tensor]:
        """The states {block: (kB, T, D)} after `blocks`, for k labels per image. Later blocks are not computed.

        Args:
            x_t: (B, C, H, W).
            t: (B,).
            y: (kB,): B labels, then B other labels, and so on. What does not depend on labels is computed once.

        Raises:
            ValueError: there is no such block, or no block is given.
        """
        self._check_blocks(blocks)
        hidden: dict[int, Tensor] = {}
        x, c = self._embed(x_t, t, y)  # (kB, T, D), (kB, D)
        for number, block in enumerate(islice(self.blocks, max(blocks)), start=1):
            x = self._through(block, x, c)  # (kB, T, D)
            if number in blocks:
                hidden[number] = x
        return hidden

    def compile_blocks(self) -> None:
        """Compile the blocks with torch.compile. Results differ by rounding. Blocks of one shape share compiled code;
        weights and their names stay the same."""
        # Beyond its default limit torch silently runs uncompiled code, and the same history would get other bits.
        config = torch._dynamo.config
        config.recompile_limit = config.accumulated_recompile_limit = 1024
        for block in self.blocks:
            block.compile(dynamic=False)

    def _block_inputs(self) -> tuple[Any, ...]:
        """Further inputs of every block, besides the tokens and the condition."""
        return ()

    def _write_tables(self) -> None:
        """Fill the buffers, which are empty if the model was made on the meta device."""
        self.pos_embed.copy_(sincos_positions(self.width, self.grid))

    def _through(self, block: nn.Module, x: Tensor, c: Tensor) -> Tensor:
        if self.checkpoint_blocks and self.training and torch.is_grad_enabled():
            # Blocks draw nothing, so there is no generator state to restore.
            return checkpoint(block, x, c, *self._block_inputs(), use_reentrant=False, preserve_rng_state=False)
        return block(x, c, *self._block_inputs())  # (B, T, D)

    def _embed(self, x_t: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        copies = len(y) // len(x_t)
        tokens = self.x_embedder(x_t) + self.pos_embed  # (B, T, D)
        time = self.t_embedder(t)  # (B, D)
        if copies > 1:
            tokens, time = tokens.repeat(copies, 1, 1), time.repeat(copies, 1)
        return tokens, time + self.y_embedder(y)

    def _unpatchify(self, x: Tensor) -> Tensor:
        size = self.grid * self.patch_size
        x = x.reshape(-1, self.grid, self.grid, self.patch_size, self.patch_size, self.in_channels)  # (B,H/p,W/p,p,p,C)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(-1, self.in_channels, size, size)  # (B, C, H, W)

    def _check_blocks(self, blocks: Collection[int]) -> None:
        for block in blocks:
            if not 1 <= block <= self.depth:
                raise ValueError(f"no block {block}: there are {self.depth}, counted from 1")
