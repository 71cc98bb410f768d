"""Which samplers can search a space. Checked when the space is loaded, before anything starts."""

from __future__ import annotations

from typing import Any, Literal

from raysweep.space.domains import all_domains, unconditional_domains
from raysweep.space.explain import WrongValue
from trainables.config import ProbeSpec

Sampler = Literal["tpe", "gp", "cmaes", "qmc", "random", "grid"]


def check_sampler(sampler: Sampler, tree: Any) -> None:
    """Refuse a space that `sampler` cannot search, or would never finish.

    Raises:
        WrongValue: the message says what is wrong and what would help.
    """
    if sampler == "grid":
        for path, domain in all_domains(tree).items():
            if domain.kind in ("uniform", "log_uniform"):
                message = f"a grid cannot hold every number of a {domain.kind}; list the values to try as a choice"
                raise WrongValue(("trial", *path.split(".")), message)
    if sampler == "cmaes":
        numeric = [domain for domain in unconditional_domains(tree).values() if domain.ordered]
        if all(len(domain.options) == 1 for domain in numeric):
            message = "cmaes needs a numeric domain outside the options of choices, and there is none; use tpe"
            raise WrongValue(("search", "sampler"), message)


def check_second_objective(objective: str | None, sampler: Sampler, probe: ProbeSpec) -> None:
    """Refuse a second objective that is not measured, or that `sampler` cannot handle.

    Raises:
        WrongValue: the message says what is wrong and what would help.
    """
    path = ("search", "second_objective")
    if objective and sampler == "cmaes":
        raise WrongValue(path, "cmaes optimizes a single objective; use tpe or gp, or leave this out")
    if objective == "is" and "is" not in probe.metrics:
        raise WrongValue(path, "IS is not among probe.metrics; add it there, or leave this out")
