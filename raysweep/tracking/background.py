"""Keeps MLflow up to date in a thread of its own, so that a sweep never waits for it. What a server misses while it is
slow, full or dead is logged later, by this sweep or by the next one."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

from raysweep.errors import UserError
from raysweep.retry import Notify
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from raysweep.tracking.mirror import Mirror
from trainables.errors import one_line
from trainables.redaction import public

RETRY_S = 5.0  # between attempts to reach an MLflow that does not answer
POLL_S = 60.0  # between looks for new checkpoints of running trials


class BackgroundMirror:
    """Mirrors a study in MLflow: what it already contains, and every later change.

    Args:
        uri: MLflow's tracking URI.
        notify: receives a message when MLflow stops answering, and one when it answers again and is up to date.

    Raises:
        UserError: there is no MLflow at `uri`, and the study is new, so the address is probably wrong.
    """

    def __init__(self, study: StudyState, uri: str, notify: Notify):
        self._study, self._uri, self._notify = study, uri, notify
        self._mirror: Mirror | None = None
        self._pending = {trial.number: _copy(trial) for trial in study.trials}
        self._results: tuple[list[Path], TrialState | None] | None = None
        self._lock, self._wake = threading.Lock(), threading.Event()
        self._finishing = self._abandoned = False
        self._unreachable = False
        try:
            self._mirror = Mirror(study, uri)
        except UserError as error:
            if not study.trials:
                raise
            self._note_failure(error)
        self._wake.set()
        study.watchers.append(self._watch)
        self._thread = threading.Thread(target=self._run, daemon=True, name="raysweep-mlflow")
        self._thread.start()

    def finish(self, files: list[Path], best: TrialState | None, timeout_s: float = 60.0) -> bool:
        """Log what is left, with the files of the report. Returns whether everything was logged within `timeout_s`
        seconds; if not, the next command logs the rest."""
        self._results = (files, best)
        self._finishing = True
        self._wake.set()
        self._thread.join(timeout=timeout_s)
        self._abandoned = True
        done = not self._pending and self._results is None
        if not done:
            self._notify(f"MLflow at {public(self._uri)} is not up to date; the same command, run again, logs the rest")
        return done

    def _watch(self, trial: TrialState) -> None:
        with self._lock:
            self._pending[trial.number] = _copy(trial)
        self._wake.set()

    def _run(self) -> None:
        while not self._abandoned and (self._pending or self._results or not self._finishing):
            if not self._wake.wait(POLL_S):
                self._add_running()
            self._wake.clear()
            try:
                self._log_pending()
            except Exception as error:  # MLflow's client raises whatever its server, database or network raised
                self._mirror = None
                self._note_failure(error)
                time.sleep(RETRY_S)
                self._wake.set()

    def _add_running(self) -> None:
        """Running trials may have committed checkpoints since their last probe, so their curves continue."""
        with self._lock:
            running = [trial for trial in self._study.trials if not trial.ended and not trial.waits]
            self._pending |= {trial.number: _copy(trial) for trial in running}

    def _log_pending(self) -> None:
        self._mirror = self._mirror or Mirror(self._study, self._uri)
        while self._pending:
            with self._lock:
                number, trial = next(iter(self._pending.items()))
                # It moves to the end of the queue, so that a trial that MLflow refuses does not block the others.
                self._pending[number] = self._pending.pop(number)
            self._mirror.log_trial(trial)
            with self._lock:
                if self._pending[number] is trial:
                    del self._pending[number]
        if self._results:
            self._mirror.close(*self._results)
            self._results = None
        if self._unreachable:
            self._unreachable = False
            self._notify("MLflow answers again; everything is logged")

    def _note_failure(self, error: Exception) -> None:
        if not self._unreachable:
            self._unreachable = True
            reason = public(one_line(error))
            self._notify(f"MLflow does not answer; the missing data will be logged later: {reason}")


def _copy(trial: TrialState) -> TrialState:
    """The trial as it is now; the sweep's thread goes on changing the original."""
    now = copy.copy(trial)
    now.probes, now.decisions, now.probed_at = dict(trial.probes), dict(trial.decisions), dict(trial.probed_at)
    return now
