"""Batches per second from a prepared set, compared with a loader of one .npy file per image; memory of 1 and 4 ranks.

    python benchmarks/reading.py [--images 20000] [--batch 256] [--batches 60] [--folder DISK]
    python benchmarks/reading.py --imagenet --folder DISK        # 1,281,167 x 4x32x32, 20 GiB: open, shuffle, read

The other loader is re-created from REPA's description: latents as float32 mean and standard deviation, one file per
image, torch's DataLoader with shuffling and four workers. It does not read the images that REPA also reads, so that
both loaders read the same numbers. It is timed without workers as well. Cold: the files are first dropped from the
kernel's cache. Ours is timed as training uses it: the rows of the next step are announced, and there are no workers.
Memory is that of all processes: unique to each (USS), and its part of what is shared (PSS).
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader, Dataset

from trainables.datasets import prepared
from trainables.datasets.latent_files import content_sha256, write_shard
from trainables.datasets.latent_set import LatentSet, load_latents
from trainables.draws import draw_images

SHAPE, CLASSES, SHARD, IMAGENET = (4, 32, 32), 1000, 4096, 1_281_167


def write_set(folder: Path, count: int) -> None:
    """A prepared set of noise. Full shards are alike, so that writing one is a matter of the disk."""
    draw = np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    files, shards = {}, []
    latent = draw.normal(size=(SHARD, 2, *SHAPE)).astype(np.float16)
    label = draw.integers(0, CLASSES, SHARD).astype(np.int32)
    for number, first in enumerate(range(0, count, SHARD)):
        name, size = f"shards/{number:05}.arrow", min(SHARD, count - first)
        columns = {"latent": latent[:size], "label": label[:size], "source": [f"{n:08}" for n in range(size)]}
        write_shard(folder / name, columns)
        if number == 0 or size < SHARD:
            known = {"bytes": (folder / name).stat().st_size, "sha256": prepared._sha256(folder / name)}
            content = {"images": size, "sha256": content_sha256(columns)}
        files[name] = known
        shards.append(content)
    content = {
        "latent_shape": list(SHAPE),
        "num_classes": CLASSES,
        "mirrored": False,
        "shift": [0.0] * 4,
        "scale": [0.18215] * 4,
        "autoencoder": "none",
        "shards": shards,
    }
    made = prepared.Prepared(str(folder), content, None, files, {"source": "noise", "class_names": []})
    (folder / prepared.MANIFEST).write_bytes(made.spell())


def write_npy(folder: Path, count: int) -> None:
    """The same shape as REPA has it: a thousand files a folder, and labels in one JSON."""
    moments = np.random.default_rng(0).normal(size=(2 * SHAPE[0], *SHAPE[1:])).astype(np.float32)
    labels = []
    for number in range(count):
        name = f"{number // 1000:05}/img-mean-std-{number:08}.npy"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, moments)
        labels.append([name, number % CLASSES])
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))


class PerImageFiles(Dataset):  # type: ignore[type-arg]
    """One file an image."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.labels = json.loads((folder / "dataset.json").read_bytes())["labels"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        name, label = self.labels[index]
        return torch.from_numpy(np.load(self.folder / name)), torch.tensor(label)


def ours(data: LatentSet, batch: int, seed: int = 0) -> Iterator[Any]:
    """Batches as the training loop takes them."""
    step, noise = 0, torch.zeros(batch, *SHAPE)
    whose = {"batch_size": batch, "num_images": data.num_images}
    while True:
        indices, flipped = draw_images(seed, step, **whose)
        yield data.sample(indices, noise), data.labels(indices)
        step += 1
        data.expect(*draw_images(seed, step + 1, **whose))


def theirs(folder: Path, batch: int, workers: int) -> Iterator[Any]:
    """Batches of (mean + std * noise) * factor from one file an image."""
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more than there are cores
    loader = DataLoader(PerImageFiles(folder), batch, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        for moments, labels in loader:
            mean, std = moments.chunk(2, dim=1)
            yield (mean + std * torch.zeros_like(std)) * 0.18215, labels


def forget(folder: Path) -> None:
    """Have the kernel drop a folder's files from its cache."""
    os.sync()
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def rate(batches: Iterator[Any], count: int) -> float:
    """Batches per second, the first one apart: workers start with it."""
    next(batches)
    began = time.perf_counter()
    for _ in range(count):
        next(batches)
    return count / (time.perf_counter() - began)


def memory_mib(pid: int) -> dict[str, float]:
    """USS and PSS of a process and its children, in MiB."""
    memory = {"uss": 0.0, "pss": 0.0}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in ("Private_Clean", "Private_Dirty"):
            memory["uss"] += int(value.split()[0]) / 1024
        if name == "Pss":
            memory["pss"] += int(value.split()[0]) / 1024
    for child in children:
        below = memory_mib(int(child))
        memory = {name: memory[name] + below[name] for name in memory}
    return memory


def _rank(kind: str, folder: str, batch: int, count: int, done: Any, go: Any) -> None:
    torch.set_num_threads(1)
    batches = ours(load_latents(folder, Path(folder)), batch) if kind == "ours" else theirs(Path(folder), batch, 4)
    for _ in range(count):
        next(batches)
    done.put(os.getpid())
    go.wait()


def ranks(kind: str, folder: Path, batch: int, count: int, number: int) -> dict[str, float]:
    """Memory of so many processes that have read, with their workers."""
    context = multiprocessing.get_context("spawn")
    done, go = context.Queue(), context.Event()
    processes = [context.Process(target=_rank, args=(kind, str(folder), batch, count, done, go)) for _ in range(number)]
    for process in processes:
        process.start()
    pids = [done.get(timeout=300) for _ in processes]
    memory = [memory_mib(pid) for pid in pids]
    go.set()
    for process in processes:
        process.join()
    return {name: sum(rank[name] for rank in memory) for name in ("uss", "pss")}


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Ours and theirs, cold and warm, in turns."""
    arrow, npy = options.folder / "arrow", options.folder / "npy"
    write_set(arrow, options.images)
    write_npy(npy, options.images)
    load_latents(str(arrow), options.folder)  # compared with its manifest once
    kinds: dict[str, Callable[[], Iterator[Any]]] = {
        "ours": lambda: ours(load_latents(str(arrow), options.folder), options.batch),
        "files, 4 workers": lambda: theirs(npy, options.batch, 4),
        "files, no workers": lambda: theirs(npy, options.batch, 0),
    }
    rates: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": []} for name in kinds}
    for _ in range(options.repeats):
        for name, make in kinds.items():
            for state in ("cold", "warm"):
                if state == "cold":
                    forget(options.folder)
                rates[name][state].append(rate(make(), options.batches))
    table = Table(title=f"{options.images:,} images, batches of {options.batch}, medians of {options.repeats}")
    for column in ("loader", "cold, batches/s", "warm, batches/s", "ours is times as fast, cold", "warm"):
        table.add_column(column, justify="left" if column == "loader" else "right")
    median = {name: {s: statistics.median(v) for s, v in states.items()} for name, states in rates.items()}
    for name, states in median.items():
        ratio = {state: median["ours"][state] / states[state] for state in states}
        table.add_row(name, *(f"{states[s]:.1f}" for s in states), *(f"{ratio[s]:.1f}" for s in ratio))
    console.print(table)
    memory = Table(title="memory of all ranks together, MiB: USS (PSS)")
    for column in ("loader", "1 rank", "4 ranks"):
        memory.add_column(column, justify="left" if column == "loader" else "right")
    taken: dict[str, Any] = {}
    for kind, folder in (("ours", arrow), ("files", npy)):
        taken[kind] = {number: ranks(kind, folder, options.batch, 30, number) for number in (1, 4)}
        memory.add_row(kind, *(f"{taken[kind][n]['uss']:.0f} ({taken[kind][n]['pss']:.0f})" for n in (1, 4)))
    console.print(memory)
    return {"batches_per_s": median, "memory_mib": taken}


def imagenet(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Open, shuffle and read a set of ImageNet's size."""
    folder = options.folder / "imagenet"
    if not (folder / prepared.MANIFEST).is_file():
        write_set(folder, IMAGENET)
    results: dict[str, Any] = {}

    def timed(name: str, what: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        value = what()
        results[name] = time.perf_counter() - began
        return value

    before = memory_mib(os.getpid())["uss"]
    timed("first opening: every file compared, s", lambda: load_latents(str(folder), options.folder))
    prepared.read.cache_clear()
    began = time.perf_counter()
    data = load_latents(str(folder), options.folder)
    batches = ours(data, options.batch)
    next(batches)
    results["time to the first batch, s"] = time.perf_counter() - began
    timed("plan an epoch (its permutation), s", lambda: draw_images(0, 5004, batch_size=256, num_images=IMAGENET))
    results["batches/s, as cached as they are"] = rate(batches, options.batches)
    forget(folder)
    results["batches/s, cold"] = rate(ours(data, options.batch, seed=1), options.batches)
    results["USS beyond the start, MiB"] = memory_mib(os.getpid())["uss"] - before
    table = Table(title=f"{IMAGENET:,} images of {SHAPE}, {len(list((folder / 'shards').iterdir()))} shards")
    table.add_column("")
    table.add_column("", justify="right")
    for name, value in results.items():
        table.add_row(name, f"{value:,.2f}")
    console.print(table)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to measure (default: a temporary one)")
    parser.add_argument("--imagenet", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        if not options.imagenet or options.folder is None:
            options.folder = Path(temporary)
        print(json.dumps((imagenet if options.imagenet else compare)(options, Console())))


if __name__ == "__main__":
    main()
