"""Pictures of the features of a backbone's blocks, and of a teacher's guiding features, as in the paper's figures.

blocks.png     each block's tokens as colours (their first three principal components), by time and checkpoint
guidance.png   t-SNE of the guiding features at each guidance scale, coloured by class
features.json  how well the guiding features separate the classes, in numbers
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from raysweep.errors import UserError
from raysweep.store.snapshots import describe
from trainables import features
from trainables.datasets.autoencoders import Autoencoder
from trainables.datasets.catalog import DataSet
from trainables.features import Scene, Separability
from trainables.redaction import public
from trainables.snapshot import Snapshot

# Paul Tol's "muted" palette, safe for colour-blind readers. Its length limits how many classes are shown.
COLOURS = ["#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"]
MOSAIC_COLUMNS, TILE_PX, GAP_PX = 4, 64, 4
FILES = ("blocks.png", "guidance.png", "features.json")


@dataclass(frozen=True)
class View:
    """What the pictures show."""

    times: Sequence[float]
    """Times in [0, 1] whose features blocks.png shows; 0 is data."""
    blocks: Sequence[int] | None
    """Blocks of blocks.png, counted from 1; None: six of them, evenly spaced."""
    images: int
    """Images in each cell of blocks.png."""
    scales: Sequence[float]
    """Guidance scales of guidance.png."""
    at: float
    """Time in [0, 1] of guidance.png."""
    block: int | None
    """The teacher's block whose features guide; None: at 2/3 of the depth."""
    points: int
    """Images in guidance.png."""
    seed: int
    """Seed of images, noise and t-SNE."""


@dataclass(frozen=True)
class Panel:
    """Guiding features of one checkpoint at one guidance scale."""

    guidance_scale: float
    score: Separability
    plane: NDArray[np.float32]  # (N, 2), by t-SNE

    def as_dict(self) -> dict[str, float]:
        """The scores as plain data."""
        return {"guidance_scale": self.guidance_scale, **self.score._asdict()}


def write(
    checkpoints: Sequence[tuple[str, Snapshot]],
    view: View,
    data: DataSet,
    autoencoder: Autoencoder,
    out: Path,
    progress: Callable[[str], None],
) -> None:
    """Compute the features of all checkpoints, then write the three files into the folder `out`.

    Args:
        checkpoints: (name, snapshot); shown in the order of their steps.
        data: the data set that all of them were trained on.
        progress: is called with what is being computed.

    Raises:
        UserError: a block does not exist, or the data set has no test images.
    """
    if not data.embedded:
        raise UserError(f"--data {data.name}: this data set has no test images; features works with emoji9")
    checkpoints = sorted(checkpoints, key=lambda checkpoint: checkpoint[1].step or 0)
    model = checkpoints[0][1].name
    blocks, block = _blocks(view, min(snapshot.backbone.depth for _, snapshot in checkpoints), model)
    count = max(view.points, view.images)
    scene = features.scene(data.name, autoencoder, count=count, most_classes=len(COLOURS), seed=view.seed)
    images, points = scene.first(view.images), scene.first(view.points)
    labelled = list(zip(_labels(checkpoints), (snapshot for _, snapshot in checkpoints), strict=True))
    progress("features of the blocks")
    maps = {
        f"{label}\nt = {t:g}": _maps(snapshot, images, t, blocks) for label, snapshot in labelled for t in view.times
    }
    panels = []
    for label, snapshot in labelled:
        progress(f"guiding features, {label}")
        panels.append([_panel(snapshot, points, view.at, block, scale, view.seed) for scale in view.scales])

    out.mkdir(parents=True, exist_ok=True)
    title = f"{model} on {public(data.name)}'s test images"
    _save_blocks(maps, images, title, out / "blocks.png")
    labels = [label for label, _ in labelled]
    _save_guidance(panels, labels, points, data, f"{title}, after block {block} at t = {view.at:g}", out)
    facts = {
        "data": public(data.name),
        "block": block,
        "t": view.at,
        "points": len(points.labels),
        "largest_class": _largest(points),
        "seed": view.seed,
        "checkpoints": [
            {"checkpoint": name, **describe(snapshot), "separability": [panel.as_dict() for panel in row]}
            for (name, snapshot), row in zip(checkpoints, panels, strict=True)
        ],
    }
    (out / "features.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _blocks(view: View, depth: int, model: str) -> tuple[Sequence[int], int]:
    """The blocks of blocks.png and the guiding one."""
    blocks = view.blocks or sorted({max(1, round(depth * part / 6)) for part in range(1, 7)})
    block = view.block or max(1, 2 * depth // 3)
    for option, value in [*(("--blocks", value) for value in blocks), ("--block", block)]:
        if not 1 <= value <= depth:
            raise UserError(f"{option} {value}: {model} has blocks 1 to {depth}")
    return blocks, block


def _labels(checkpoints: Sequence[tuple[str, Snapshot]]) -> list[str]:
    """Labels of the rows: steps, with names where two steps are equal."""
    steps = ["step unknown" if snapshot.step is None else f"step {snapshot.step}" for _, snapshot in checkpoints]
    if len(set(steps)) == len(steps):
        return steps
    return [f"{Path(name).stem[:12]}, {step}" for (name, _), step in zip(checkpoints, steps, strict=True)]


def _maps(snapshot: Snapshot, scene: Scene, t: float, blocks: Sequence[int]) -> dict[int, NDArray[np.float32]]:
    """Each block's tokens as colours: {block: (N, grid, grid, 3)} in [0, 1]."""
    backbone = snapshot.backbone
    hidden = features.block_features(backbone, scene.latents, scene.labels, t, blocks, scene.noise, snapshot.path)
    return {block: features.pca_rgb(hidden[block], backbone.grid).cpu().numpy() for block in blocks}


def _panel(snapshot: Snapshot, points: Scene, t: float, block: int, scale: float, seed: int) -> Panel:
    guided = features.scene_guidance(snapshot.backbone, points, t, block, scale, snapshot.path)
    return Panel(scale, features.separability(guided, points.labels), features.tsne(guided, seed).numpy())


def _save_blocks(maps: dict[str, dict[int, NDArray[np.float32]]], scene: Scene, title: str, path: Path) -> None:
    pictures = scene.images.permute(0, 2, 3, 1).numpy() / 255  # (N, h, w, 3)
    image = _mosaic(pictures)
    tokens = next(iter(next(iter(maps.values())).values())).shape[1]
    columns = 1 + len(next(iter(maps.values())))
    width = 1.75
    height = width * image.shape[0] / image.shape[1] + 0.06
    figure = Figure(figsize=(columns * width + 0.9, len(maps) * height + 1.15))
    FigureCanvasAgg(figure)
    figure.set_layout_engine("constrained", wspace=0.07)
    grid = figure.subplots(len(maps), columns, squeeze=False)
    for number, (row, (label, by_block)) in enumerate(zip(grid, maps.items(), strict=True)):
        cells = {"image": image} | {f"block {block}": _mosaic(colours) for block, colours in by_block.items()}
        for axes, (heading, cell) in zip(row, cells.items(), strict=True):
            axes.imshow(cell, interpolation="nearest")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(heading, fontsize=10)
        row[0].text(-0.06, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"Features of the blocks: {title}", fontsize=12)
    figure.supxlabel(
        f"each image's {tokens} x {tokens} tokens; red, green and blue are the first three principal components over "
        "all images of a cell; t = 0 is data, t = 1 noise",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)


def _mosaic(pictures: NDArray[Any]) -> NDArray[Any]:
    """Pictures (N, h, w, 3) in [0, 1] as one image on white: enlarged to tiles without smoothing, in rows."""
    columns = min(MOSAIC_COLUMNS, len(pictures))
    rows = -(-len(pictures) // columns)
    step = TILE_PX + GAP_PX
    sheet = np.ones((rows * step - GAP_PX, columns * step - GAP_PX, 3))
    down, right = (np.arange(TILE_PX) * size // TILE_PX for size in pictures.shape[1:3])
    for number, picture in enumerate(pictures):
        y, x = number // columns * step, number % columns * step
        sheet[y : y + TILE_PX, x : x + TILE_PX] = picture[down][:, right]
    return sheet


def _save_guidance(
    panels: list[list[Panel]], labels: list[str], points: Scene, data: DataSet, title: str, out: Path
) -> None:
    figure = Figure(figsize=(2.9 * len(panels[0]) + 0.6, 2.75 * len(panels) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    classes = points.labels.cpu().numpy()
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for row, label, row_panels in zip(grid, labels, panels, strict=True):
        for axes, panel in zip(row, row_panels, strict=True):
            _scatter(axes, panel, classes)
        row[0].set_ylabel(label, fontsize=10)
    handles = [
        grid[0][0].plot([], [], "o", color=COLOURS[label], label=_class_name(data, label), markersize=6)[0]
        for label in np.unique(classes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9, frameon=False)
    figure.suptitle(
        f"Guiding features f_u + ω (f_c − f_u) as t-SNE: {title}\n"
        "f_c has the image's true class as input, f_u the null class. k-NN: share of images whose 5 nearest others "
        f"predict their class (guessing the largest class: {_largest(points):.0%})",
        fontsize=10,
    )
    figure.savefig(out / "guidance.png", dpi=150)


def _scatter(axes: Axes, panel: Panel, classes: NDArray[Any]) -> None:
    colours = [COLOURS[label] for label in classes]
    axes.scatter(panel.plane[:, 0], panel.plane[:, 1], c=colours, s=11, linewidths=0.2, edgecolors="white")
    meaning = {0.0: " (f_u only)", 1.0: " (f_c only)"}.get(panel.guidance_scale, "")
    axes.set_title(
        f"ω = {panel.guidance_scale:g}{meaning}\nk-NN {panel.score.neighbour_accuracy:.0%}, "
        f"silhouette {panel.score.silhouette:.2f}",
        fontsize=9,
    )
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_color("#bbbbbb")


def _class_name(data: DataSet, label: int) -> str:
    return data.class_names[label] if data.class_names else f"class {label}"


def _largest(points: Scene) -> float:
    """The share of the largest class, which is the score of guessing it for every image."""
    return float(points.labels.bincount().max()) / len(points.labels)
