"""The Inception of 2015 that defines FID, sFID and IS, and three ways to resize its images.

The weights are those of TensorFlow's graph `classify_image_graph_def.pb`; pytorch-fid and torch-fidelity ship
them under the same names (`Mixed_5b.branch1x1.conv.weight`, ...), and they load here. The graph differs from the
Inception v3 of the paper and of torchvision: average pools leave their padding out, the last block pools by maximum,
and there are 1,008 classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from cleanfid.resize import build_resizer
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 299  # pixels a side
FEATURES, SPATIAL, CLASSES = 2048, 7 * 17 * 17, 1008

Kernel = int | tuple[int, int]
Chain = tuple["str | tuple[str, ...]", ...]  # names of convolutions in sequence; those in a tuple run in parallel


class InceptionOutput(NamedTuple):
    """The output of the network for N images."""

    pool: Tensor  # (N, 2048): FID, KID, precision and recall
    spatial: Tensor  # (N, 2023): the first 7 channels of `mixed_6/conv`, pixels first, as in ADM's evaluator: sFID
    logits: Tensor  # (N, 1008) without the bias, as in the graph: IS


class Inception(nn.Module):
    """images (N, 3, 299, 299) float from `prepare` -> `InceptionOutput`."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = _Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = _Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = _Conv(32, 64, 3, padded=True)
        self.Conv2d_3b_1x1 = _Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = _Conv(80, 192, 3)
        self.Mixed_5b = _block_35(192, 32)
        self.Mixed_5c = _block_35(256, 64)
        self.Mixed_5d = _block_35(288, 64)
        self.Mixed_6a = _shrink_to_17(288)
        self.Mixed_6b = _block_17(768, 128)
        self.Mixed_6c = _block_17(768, 160)
        self.Mixed_6d = _block_17(768, 160)
        self.Mixed_6e = _block_17(768, 192)
        self.Mixed_7a = _shrink_to_8(768)
        self.Mixed_7b = _block_8(1280, _average)
        self.Mixed_7c = _block_8(2048, _maximum)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> InceptionOutput:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, stride=2)))
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(F.max_pool2d(x, 3, stride=2))))
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))
        spatial = self.Mixed_6d.get_submodule("branch1x1")(x)[:, :7]  # (N, 7, 17, 17)
        x = self.Mixed_7a(self.Mixed_6e(self.Mixed_6d(x)))
        pool = self.Mixed_7c(self.Mixed_7b(x)).mean(dim=(2, 3))
        return InceptionOutput(pool, spatial.permute(0, 2, 3, 1).flatten(1), F.linear(pool, self.fc.weight))


class _Conv(nn.Module):
    """Convolution without bias, batch normalisation, ReLU. With `padded` the size stays the same."""

    def __init__(self, channels_in: int, channels_out: int, kernel: Kernel, stride: int = 1, padded: bool = False):
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else 0
        self.conv = nn.Conv2d(channels_in, channels_out, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class _Block(nn.Module):
    """Branches whose outputs are concatenated along the channels. Each is a chain of convolutions, but the last branch
    is a pool, followed by the convolution `branch_pool` if there is one."""

    def __init__(self, convs: Mapping[str, _Conv], chains: tuple[Chain, ...], pool: Callable[[Tensor], Tensor]):
        super().__init__()
        for name, conv in convs.items():
            self.add_module(name, conv)
        self._chains, self._pool, self._projected = chains, pool, "branch_pool" in convs

    def forward(self, x: Tensor) -> Tensor:
        pooled = self._pool(x)
        branches = [self._run(chain, x) for chain in self._chains]
        return torch.cat([*branches, self.get_submodule("branch_pool")(pooled) if self._projected else pooled], dim=1)

    def _run(self, chain: Chain, x: Tensor) -> Tensor:
        for link in chain:
            if isinstance(link, str):
                x = self.get_submodule(link)(x)
            else:
                x = torch.cat([self.get_submodule(name)(x) for name in link], dim=1)
        return x


def _average(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _maximum(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def _shrink(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def _block_35(width: int, pooled: int) -> _Block:
    convs = {
        "branch1x1": _Conv(width, 64, 1),
        "branch5x5_1": _Conv(width, 48, 1),
        "branch5x5_2": _Conv(48, 64, 5, padded=True),
        "branch3x3dbl_1": _Conv(width, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3, padded=True),
        "branch3x3dbl_3": _Conv(96, 96, 3, padded=True),
        "branch_pool": _Conv(width, pooled, 1),
    }
    return _Block(convs, (("branch1x1",), _chain("branch5x5", 2), _chain("branch3x3dbl", 3)), _average)


def _shrink_to_17(width: int) -> _Block:
    convs = {
        "branch3x3": _Conv(width, 384, 3, stride=2),
        "branch3x3dbl_1": _Conv(width, 64, 1),
        "branch3x3dbl_2": _Conv(64, 96, 3, padded=True),
        "branch3x3dbl_3": _Conv(96, 96, 3, stride=2),
    }
    return _Block(convs, (("branch3x3",), _chain("branch3x3dbl", 3)), _shrink)


def _block_17(width: int, inner: int) -> _Block:
    row, column = (1, 7), (7, 1)
    convs = {
        "branch1x1": _Conv(width, 192, 1),
        "branch7x7_1": _Conv(width, inner, 1),
        "branch7x7_2": _Conv(inner, inner, row, padded=True),
        "branch7x7_3": _Conv(inner, 192, column, padded=True),
        "branch7x7dbl_1": _Conv(width, inner, 1),
        "branch7x7dbl_2": _Conv(inner, inner, column, padded=True),
        "branch7x7dbl_3": _Conv(inner, inner, row, padded=True),
        "branch7x7dbl_4": _Conv(inner, inner, column, padded=True),
        "branch7x7dbl_5": _Conv(inner, 192, row, padded=True),
        "branch_pool": _Conv(width, 192, 1),
    }
    return _Block(convs, (("branch1x1",), _chain("branch7x7", 3), _chain("branch7x7dbl", 5)), _average)


def _shrink_to_8(width: int) -> _Block:
    convs = {
        "branch3x3_1": _Conv(width, 192, 1),
        "branch3x3_2": _Conv(192, 320, 3, stride=2),
        "branch7x7x3_1": _Conv(width, 192, 1),
        "branch7x7x3_2": _Conv(192, 192, (1, 7), padded=True),
        "branch7x7x3_3": _Conv(192, 192, (7, 1), padded=True),
        "branch7x7x3_4": _Conv(192, 192, 3, stride=2),
    }
    return _Block(convs, (_chain("branch3x3", 2), _chain("branch7x7x3", 4)), _shrink)


def _block_8(width: int, pool: Callable[[Tensor], Tensor]) -> _Block:
    row, column = (1, 3), (3, 1)
    convs = {
        "branch1x1": _Conv(width, 320, 1),
        "branch3x3_1": _Conv(width, 384, 1),
        "branch3x3_2a": _Conv(384, 384, row, padded=True),
        "branch3x3_2b": _Conv(384, 384, column, padded=True),
        "branch3x3dbl_1": _Conv(width, 448, 1),
        "branch3x3dbl_2": _Conv(448, 384, 3, padded=True),
        "branch3x3dbl_3a": _Conv(384, 384, row, padded=True),
        "branch3x3dbl_3b": _Conv(384, 384, column, padded=True),
        "branch_pool": _Conv(width, 192, 1),
    }
    forked = ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b"))
    forked_later = (*_chain("branch3x3dbl", 2), ("branch3x3dbl_3a", "branch3x3dbl_3b"))
    return _Block(convs, (("branch1x1",), forked, forked_later), pool)


def _chain(name: str, length: int) -> Chain:
    return tuple(f"{name}_{number}" for number in range(1, length + 1))


# --- preprocessing of images


def prepare(images: Tensor, resize: str) -> Tensor:
    """Images (N, 3, H, W) uint8 -> the network's input (N, 3, 299, 299) float32.

    Args:
        resize: `tensorflow`: as in the graph, which the papers and torch-fidelity use. `clean`: Pillow's bicubic
            filter with antialiasing, as in clean-fid. `pytorch`: as in pytorch-fid. Distances
            with different options are not comparable.

    Raises:
        ValueError: there is no such option.
    """
    if resize == "tensorflow":
        return (_bilinear_tensorflow(images.float()) - 128) / 128
    if resize == "clean":
        return (_bicubic_pillow(images) - 128) / 128
    if resize == "pytorch":
        pixels = F.interpolate(images.float() / 255, (SIZE, SIZE), mode="bilinear", align_corners=False)
        return 2 * pixels - 1
    raise ValueError(f"no resize '{resize}'; known: tensorflow, clean, pytorch")


def _bilinear_tensorflow(images: Tensor) -> Tensor:
    """TensorFlow 1's bilinear resize: pixels are located by their corners, without antialiasing."""
    for dim in (2, 3):
        old = images.shape[dim]
        place = torch.arange(SIZE, device=images.device, dtype=torch.float32) * (old / SIZE)
        low = place.floor().long().clamp(max=old - 1)
        high = (low + 1).clamp(max=old - 1)
        share = (place - low).reshape(-1, 1) if dim == 2 else place - low
        below, above = images.index_select(dim, low), images.index_select(dim, high)
        images = below + (above - below) * share
    return images


def _bicubic_pillow(images: Tensor) -> Tensor:
    """clean-fid's own resizer, one image at a time on the CPU."""
    resize = build_resizer("clean")
    pixels = [torch.from_numpy(resize(image.permute(1, 2, 0).numpy())) for image in images.cpu()]
    return torch.stack(pixels).permute(0, 3, 1, 2).to(images.device)
