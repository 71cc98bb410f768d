"""Where images, or latents of others, come from: one file a kind, each with `open_source`'s answer.

A source is a list of items, one an image, in an order that the place alone decides, and a reader that is sent to
whoever reads some of them.
"""

from __future__ import annotations

from pathlib import Path

from raysweep.errors import UserError
from raysweep.prepare.sources import folders, idx, latents, parquet, tars
from raysweep.prepare.sources.base import Item, Latents, Picture, Reader, Source

__all__ = ["Item", "Latents", "Picture", "Reader", "Source", "open_source"]

_NAMED = {"emoji9": parquet.emoji9, "fashion-mnist": idx.fashion_mnist}
_KINDS = (latents, parquet, tars, idx, folders)  # a folder of folders last: nearly everything is one
TAKEN = (
    "a folder of classes; ImageNet's tar, or a folder of its classes' tars; Parquet files; WebDataset's tars; "
    "IDX files; emoji9; fashion-mnist; or latents of REPA, EDM2, LightningDiT or DiT"
)


def open_source(given: str, split: str = "train") -> Source:
    """What lies in a place, or has a name.

    Args:
        split: of those sets that have several.

    Raises:
        UserError: nothing is there, or nothing that is known; or it is not sound.
    """
    if given in _NAMED and not Path(given).exists():
        return _NAMED[given](split)
    place = Path(given).expanduser().absolute()
    if not place.exists():
        raise UserError(f"{given}: there is nothing; give {TAKEN}")
    for kind in _KINDS:
        if found := kind.find(place, split):
            found.check()
            return found
    raise UserError(f"{given}: nothing that is known; give {TAKEN}")
