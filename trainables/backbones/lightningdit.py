"""LightningDiT: SiT with parts of language models (hustvl/LightningDiT models/lightningdit.py, models/pos_embed.py).

RMSNorm replaces LayerNorm, SwiGLU replaces the MLP, and queries and keys get rotary positions besides the fixed table.
Normalised queries and keys, and adaLN without shift, are optional. If a part is switched off, the model has SiT's part.

Shapes as in base.py: B batch, T tokens, D width, M heads, d = D/M, p patch, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainables.backbones.base import Backbone, modulate
from trainables.backbones.sit import Mlp


class Switches(NamedTuple):
    """Which of the optional parts a model has."""

    qknorm: bool
    swiglu: bool
    rmsnorm: bool
    no_shift: bool


# --- positions ---------------------------------------------------------------------------------------------------


def rotary_angles(dim: int, grid: int) -> Tensor:
    """Angles (grid * grid, dim) float32: half for the row, half for the column, each for two neighbouring channels."""
    half = dim // 2
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, half, 2).float() / half))  # (d/4,)
    axis = torch.arange(grid).float()[:, None] * frequencies  # (H/p, d/4)
    axis = axis.repeat_interleave(2, dim=1)  # (H/p, d/2)
    rows = axis[:, None].expand(grid, grid, -1)  # (H/p, W/p, d/2)
    columns = axis[None, :].expand(grid, grid, -1)  # (H/p, W/p, d/2)
    return torch.cat([rows, columns], dim=-1).reshape(grid * grid, dim)


class Rotary(nn.Module):
    """Rotates neighbouring pairs of channels by angles that grow with the token's row and column."""

    freqs_cos: Tensor
    freqs_sin: Tensor

    def __init__(self, dim: int, grid: int):
        super().__init__()
        self.dim, self.grid = dim, grid
        self.register_buffer("freqs_cos", torch.empty(grid * grid, dim))
        self.register_buffer("freqs_sin", torch.empty(grid * grid, dim))
        self.write_tables()

    def write_tables(self) -> None:
        """Fill the tables, which are empty if the model was made on the meta device."""
        angles = rotary_angles(self.dim, self.grid)  # (T, d)
        self.freqs_cos.copy_(angles.cos())
        self.freqs_sin.copy_(angles.sin())

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)  # 2 of (B, M, T, d/2)
        quarter_turn = torch.stack([-second, first], dim=-1).flatten(-2)  # (B, M, T, d)
        return x * self.freqs_cos + quarter_turn * self.freqs_sin  # (B, M, T, d)


# --- transformer -------------------------------------------------------------------------------------------------


class RMSNorm(nn.Module):
    """RMS normalisation over the last axis, computed in float32 (models/rmsnorm.py)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()  # (..., D)
        scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)  # (..., 1)
        return (wide * scale).to(x.dtype) * self.weight  # (..., D)


def block_norm(width: int, rmsnorm: bool) -> nn.Module:
    """The norm before attention, MLP and output."""
    return RMSNorm(width) if rmsnorm else nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, optionally with normalised queries and keys per head."""

    def __init__(self, width: int, num_heads: int, switches: Switches):
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        norm: Callable[[int], nn.Module] = RMSNorm if switches.rmsnorm else nn.LayerNorm
        self.q_norm = norm(width // num_heads) if switches.qknorm else nn.Identity()
        self.k_norm = norm(width // num_heads) if switches.qknorm else nn.Identity()
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # 3 of (B, M, T, d)
        q, k = self.q_norm(q), self.k_norm(k)  # (B, M, T, d)
        if rotary is not None:
            q, k = rotary(q), rotary(k)  # (B, M, T, d)
        # Under autocast, norms and tables return float32, but attention needs one dtype.
        mixed = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)  # (B, M, T, d)
        return self.proj(mixed.transpose(1, 2).flatten(2))  # (B, T, D)


class SwiGLU(nn.Module):
    """MLP in which SiLU of the first half of a wide layer gates the second half (models/swiglu_ffn.py)."""

    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)  # 2 of (B, T, 8D/3)
        return self.w3(F.silu(gate) * value)  # (B, T, 8D/3) -> (B, T, D)


def swiglu_hidden(mlp_hidden: int) -> int:
    """Hidden width at which SwiGLU's three matrices have as many weights as the two of an MLP with `mlp_hidden`."""
    return int(2 / 3 * mlp_hidden)


class Block(nn.Module):
    """Attention and MLP, each shifted (optionally), scaled and gated by the condition."""

    def __init__(self, width: int, num_heads: int, mlp_ratio: float, switches: Switches):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.no_shift = switches.no_shift
        self.norm1 = block_norm(width, switches.rmsnorm)
        self.attn = Attention(width, num_heads, switches)
        self.norm2 = block_norm(width, switches.rmsnorm)
        self.mlp = SwiGLU(width, swiglu_hidden(hidden)) if switches.swiglu else Mlp(width, hidden)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, (4 if switches.no_shift else 6) * width))

    def forward(self, x: Tensor, c: Tensor, rotary: Rotary | None) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self._modulation(c)  # 6 of (B, D)
        x = x + gate_a[:, None] * self.attn(modulate(self.norm1(x), shift_a, scale_a), rotary)  # (B, T, D)
        return x + gate_m[:, None] * self.mlp(modulate(self.norm2(x), shift_m, scale_m))  # (B, T, D)

    def _modulation(self, c: Tensor) -> tuple[Tensor, ...]:
        if not self.no_shift:
            return self.adaLN_modulation(c).chunk(6, dim=1)  # 6 of (B, D)
        scale_a, gate_a, scale_m, gate_m = self.adaLN_modulation(c).chunk(4, dim=1)  # 4 of (B, D)
        none = torch.zeros_like(scale_a)  # (B, D)
        return none, scale_a, gate_a, none, scale_m, gate_m


class FinalLayer(nn.Module):
    """From a token to its patch of the velocity."""

    def __init__(self, width: int, patch_values: int, rmsnorm: bool):
        super().__init__()
        self.norm_final = block_norm(width, rmsnorm)
        self.linear = nn.Linear(width, patch_values)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(c).chunk(2, dim=1)  # 2 of (B, D)
        return self.linear(modulate(self.norm_final(x), shift, scale))  # (B, T, p*p*C)


class LightningDiT(Backbone):
    """The defaults are those of the paper's XL/1, for latents 32 x 16 x 16.

    Args:
        use_qknorm: normalise queries and keys per head, by RMSNorm or (without `use_rmsnorm`) LayerNorm.
        use_swiglu: SwiGLU instead of SiT's MLP.
        use_rope: rotary positions in addition to the fixed table.
        use_rmsnorm: RMSNorm with weights instead of LayerNorm without.
        wo_shift: adaLN only scales and gates in the blocks; the final layer still shifts.

    Raises:
        ValueError: sizes do not divide; with `use_rope` a head needs a multiple of 4 channels.
    """

    def __init__(
        self,
        *,
        input_size: int = 16,
        patch_size: int = 1,
        in_channels: int = 32,
        hidden_size: int = 1152,
        depth: int = 28,
        num_heads: int = 16,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        reversed_clock: bool = False,
        use_qknorm: bool = False,
        use_swiglu: bool = True,
        use_rope: bool = True,
        use_rmsnorm: bool = True,
        wo_shift: bool = False,
    ):
        super().__init__(
            input_size=input_size,
            patch_size=patch_size,
            in_channels=in_channels,
            hidden_size=hidden_size,
            depth=depth,
            num_heads=num_heads,
            num_classes=num_classes,
            reversed_clock=reversed_clock,
        )
        head = hidden_size // num_heads
        if use_rope and head % 4:
            raise ValueError(f"hidden_size / num_heads {head} must be a multiple of 4 with use_rope")
        switches = Switches(use_qknorm, use_swiglu, use_rmsnorm, wo_shift)
        self.feat_rope = Rotary(head, self.grid) if use_rope else None
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, mlp_ratio, switches) for _ in range(depth))
        self.final_layer = FinalLayer(hidden_size, patch_size**2 * in_channels, use_rmsnorm)

    def _block_inputs(self) -> tuple[Rotary | None]:
        return (self.feat_rope,)

    def _write_tables(self) -> None:
        super()._write_tables()
        if self.feat_rope is not None:
            self.feat_rope.write_tables()
