"""Image files to pixels: ADM's cut, and what files are like in the wild."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from trainables.datasets.images import Unreadable, centre_crop, decode


def photograph(width, height, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def packed(picture, kind="PNG", **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def adm(picture, size):
    """ADM's crop, step by step as it is described in methods.md, section 6."""
    halvings = 0
    while min(picture.size[0] // 2**halvings, picture.size[1] // 2**halvings) >= 2 * size:
        halvings += 1
        picture_size = (picture.size[0] // 2, picture.size[1] // 2)
        picture, halvings = picture.resize(picture_size, resample=Image.BOX), 0
    factor = size / min(*picture.size)
    picture = picture.resize(tuple(round(side * factor) for side in picture.size), resample=Image.BICUBIC)
    array = np.array(picture)
    y, x = (array.shape[0] - size) // 2, (array.shape[1] - size) // 2
    return array[y : y + size, x : x + size]


@given(st.integers(5, 300), st.integers(5, 300), st.sampled_from([16, 32, 33]))
def test_the_cut_is_adm_s_to_the_pixel(width, height, size):
    picture = photograph(width, height)
    cut = centre_crop(picture, size)
    assert cut.shape == (size, size, 3) and np.array_equal(cut, adm(picture, size))


@pytest.mark.parametrize(("width", "height"), [(500, 375), (375, 500), (1025, 511), (257, 256), (256, 256), (255, 900)])
def test_the_cut_of_odd_sizes_at_256(width, height):
    picture = photograph(width, height)
    assert np.array_equal(centre_crop(picture, 256), adm(picture, 256))


def test_a_rotated_photograph_is_turned_upright():
    upright = photograph(60, 40)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it 90 degrees clockwise
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    assert np.array_equal(np.asarray(decode(packed(stored, exif=exif))), np.asarray(upright))


@pytest.mark.parametrize("mode", ["L", "1", "LA", "RGBA", "P", "CMYK", "I;16", "F"])
def test_every_picture_becomes_rgb(mode):
    grey = photograph(20, 20).convert("L")
    if mode == "I;16":
        picture = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        picture = grey.convert(mode)
    decoded = decode(packed(picture, "TIFF" if mode in ("CMYK", "F") else "PNG"))
    assert decoded.mode == "RGB" and decoded.size == (20, 20)
    if mode != "1":  # dithered
        assert np.abs(np.asarray(decoded).astype(int) - np.asarray(grey)[..., None].astype(int)).max() <= 1


@pytest.mark.parametrize(
    "content", [b"", b"no image", packed(photograph(50, 50))[:-300], packed(photograph(9, 9))[:20]]
)
def test_what_cannot_be_read_says_so_in_a_line(content):
    with pytest.raises(Unreadable) as raised:
        decode(content)
    assert "\n" not in str(raised.value) and "0x" not in str(raised.value) and str(raised.value)
