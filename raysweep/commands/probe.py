"""`raysweep probe CHECKPOINT`: measure one checkpoint, of a sweep or of a reference repository."""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from raysweep.commands.checkpoints import add_checkpoint_options, open_checkpoint
from raysweep.commands.common import Parser, guarded, number_type
from raysweep.errors import UserError
from raysweep.execution.checkpoint_probe import CheckpointProbe
from raysweep.space.explain import explain
from raysweep.store.snapshots import choose_data, describe
from raysweep.store.store import Store
from trainables.config import ProbeSpec, error_name
from trainables.datasets import checks
from trainables.evaluation.probing import ProbeResult, save_grid
from trainables.redaction import public

DEFAULTS = ProbeSpec()


def main(arguments: list[str] | None = None) -> int:
    """Probe a checkpoint; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(evaluate, parser().parse_args(arguments))


def evaluate(options: argparse.Namespace, console: Console) -> None:
    """Check everything, draw and evaluate samples, and show the metrics."""
    if options.picture and not options.picture.absolute().parent.is_dir():
        raise UserError(f"--picture {options.picture}: there is no folder {options.picture.absolute().parent}")
    probe_spec(options, DEFAULTS.detector)  # raises if an option is wrong, before anything is loaded
    store = Store(options.storage)
    snapshot = open_checkpoint(options.checkpoint, store, options)
    data = choose_data([snapshot], options.data)
    spec = probe_spec(options, "effnet_lite0" if data.embedded else DEFAULTS.detector)
    if fault := checks.probe_fault(spec):
        raise UserError(f"--detector {spec.detector}: {_as_options(fault)}")
    probe = CheckpointProbe(snapshot, data, options.autoencoder, store)

    began = time.perf_counter()
    result = _run(probe, spec, console)
    seconds = time.perf_counter() - began
    if options.picture:
        save_grid(result.grid, options.picture, result.columns)
    facts = {
        "checkpoint": options.checkpoint,
        **describe(snapshot),
        "reference": spec.reference or f"training images of {public(data.name)}",
        "probe": spec.model_dump(mode="json"),
        "metrics": result.metrics,
        "seconds": round(seconds, 1),
        "picture": str(options.picture) if options.picture else None,
    }
    if options.json:
        print(json.dumps(facts))
    else:
        _show(facts, Console())


def _run(probe: CheckpointProbe, spec: ProbeSpec, console: Console) -> ProbeResult:
    """Run the probe with a progress bar of its samples."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("statistics of the real images", total=None)

        def progress(samples: int | None) -> None:
            if samples is None:
                bar.reset(task, description="samples", total=spec.samples)
            else:
                bar.update(task, completed=min(samples, spec.samples))

        return probe.run(spec, progress)


def probe_spec(options: argparse.Namespace, detector: str) -> ProbeSpec:
    """The probe that the options describe, with `detector` where they name none.

    Raises:
        UserError: a value is not allowed.
    """
    given = {name: getattr(options, name) for name in ProbeSpec.model_fields if getattr(options, name) is not None}
    given.setdefault("detector", detector)
    try:
        return checks.pinned(ProbeSpec(**given))
    except ValidationError as error:
        wrong = explain(error, given, ProbeSpec)
        raise UserError(f"--{wrong.path[0].replace('_', '-')}: {wrong}") from None


def _as_options(message: str) -> str:
    """Turn a message about keys of a search space into one about options of this command."""
    return re.sub(r"--set probe\.(\w+)=", lambda key: f"--{key[1].replace('_', '-')} ", message)


def _show(facts: dict[str, Any], console: Console) -> None:
    spec = facts["probe"]
    step = "at an unknown step" if facts["step"] is None else f"at step {facts['step']}"
    guidance = f", guidance {spec['guidance_scale']:g} for t in {spec['guidance_interval']}"
    how = f"{spec['samples']} samples by {spec['sampler']} in {spec['steps']} steps"
    how += guidance if spec["guidance_scale"] != 1 else ", no guidance"
    table = Table(title=f"{facts['backbone']} {step}", title_justify="left", title_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("standard error", justify="right")
    metrics = facts["metrics"]
    for name in ProbeSpec.model_validate(spec).measured:
        table.add_row(name, f"{metrics[name]:.4f}", f"{metrics[error_name(name)]:.4f}")
    console.print(table)
    for name, what in {
        "checkpoint": facts["checkpoint"],
        "weights": f"{facts['weights']}, {facts['parameters']:,} parameters, source {facts['source']}",
        "reference": f"{facts['reference']} through {spec['detector']}",
        "probe": f"{how}, seed {spec['seed']}, {facts['seconds']} s",
        **({"picture": facts["picture"]} if facts["picture"] else {}),
    }.items():
        console.print(f"{name + ':':12}{what}", highlight=False, soft_wrap=True, markup=False)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = Parser(prog="raysweep probe", description=__doc__)
    parser.add_argument("checkpoint", help="a history key or its beginning, a checkpoint's folder, or a file")
    add_checkpoint_options(parser)
    parser.add_argument(
        "--autoencoder", type=Path, metavar="PATH", help="a folder in diffusers' format (default: the data set's)"
    )
    parser.add_argument("--detector", help="inception, or effnet_lite0 (default with embedded data)")
    parser.add_argument(
        "--detector-weights", metavar="FILE", help="the Inception's weights (default: where pytorch-fid keeps them)"
    )
    parser.add_argument(
        "--detector-sha256",
        metavar="HEX",
        help="beginning of the SHA-256 of --detector-weights, if they are other weights",
    )
    parser.add_argument(
        "--resize",
        choices=("tensorflow", "clean", "pytorch"),
        help="how images are resized for the Inception: as ADM, clean-fid or pytorch-fid do",
    )
    parser.add_argument(
        "--reference",
        metavar="FILE.npz",
        help="reference statistics: ADM's, or a file with mu and sigma (default: the data set)",
    )
    parser.add_argument(
        "--reference-sha256", metavar="HEX", help="beginning of the SHA-256 of --reference, to verify it"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="fid, sfid, is, kid, precision, recall")
    samplers = ("euler", "heun", "euler_maruyama")
    parser.add_argument("--sampler", choices=samplers, help=f"default: {DEFAULTS.sampler}")
    for name, kind in {"samples": int, "steps": int, "batch-size": int, "seed": int, "timestep-shift": float}.items():
        default = getattr(DEFAULTS, name.replace("-", "_"))
        parser.add_argument(f"--{name}", type=number_type(kind=kind), metavar="N", help=f"default: {default}")
    parser.add_argument(
        "--guidance-scale", type=number_type(), metavar="S", help="classifier-free guidance; 1 is none (default: 1)"
    )
    parser.add_argument(
        "--guidance-interval",
        type=number_type(),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="times t between which guidance acts; 0 is data",
    )
    parser.add_argument("--picture", type=Path, metavar="FILE.png", help="write a grid of samples to this file")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return parser
