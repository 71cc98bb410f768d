"""Sources of images, or of latents that other software made. Each kind of source has a file of its own here.

A source is a list of items, one per image, and a reader. The order of the items depends only on the source's files. The
reader is sent to the processes that read items.
"""

from __future__ import annotations

from pathlib import Path

from raysweep.errors import UserError
from raysweep.prepare.sources import folders, idx, latents, parquet, tars
from raysweep.prepare.sources.base import Item, Latents, Picture, Reader, Source

__all__ = ["Item", "Latents", "Picture", "Reader", "Source", "open_source"]

_NAMED = {"emoji9": parquet.emoji9, "fashion-mnist": idx.fashion_mnist}
# Folders come last, because sources of other kinds contain folders too.
_KINDS = (latents, parquet, tars, idx, folders)
KNOWN = (
    "a folder of classes; ImageNet's tar, or a folder of its classes' tars; Parquet files; WebDataset's tars; "
    "IDX files; emoji9; fashion-mnist; or latents of REPA, EDM2, LightningDiT or DiT"
)


def open_source(given: str, split: str = "train") -> Source:
    """The source in a file or folder, or the source with a known name such as `emoji9`.

    Args:
        split: which split, of sets that have several.

    Raises:
        UserError: nothing is there, it is of no known kind, or something is wrong with it.
    """
    if given in _NAMED and not Path(given).exists():
        return _NAMED[given](split)
    place = Path(given).expanduser().absolute()
    if not place.exists():
        raise UserError(f"{given}: there is nothing here; give {KNOWN}")
    for kind in _KINDS:
        if source := kind.find(place, split):
            source.check()
            return source
    raise UserError(f"{given}: not a known kind of source; give {KNOWN}")
