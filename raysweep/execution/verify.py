"""`--verify-sharing`: whether a reuse was exact, shown by training a sample of the stretches once more, uncut.

A checkpoint is where one stretch ends and others begin: whoever builds on it relies on that a stop changes nothing. The
replay of a stretch starts where the stretch before it started, goes through the checkpoint between them without a stop,
and must arrive at the same bits. Where all stretches of a run and of its teachers have such a certificate, the run's
weights are those that a training without any sharing would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError

from raysweep.execution.lanes import ask
from raysweep.execution.tasks import TaskFailed
from raysweep.space import runs
from raysweep.store import history
from raysweep.study.state import StudyState
from trainables.config import Run


@dataclass
class Certificates:
    """What the replays of a sweep showed, by the checkpoint's key."""

    exact: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)  # with the reason

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return vars(self)

    def __str__(self) -> str:
        told = f"Replayed without sharing: {len(self.exact)} stretches, the same bits"
        if self.differ:
            told += f"; {len(self.differ)} OTHER BITS: {', '.join(key[:12] for key in self.differ)}"
        if self.not_compared:
            told += f"; {len(self.not_compared)} not compared: {', '.join(sorted(set(self.not_compared.values())))}"
        return told


def certify(studies: Sequence[StudyState], share: float, dispatcher: Any) -> Certificates:
    """Have a sample of the stretches behind the trials of `studies` replayed, `share` of them, and wait for it."""
    asked = {}
    for study in studies:
        for trial in study.distinct:
            if trial.state != "UNAVAILABLE" and trial.step:
                for run, step in _segments(study.run(trial), trial.step, study.milestones):
                    key = history.key(run, step)
                    # The key decides, so that a repeated command looks at the same ones.
                    if int(key[:8], 16) < share * 2**32 and key not in asked:
                        asked[key] = (run, step, dispatcher.replay.remote(run, step))
    found = Certificates()
    for key, (run, step, answer) in asked.items():
        try:
            try:
                certificate = ray.get(answer)
            except RayActorError:  # its next incarnation knows nothing of the question
                certificate = ask(dispatcher, "replay", run, step)
        except TaskFailed as error:
            found.not_compared[key] = str(error.args[0] if error.args else error)
            continue
        if certificate is None:
            found.not_compared[key] = "what it came from is gone"
        elif certificate["exact"] is None:
            found.not_compared[key] = certificate["reason"]
        else:
            (found.exact if certificate["exact"] else found.differ).append(key)
    return found


def _segments(run: Run, step: int, milestones: Sequence[int]) -> Iterator[tuple[Run, int]]:
    """The ends of all stretches behind `run` at `step`, its teachers' too."""
    yield from ((run, end) for end in milestones if end <= step)
    for teacher in runs.teachers(run):
        yield from ((teacher.run, end) for end in milestones if end <= teacher.step)
