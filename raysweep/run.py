"""`python -m raysweep.run SPACE.yaml`: a sweep from its search space to its table. The same command again carries
on."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from raysweep import launch, report
from raysweep.command import guarded
from raysweep.errors import UserError
from raysweep.profile import PROFILES
from raysweep.progress import Progress
from raysweep.proposals import Proposals
from raysweep.results import summary
from raysweep.search import search
from raysweep.space import Space, load
from raysweep.store import Store
from raysweep.study import Study
from raysweep.tracking import Mirror, check_uri
from trainables import catalog


def main(arguments: list[str] | None = None) -> int:
    """Run a sweep; returns the exit code: 0 done, 1 failure, 2 the user's mistake, 130 interrupted."""
    return guarded(sweep, _parser().parse_args(arguments))


def sweep(options: argparse.Namespace, console: Console) -> int:
    """Check everything, then run, then write what people read."""
    space = load(Path(options.space), options.profile, options.set)
    check_here(space)
    if options.tracking_uri:
        check_uri(options.tracking_uri)
    store = Store(options.storage)
    store.check_writable()
    tracking_uri = options.tracking_uri or f"sqlite:///{_local_folder(store) / 'mlflow.db'}"
    study = Study(space, store)
    computed, mirror = _run(study, tracking_uri, options.address, Progress(study, console))

    result = summary(study)
    result["steps"] |= {"computed": computed, "reused": result["steps"]["without_sharing"] - computed}
    result["tracking_uri"] = tracking_uri
    files = report.write(study, result)
    mirror.sync()
    mirror.close(files, study.best)
    if options.json:
        print(json.dumps(result))
    else:
        report.show(study, result, files, out := Console())
        out.print(f"MLflow: .venv/bin/mlflow ui --backend-store-uri {tracking_uri}", highlight=False, soft_wrap=True)
    return 0 if study.best else 1


def check_here(space: Space) -> None:
    """Refuse a space whose data or detector this machine lacks.

    Raises:
        UserError: what is missing, and how to get it.
    """
    for data in sorted({space.trial(point)[0].data for point in space.points(most=500)}):
        try:
            catalog.identity(data)
        except LookupError as error:
            raise UserError(f"trial.data: {error}; use --profile laptop, which brings its own data") from None
    if space.probe.missing:
        raise UserError(f"probe.detector: {space.probe.missing}")


def _run(study: Study, tracking_uri: str, address: str, progress: Progress) -> tuple[int, Mirror]:
    """The part that needs Ray; returns how many steps were computed, and the mirror of it all."""
    with launch.cluster(study.space.launch, address):
        space = study.space
        reference = (space.trial({})[0].data, space.probe.detector)
        lanes = launch.open_lanes(space.launch, study.store.uri, study.milestones, reference)
        # While the lanes come up: both take seconds to make their databases.
        folder = _local_folder(study.store, "studies", space.id)
        proposals = Proposals(study, f"sqlite:///{folder / 'optuna.db'}")
        mirror = Mirror(study, tracking_uri)
        mirror.sync()
        study.watchers.append(mirror.watch)
        with progress.shown(lanes.snapshot):
            search(study, proposals, lanes.dispatcher)
        computed: int = lanes.snapshot()["computed_steps"]
        lanes.close()
    return computed, mirror


def _local_folder(store: Store, *parts: str) -> Path:
    folder = store.local(*parts) or store.cache.joinpath(*parts)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m raysweep.run", description=__doc__)
    parser.add_argument("space", help="the search space, e.g. search_spaces/table5.yaml")
    parser.add_argument("--profile", default="cluster", help=f"the size: {', '.join(PROFILES)} (default: cluster)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the space")
    parser.add_argument(
        "--storage", default="runs", metavar="URI", help="folder or URI for checkpoints (default: runs)"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow (default: a SQLite file in the storage)")
    parser.add_argument("--address", default="local", help="a Ray cluster, `auto` for this machine's (default: local)")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, last on stdout")
    return parser


if __name__ == "__main__":
    sys.exit(main())
