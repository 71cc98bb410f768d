"""What the samplers by name can do with a space, known before anything starts."""

from __future__ import annotations

from typing import Any, Literal

from raysweep.space.domains import always_open, domains
from raysweep.space.explain import WrongValue
from trainables.config import ProbeSpec

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"]


def check(sampler: Sampler, tree: Any) -> None:
    """Refuse a space in which `sampler` could do nothing, or never end.

    Raises:
        WrongValue: what is in its way, and what would help.
    """
    if sampler == "grid":
        for path, domain in domains(tree).items():
            if domain.kind in ("uniform", "log_uniform"):
                told = f"a grid cannot hold every number of a {domain.kind}; list those to try as a choice"
                raise WrongValue(("trial", *path.split(".")), told)
    if sampler == "cmaes" and not any(each.ordered and len(each.options) > 1 for each in always_open(tree).values()):
        told = "cmaes moves along numbers, and outside the options of choices none is searched here; use tpe"
        raise WrongValue(("search", "sampler"), told)


def check_second(objective: str | None, sampler: Sampler, probe: ProbeSpec) -> None:
    """Refuse a second objective that is not measured, or that `sampler` cannot weigh.

    Raises:
        WrongValue: what is in its way, and what would help.
    """
    path = ("search", "second_objective")
    if objective and sampler == "cmaes":
        raise WrongValue(path, "cmaes follows one objective; use tpe or gp, or leave this out")
    if objective == "is" and "is" not in probe.metrics:
        raise WrongValue(path, "IS is not among probe.metrics; add it there, or leave this out")
