"""The sizes of the backbones, by name."""

from __future__ import annotations

from typing import Literal, NamedTuple

Family = Literal["SiT", "LightningDiT"]


class BackboneSize(NamedTuple):
    """Shape of a transformer: number of blocks, width, attention heads, patch size, and the family it belongs to."""

    depth: int
    width: int
    heads: int
    patch: int
    family: Family


# S to XL are those of the papers. T, T24 and T28 are for small machines: as deep as B, L and XL, so that the block
# numbers of a method stay valid.
_TINY = {"T": (12, 96, 3), "T24": (24, 96, 3), "T28": (28, 96, 3)}
_SHAPES = _TINY | {"S": (12, 384, 6), "B": (12, 768, 12), "L": (24, 1024, 16), "XL": (28, 1152, 16)}
_PATCHES: dict[Family, tuple[int, ...]] = {"SiT": (2, 4, 8), "LightningDiT": (1, 2)}
BACKBONES = {
    f"{family}-{size}/{patch}": BackboneSize(*shape, patch, family)
    for family, patches in _PATCHES.items()
    for size, shape in _SHAPES.items()
    for patch in patches
    if (family, size) != ("LightningDiT", "S")
}
