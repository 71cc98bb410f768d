"""Image files to pixels, as ADM cuts them.

The cut is that of ADM (guided-diffusion `image_datasets.py`, `center_crop_arr`), which SiT, REPA and the reference
statistics of ImageNet 256 share. Unlike there, an image is turned upright first where its EXIF data say so.
"""

from __future__ import annotations

import io
import warnings

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from trainables.errors import one_line

Pixels = npt.NDArray[np.uint8]


class Unreadable(ValueError):
    """An image file that is torn, or none at all."""


def decode(content: bytes) -> Image.Image:
    """An image file's picture: RGB, upright.

    Raises:
        Unreadable: it is torn, of no known format, or larger than Pillow takes for an honest picture.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which a set of a million has thousands of
            picture: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            if picture.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
    except Exception as error:  # Pillow's decoders raise whatever their parsers do
        raise Unreadable(one_line(error).split(" <_io.")[0]) from None


def centre_crop(picture: Image.Image, size: int) -> Pixels:
    """The middle square of a picture at size x size, (size, size, 3) uint8.

    Halved by box filtering while its shorter side is at least twice `size`, then bicubic until that is `size`.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
