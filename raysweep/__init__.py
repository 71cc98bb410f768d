"""raysweep: sweeps over diffusion-transformer training in which no step is computed twice.

    space = raysweep.load("search_spaces/table5.yaml", profile="laptop")
    raysweep.plan(space).grid.together.steps
    study = raysweep.sweep(space, storage="runs")
    study.best.params

Importing this package takes milliseconds and starts nothing: each function imports what it needs when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

from raysweep.errors import SweepError, UserError

if TYPE_CHECKING:
    from raysweep.planning.plan import Plan
    from raysweep.report.study import Study
    from raysweep.space.space import Space

__version__ = "0.1.0"
__all__ = ["SweepError", "UserError", "load", "open_study", "plan", "sweep"]


def load(path: str | PathLike[str], profile: str = "cluster", overrides: Mapping[str, Any] | None = None) -> Space:
    """Read and check a search space.

    Args:
        path: a YAML file, e.g. `search_spaces/table5.yaml`.
        profile: the size: `cluster`, `laptop` or `smoke`.
        overrides: values by dotted key, e.g. `{"search.trials": 30}`. They win over the profile and the file.

    Raises:
        UserError: the file or an override is wrong; the message names file, line and key and says what would be right.
    """
    from raysweep.space.space import load as load_space

    return load_space(path, profile, overrides or {})


def plan(*spaces: Space) -> Plan:
    """Compute what a sweep of these search spaces would train and cost. This needs no GPU, no Ray and no data.

    Several spaces share their work, as in `raysweep run A.yaml B.yaml --plan`.
    """
    from raysweep.planning.plan import Plan

    return Plan(spaces)


def sweep(
    space: Space,
    storage: str | PathLike[str] = "runs",
    address: str = "local",
    tracking_uri: str | None = None,
    verify_sharing: float = 0.0,
    extend: bool = False,
) -> Study:
    """Run a sweep until its tables are written. The same call continues a stopped sweep; nothing that the storage has
    is computed again.

    Progress goes to stderr. Ctrl-C commits what is being trained, then raises KeyboardInterrupt.

    Args:
        space: from `load`.
        storage: a folder or URI for checkpoints, journals and reports.
        address: a Ray cluster, `auto` for this machine's, `local` to start Ray on this machine and end it afterwards.
        tracking_uri: MLflow's address; None: a SQLite file in the storage.
        verify_sharing: the share of segments, 0 to 1, that are trained a second time and compared bit by bit.
        extend: whether to continue the study although its search space has changed.

    Raises:
        UserError: the space cannot be run here; nothing has been written.
        SweepError: the sweep cannot go on; what is finished is kept.
    """
    from rich.console import Console

    from raysweep.driver import SweepOptions, run_sweep
    from raysweep.report.study import Study

    options = SweepOptions(str(storage), address, tracking_uri, verify_sharing, extend)
    (result,) = run_sweep([space], options, Console(stderr=True)).studies
    return Study(result.study, result.summary)


def open_study(storage: str | PathLike[str], name: str) -> Study:
    """Read a study, running or ended, from its journal. Nothing is started or written.

    Args:
        storage: where the sweep keeps its checkpoints and journals.
        name: the study's name, or the beginning of it: `table5` or `table5-laptop-1b2c3d4e`.

    Raises:
        UserError: there is no such study, or there are several.
    """
    from raysweep.report.study import Study

    return Study.open(str(storage), name)
