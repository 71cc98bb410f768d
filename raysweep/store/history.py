"""A history: the canonical description of all that determines a run's weights at a step, and the key that names it.

A history contains everything that affects the numbers, including the history of a teacher, with the phases cut off at
the step. It does not contain machine, paths, number of workers, logging or probing. A change of numerics that leaves
all descriptions as they are must increase `NUMERICS`.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from trainables.config import ProbeSpec, Recipe, Run
from trainables.datasets import catalog

NUMERICS = 2
_SAME_NAME = sorted(set(Recipe.model_fields) - {"data"})


def describe(run: Run, step: int) -> dict[str, Any]:
    """The history of `run` at `step`, as plain data that JSON can hold.

    Raises:
        ValueError: the step is not between 0 and the run's end.
        LookupError: the run's data set or encoder is not on this machine.
    """
    if not 0 <= step <= run.steps:
        raise ValueError(f"step {step} is outside the run's 0 to {run.steps}")
    recipe = run.model_dump(mode="json", include=set(_SAME_NAME))
    phases, begins = [], 0
    for phase in run.phases:
        if begins >= step:
            break
        described = phase.model_dump(mode="json", include={"term", "projector_width"})
        described["until"] = min(phase.until, step)
        if phase.encoder:
            described["encoder"] = catalog.encoder_identity(phase.encoder.kind, phase.encoder.path)
            if pictures := catalog.pictures_identity(run.data):  # the images that the encoder reads
                described["pictures"] = pictures
        if phase.teacher:
            teacher = phase.teacher
            described["teacher"] = {"history": describe(teacher.run, teacher.step), "weights": teacher.weights}
            if teacher.precision:
                described["teacher"]["precision"] = teacher.precision
        phases.append(described)
        begins = phase.until
    return {**recipe, "numerics": NUMERICS, "data": catalog.identity(run.data), "step": step, "phases": phases}


def cut(description: dict[str, Any], step: int) -> dict[str, Any]:
    """The description of the same run at an earlier step."""
    phases, begins = [], 0
    for phase in description["phases"]:
        if begins < step:
            phases.append({**phase, "until": min(phase["until"], step)})
        begins = phase["until"]
    return {**description, "step": step, "phases": phases}


def canonical(description: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces, no NaN."""
    return json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)


def key_of(description: Any) -> str:
    """SHA-256, in hex, of a canonical description."""
    return hashlib.sha256(canonical(description).encode()).hexdigest()


def key(run: Run, step: int) -> str:
    """The name of `run`'s checkpoint at `step`.

    Raises:
        ValueError, LookupError: as `describe`.
    """
    return key_of(describe(run, step))


def trunk(run: Run, step: int) -> str:
    """The name of `run`'s history up to step `step`, without where it ends: two runs have equal histories at a step
    exactly when their trunks there are equal. `step` is at least 1.

    Raises:
        ValueError, LookupError: as `describe`.
    """
    return trunk_of(describe(run, step))


def trunk_of(description: dict[str, Any]) -> str:
    """The name of the trunk on which a described history lies."""
    *before, last = description["phases"]
    last = {name: value for name, value in last.items() if name != "until"}
    return key_of({name: value for name, value in description.items() if name != "step"} | {"phases": [*before, last]})


def probe_key(run: Run, step: int, spec: ProbeSpec) -> str:
    """The name of a probe's record, from the checkpoint that is probed and the probe's spec."""
    return key_of({"checkpoint": key(run, step), "probe": spec.described()})
