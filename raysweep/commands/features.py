"""`raysweep features CHECKPOINT…`: what a backbone's blocks see, and what a teacher would show.

blocks.png     each block's tokens as colours (their first three principal components), by time and checkpoint
guidance.png   t-SNE of the guiding features at each guidance scale, coloured by class
features.json  how well the guiding features separate the classes, in numbers
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console

from raysweep.commands.checkpoints import add_checkpoint_options, choose_data, describe, open_checkpoint
from raysweep.commands.common import guarded
from raysweep.errors import UserError
from raysweep.store.store import Store
from trainables import features, snapshot
from trainables.datasets.catalog import DataSet
from trainables.features import Scene, Separability
from trainables.snapshot import Snapshot
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache

# Paul Tol's "muted", safe for colour-blind readers: as many classes as are shown.
COLOURS = ["#CC6677", "#332288", "#DDCC77", "#117733", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499"]
MOSAIC_COLUMNS, TILE_PX, GAP_PX = 4, 64, 4


@dataclass(frozen=True)
class Panel:
    """Guiding features of one checkpoint at one guidance scale."""

    guidance_scale: float
    score: Separability
    plane: NDArray[np.float32]  # (N, 2), by t-SNE


def main(arguments: list[str] | None = None) -> int:
    """Draw the pictures; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(draw, parser().parse_args(arguments))


def draw(options: argparse.Namespace, console: Console) -> None:
    """Check everything, look, then write three files."""
    _check(options)
    store = Store(options.storage)
    seen = [open_checkpoint(name, store, options) for name in options.checkpoints]
    order = sorted(range(len(seen)), key=lambda number: seen[number].step or 0)
    seen, names = [seen[number] for number in order], [options.checkpoints[number] for number in order]
    data = choose_data(seen[0], options.data)
    if not data.embedded:
        raise UserError(f"--data {data.name}: its images are not kept apart for testing; features looks at emoji9's")
    for other in seen[1:]:
        if choose_data(other, options.data) != data:
            raise UserError("the checkpoints are of different data sets; give those of one")
    depth = min(probed.backbone.depth for probed in seen)
    blocks = options.blocks or sorted({max(1, round(depth * part / 6)) for part in range(1, 7)})
    block = options.block or max(1, 2 * depth // 3)
    for key, value in [*(("--blocks", value) for value in blocks), ("--block", block)]:
        if not 1 <= value <= depth:
            raise UserError(f"{key} {value}: {seen[0].name} has blocks 1 to {depth}")

    worker_cache = WorkerCache(Context(snapshot.best_device()), store.cache)
    count = max(options.points, options.images)
    shown = features.scene(
        data.name, worker_cache.autoencoder(data.name), count=count, most_classes=len(COLOURS), seed=options.seed
    )
    labels = _labels(seen, names)
    with console.status("looking at blocks") as status:
        maps = {
            f"{label}\nt = {t:g}": _maps(probed, shown.first(options.images), t, blocks)
            for label, probed in zip(labels, seen, strict=True)
            for t in options.times
        }
        points, panels = shown.first(options.points), []
        for label, probed in zip(labels, seen, strict=True):
            status.update(f"guiding features, {label}")
            panels.append([_panel(probed, points, options.at, block, s, options.seed) for s in options.scales])

    options.out.mkdir(parents=True, exist_ok=True)
    what = f"{seen[0].name} on {data.name}'s test images"
    _save_blocks(maps, shown.first(options.images), what, options.out / "blocks.png")
    _save_guidance(panels, labels, points, data, f"{what}, after block {block} at t = {options.at:g}", options.out)
    told = _told(seen, names, panels, points, data, block, options)
    (options.out / "features.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    for name in ("blocks.png", "guidance.png", "features.json"):
        Console().print(f"{name}: {options.out / name}", highlight=False, soft_wrap=True)


def _check(options: argparse.Namespace) -> None:
    for t in (*options.times, options.at):
        if not 0 <= t <= 1:
            raise UserError(f"--times, --at {t:g}: times lie between 0 (data) and 1 (noise)")
    for scale in options.scales:
        if not math.isfinite(scale):
            raise UserError(f"--scales {scale}: give finite numbers")
    for key, least in {"images": 1, "points": len(COLOURS) * 2}.items():
        if getattr(options, key) < least:
            raise UserError(f"--{key} {getattr(options, key)}: give {least} or more")
    if options.seed < 0:
        raise UserError(f"--seed {options.seed}: give 0 or more")
    if not next(place for place in (options.out, *options.out.absolute().parents) if place.exists()).is_dir():
        raise UserError(f"--out {options.out}: cannot be a folder, there is a file in its place")


def _labels(seen: list[Snapshot], names: list[str]) -> list[str]:
    """What a row is called: its step, and its name where steps alone do not tell."""
    steps = [f"step {probed.step}" if probed.step is not None else "step unknown" for probed in seen]
    if len(set(steps)) == len(steps):
        return steps
    return [f"{Path(name).stem[:12]}, {step}" for name, step in zip(names, steps, strict=True)]


# --- looking -----------------------------------------------------------------------------------------------------


def _maps(probed: Snapshot, shown: Scene, t: float, blocks: list[int]) -> dict[int, NDArray[np.float32]]:
    """Each block's tokens as colours: {block: (N, grid, grid, 3)} in [0, 1]."""
    backbone = probed.backbone
    hidden = features.block_features(backbone, shown.latents, shown.labels, t, blocks, shown.noise, probed.path)
    return {block: features.pca_rgb(hidden[block], backbone.grid).cpu().numpy() for block in blocks}


def _panel(probed: Snapshot, points: Scene, t: float, block: int, scale: float, seed: int) -> Panel:
    guided = features.scene_guidance(probed.backbone, points, t, block, scale, probed.path)
    return Panel(scale, features.separability(guided, points.labels), features.tsne(guided, seed).numpy())


# --- drawing -----------------------------------------------------------------------------------------------------


def _save_blocks(maps: dict[str, dict[int, NDArray[np.float32]]], shown: Scene, what: str, path: Path) -> None:
    pictures = shown.images.permute(0, 2, 3, 1).numpy() / 255  # (N, h, w, 3)
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
        for axes, (title, cell) in zip(row, cells.items(), strict=True):
            axes.imshow(cell, interpolation="nearest")
            axes.set_axis_off()
            if number == 0:
                axes.set_title(title, fontsize=10)
        row[0].text(-0.06, 0.5, label, transform=row[0].transAxes, ha="right", va="center", fontsize=9)
    figure.suptitle(f"What the blocks see: {what}", fontsize=12)
    figure.supxlabel(
        f"each image's {tokens} x {tokens} tokens; red, green, blue: their first three principal components, over all "
        "images of a cell; t = 0 is data, t = 1 noise",
        fontsize=8,
    )
    figure.savefig(path, dpi=150)


def _mosaic(pictures: NDArray[Any]) -> NDArray[Any]:
    """Pictures (N, h, w, 3) in [0, 1], enlarged without smoothing, beside and below each other on white."""
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
    panels: list[list[Panel]], labels: list[str], points: Scene, data: DataSet, what: str, out: Path
) -> None:
    figure = Figure(figsize=(2.9 * len(panels[0]) + 0.6, 2.75 * len(panels) + 1.5), layout="constrained")
    FigureCanvasAgg(figure)
    classes = points.labels.cpu().numpy()
    grid = figure.subplots(len(panels), len(panels[0]), squeeze=False)
    for row, label, shown in zip(grid, labels, panels, strict=True):
        for axes, panel in zip(row, shown, strict=True):
            _scatter(axes, panel, classes)
        row[0].set_ylabel(label, fontsize=10)
    handles = [
        grid[0][0].plot([], [], "o", color=COLOURS[label], label=_class_name(data, label), markersize=6)[0]
        for label in np.unique(classes)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)), fontsize=9, frameon=False)
    figure.suptitle(
        f"Guiding features f_u + ω (f_c − f_u) as t-SNE: {what}\n"
        "f_c is told the image's true class, f_u is not. k-NN: share of images whose 5 nearest others tell their class "
        f"(always guessing the largest: {_largest(points):.0%})",
        fontsize=10,
    )
    figure.savefig(out / "guidance.png", dpi=150)


def _scatter(axes: Axes, panel: Panel, classes: NDArray[Any]) -> None:
    colours = [COLOURS[label] for label in classes]
    axes.scatter(panel.plane[:, 0], panel.plane[:, 1], c=colours, s=11, linewidths=0.2, edgecolors="white")
    alone = {0.0: " (f_u alone)", 1.0: " (f_c alone)"}.get(panel.guidance_scale, "")
    axes.set_title(
        f"ω = {panel.guidance_scale:g}{alone}\nk-NN {panel.score.neighbour_accuracy:.0%}, "
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
    """The share of the largest class: what guessing it always would score."""
    return float(points.labels.bincount().max()) / len(points.labels)


# --- telling -----------------------------------------------------------------------------------------------------


def _told(
    seen: list[Snapshot],
    names: list[str],
    panels: list[list[Panel]],
    points: Scene,
    data: DataSet,
    block: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    return {
        "data": data.name,
        "block": block,
        "t": options.at,
        "points": len(points.labels),
        "largest_class": _largest(points),
        "seed": options.seed,
        "checkpoints": [
            {
                "checkpoint": name,
                **describe(probed),
                "separability": [{"guidance_scale": panel.guidance_scale, **panel.score._asdict()} for panel in row],
            }
            for name, probed, row in zip(names, seen, panels, strict=True)
        ],
    }


def parser() -> argparse.ArgumentParser:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser(prog="raysweep features", description=__doc__, formatter_class=raw)
    found.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT", help="keys, folders or files; shown by step")
    add_checkpoint_options(found)
    found.add_argument("--blocks", type=int, nargs="+", metavar="K", help="counted from 1 (default: six of them)")
    times = [0.1, 0.3, 0.5, 0.7]
    found.add_argument("--times", type=float, nargs="+", default=times, metavar="T", help="default: 0.1 0.3 0.5 0.7")
    found.add_argument("--images", type=int, default=8, metavar="N", help="in blocks.png (default: 8)")
    found.add_argument("--block", type=int, metavar="K", help="the teacher's, which guides (default: at 2/3 of depth)")
    scales = [0.0, 1.0, 10.0, 30.0]
    found.add_argument("--scales", type=float, nargs="+", default=scales, metavar="W", help="ω (default: 0 1 10 30)")
    found.add_argument("--at", type=float, default=0.5, metavar="T", help="time of guidance.png (default: 0.5)")
    found.add_argument("--points", type=int, default=450, metavar="N", help="images in guidance.png (default: 450)")
    found.add_argument("--out", type=Path, default=Path("features"), metavar="FOLDER", help="default: features")
    found.add_argument("--seed", type=int, default=0, metavar="N", help="of images, noise and t-SNE (default: 0)")
    return found
