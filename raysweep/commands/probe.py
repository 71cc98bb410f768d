"""`raysweep probe CHECKPOINT`: metrics of one checkpoint, ours or a reference repository's."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raysweep.commands.checkpoints import add_checkpoint_options, choose_data, describe, open_checkpoint
from raysweep.commands.common import guarded
from raysweep.errors import UserError
from raysweep.space.explain import explain
from raysweep.store.store import Store
from trainables import snapshot
from trainables.config import ProbeSpec, error_name
from trainables.datasets import autoencoders, checks
from trainables.datasets.catalog import DataSet
from trainables.evaluation.probing import Probed, probe, save_grid
from trainables.snapshot import Snapshot
from trainables.training.loop import Context
from trainables.training.worker_cache import WorkerCache

DEFAULTS = ProbeSpec()


def main(arguments: list[str] | None = None) -> int:
    """Probe a checkpoint; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(evaluate, parser().parse_args(arguments))


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Check everything, then sample and judge, then show it."""
    if options.picture and not options.picture.absolute().parent.is_dir():
        raise UserError(f"--picture {options.picture}: there is no folder {options.picture.absolute().parent}")
    probe_spec(options, DEFAULTS.detector)  # before anything is loaded
    store = Store(options.storage)
    probed = open_checkpoint(options.checkpoint, store, options)
    data = choose_data(probed, options.data)
    spec = probe_spec(options, "effnet_lite0" if data.embedded else DEFAULTS.detector)
    if fault := checks.probe_fault(spec):
        raise UserError(f"--detector {spec.detector}: {_as_options(fault)}")
    worker_cache = WorkerCache(Context(snapshot.best_device()), store.cache)
    autoencoder = _autoencoder(worker_cache, options.autoencoder, probed, data)
    _make_cache(store)

    began = time.perf_counter()
    result = _judge(worker_cache, probed, spec, data, autoencoder, console)
    seconds = time.perf_counter() - began
    if options.picture:
        save_grid(result.grid, options.picture, result.columns)
    told = {
        "checkpoint": options.checkpoint,
        **describe(probed),
        "reference": spec.reference or f"training images of {data.name}",
        "probe": spec.model_dump(mode="json"),
        "metrics": result.metrics,
        "seconds": round(seconds, 1),
        "picture": str(options.picture) if options.picture else None,
    }
    if options.json:
        print(json.dumps(told))
    else:
        _show(told, Console())


def _judge(
    worker_cache: WorkerCache, probed: Snapshot, spec: ProbeSpec, data: DataSet, autoencoder: Any, console: Console
) -> Probed:
    """The sweep's own probe, with a bar of how many samples are drawn."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("statistics of the real images", total=None)
        try:
            reference = worker_cache.reference(data.name, spec)
        except (LookupError, ValueError) as error:  # a file that is the one that was named, and holds something else
            raise UserError(str(error.args[0])) from None
        bar.reset(task, description="samples", total=spec.samples)
        return probe(
            probed.backbone,
            spec,
            autoencoder=autoencoder,
            detector=worker_cache.detector(spec),
            reference=reference,
            latent_shape=probed.latent_shape,
            num_classes=probed.num_classes,
            device=worker_cache.context.device,
            path=probed.path,
            progress=lambda done: bar.update(task, completed=min(done, spec.samples)),
        )


def probe_spec(options: argparse.Namespace, detector: str) -> ProbeSpec:
    """The probe that the options ask for; `detector` where they name none.

    Raises:
        UserError: a value that makes no sense.
    """
    given = {name: getattr(options, name) for name in ProbeSpec.model_fields if getattr(options, name) is not None}
    given.setdefault("detector", detector)
    try:
        return checks.pinned(ProbeSpec(**given))
    except ValidationError as error:
        wrong = explain(error, given, ProbeSpec)
        raise UserError(f"--{wrong.path[0].replace('_', '-')}: {wrong}") from None


def _as_options(message: str) -> str:
    """A message about a search space's keys, for this command's options."""
    return re.sub(r"--set probe\.(\w+)=", lambda key: f"--{key[1].replace('_', '-')} ", message)


def _autoencoder(worker_cache: WorkerCache, path: Path | None, probed: Snapshot, data: DataSet) -> Any:
    if path is None:
        return worker_cache.autoencoder(data.name)
    if not (path / "config.json").is_file():
        raise UserError(f"--autoencoder {path}: no config.json there; give a folder of diffusers' AutoencoderKL")
    try:
        autoencoder = autoencoders.load_autoencoder(path).to(worker_cache.context.device)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--autoencoder {path}: {reason}; give a folder of diffusers' AutoencoderKL") from None
    if autoencoder.config.latent_channels != probed.latent_shape[0]:
        has, needed = autoencoder.config.latent_channels, probed.latent_shape[0]
        raise UserError(f"--autoencoder {path}: of {has} latent channels, but the checkpoint's latents have {needed}")
    return autoencoder


def _make_cache(store: Store) -> None:
    """Where the real images' statistics are kept."""
    with contextlib.suppress(OSError):
        store.cache.mkdir(parents=True, exist_ok=True)
    if not os.access(store.cache, os.W_OK):
        raise UserError(f"--storage {store.uri}: cannot write to its cache, {store.cache}; give another")


def _show(told: dict[str, Any], console: Console) -> None:
    spec = told["probe"]
    step = "at an unknown step" if told["step"] is None else f"at step {told['step']}"
    guidance = f", guidance {spec['guidance_scale']:g} for t in {spec['guidance_interval']}"
    how = f"{spec['samples']} samples by {spec['sampler']} in {spec['steps']} steps"
    how += guidance if spec["guidance_scale"] != 1 else ", no guidance"
    table = Table(title=f"{told['backbone']} {step}", title_justify="left", title_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    metrics = told["metrics"]
    for name in ProbeSpec.model_validate(spec).measured:
        table.add_row(name, f"{metrics[name]:.4f}", f"{metrics[error_name(name)]:.4f}")
    console.print(table)
    for name, what in {
        "checkpoint": told["checkpoint"],
        "weights": f"{told['weights']}, {told['parameters']:,} parameters, source {told['source']}",
        "reference": f"{told['reference']} through {spec['detector']}",
        "probe": f"{how}, seed {spec['seed']}, {told['seconds']} s",
        **({"picture": told["picture"]} if told["picture"] else {}),
    }.items():
        console.print(f"{name + ':':12}{what}", highlight=False, soft_wrap=True, markup=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(prog="raysweep probe", description=__doc__)
    found.add_argument("checkpoint", help="a history key or how it begins, a checkpoint's folder, or a file")
    add_checkpoint_options(found)
    found.add_argument("--autoencoder", type=Path, metavar="PATH", help="diffusers' folder (default: the data set's)")
    found.add_argument("--detector", help="inception, or effnet_lite0 (default with embedded data)")
    found.add_argument(
        "--detector-weights", metavar="FILE", help="the Inception's (default: where pytorch-fid has them)"
    )
    found.add_argument("--detector-sha256", metavar="HEX", help="how their SHA-256 begins, if they are others")
    found.add_argument(
        "--resize", choices=("tensorflow", "clean", "pytorch"), help="for the Inception: as ADM, clean-fid"
    )
    found.add_argument(
        "--reference", metavar="FILE.npz", help="ADM's, or any with mu and sigma (default: the data set)"
    )
    found.add_argument("--reference-sha256", metavar="HEX", help="how its SHA-256 begins, to be sure")
    found.add_argument("--metrics", nargs="+", metavar="NAME", help="fid, sfid, is, kid, precision, recall")
    samplers = ("euler", "heun", "euler_maruyama")
    found.add_argument("--sampler", choices=samplers, help=f"default: {DEFAULTS.sampler}")
    for name, kind in {"samples": int, "steps": int, "batch-size": int, "seed": int, "timestep-shift": float}.items():
        default = getattr(DEFAULTS, name.replace("-", "_"))
        found.add_argument(f"--{name}", type=kind, metavar="N", help=f"default: {default}")
    found.add_argument("--guidance-scale", type=float, metavar="S", help="classifier-free; 1 is none (default: 1)")
    found.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of t, where guidance acts; 0 is data"
    )
    found.add_argument("--picture", type=Path, metavar="FILE.png", help="write a grid of samples")
    found.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return found
