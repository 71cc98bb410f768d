"""`--verify-sharing`: shows whether reuse was exact, by training a sample of the segments again without a stop.

At a checkpoint one segment ends and others begin. Sharing is exact only if stopping there changes no bits. The replay
of a segment starts where the previous segment started, trains past the checkpoint between them without a stop, and must
arrive at the same bits. If all segments of a run and of its teachers are certified, the run has the weights that a
training without any sharing would have had.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray
from ray.exceptions import RayActorError

from raysweep.execution.actor import call
from raysweep.execution.tasks import TaskFailed
from raysweep.retry import Notify, retry_storage
from raysweep.space import runs
from raysweep.store import history
from raysweep.store.store import Store
from raysweep.study.state import StudyState
from trainables.config import Run


@dataclass
class Certificates:
    """What the replays of a sweep showed, by the checkpoint's key.

    Attributes:
        exact: the replay had the same bits.
        differ: it had other bits.
        not_compared: the replay was not possible, with the reason.
    """

    exact: list[str] = field(default_factory=list)
    differ: list[str] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """As plain data."""
        return vars(self)

    def __str__(self) -> str:
        text = f"Replayed without sharing: {len(self.exact)} segments had the same bits"
        if self.differ:
            text += f"; {len(self.differ)} HAD OTHER BITS: {', '.join(key[:12] for key in self.differ)}"
        if self.not_compared:
            text += f"; {len(self.not_compared)} not compared: {', '.join(sorted(set(self.not_compared.values())))}"
        return text


def certify(studies: Sequence[StudyState], share: float, actor: Any, notify: Notify) -> Certificates:
    """Replay a sample of the segments behind the trials of `studies`, and wait for the results.

    Args:
        share: the share of the segments to replay, from 0 to 1.
        actor: the handle of the `DispatcherActor`.
        notify: receives the reason for waiting while the storage cannot be used.

    Raises:
        SweepError: the storage stayed unusable for too long.
    """
    certificates, asked = Certificates(), {}
    for run, step in _sample(studies, share, notify):
        key = history.key(run, step)
        if key not in asked:  # however many there are: the calls of lanes have places of their own in the actor
            asked[key] = (run, step, actor.dispatcher.remote("replay", run, step))
    for key, (run, step, answer) in asked.items():
        try:
            try:
                certificate = ray.get(answer)
            except RayActorError:  # the restarted actor does not know of the request
                certificate = call(actor, "dispatcher", "replay", run, step)
        except TaskFailed as error:
            certificates.not_compared[key] = str(error.args[0] if error.args else error)
            continue
        if certificate is None:
            certificates.not_compared[key] = "an earlier checkpoint is missing"
        elif certificate.exact is None:
            certificates.not_compared[key] = certificate.reason
        else:
            (certificates.exact if certificate.exact else certificates.differ).append(key)
    return certificates


def _sample(studies: Sequence[StudyState], share: float, notify: Notify) -> Iterator[tuple[Run, int]]:
    """A share of all segments, as (run, end). The key decides which ones, so that a repeated command takes the same."""
    for study in studies:
        for trial in study.distinct:
            if trial.state != "UNAVAILABLE" and trial.step:
                segments = partial(_segments, study.store, study.run(trial), trial.step)
                for run, step in retry_storage(segments, notify):
                    if int(history.key(run, step)[:8], 16) < share * 2**32:
                        yield run, step


def _segments(store: Store, run: Run, step: int) -> list[tuple[Run, int]]:
    """The ends of all segments behind `run` at `step`, its teachers' included, as they were trained."""
    needed = [(run, step), *((teacher.run, teacher.step) for teacher in runs.teachers(run))]
    return [(part, manifest.step) for part, end in needed for manifest in store.segments(part, end)]
