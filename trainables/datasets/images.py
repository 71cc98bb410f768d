"""Image files to pixels, cropped as in ADM.

The crop is that of ADM (guided-diffusion `image_datasets.py`, `center_crop_arr`), which SiT, REPA and the reference
statistics of ImageNet 256 share. Unlike ADM, images are first rotated as their EXIF data say.
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
    """The file is not an image, or is damaged."""


def decode(content: bytes) -> Image.Image:
    """The image in a file's content: RGB, upright.

    Raises:
        Unreadable: it is damaged, of no known format, or larger than Pillow's limit against decompression bombs.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd metadata, of which a large set has thousands
            picture: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
            if picture.mode.startswith("I;16"):  # Pillow would clip 16-bit values at 255
                picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
            return picture.convert("RGB")
    except Exception as error:  # Pillow's decoders raise errors of many kinds
        raise Unreadable(one_line(error).split(" <_io.")[0]) from None


def centre_crop(picture: Image.Image, size: int) -> Pixels:
    """The central square of a picture, resized to (size, size, 3) uint8.

    The picture is halved by box filtering while its shorter side is at least twice `size`, then resized bicubically so
    that its shorter side is `size`, then cropped.
    """
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture)
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]
