"""MLflow kept up to date in a thread of its own, so that nothing waits for it: a server that is slow, full or dead is
told later, by this sweep or by the next."""

from __future__ import annotations

import copy
import threading
import time
from pathlib import Path

from raysweep.errors import UserError
from raysweep.retry import Notify
from raysweep.study.state import StudyState
from raysweep.study.trial import TrialState
from raysweep.tracking import Mirror
from raysweep.uris import public

RETRY_S = 5.0  # between attempts to reach an MLflow that does not answer
LOOK_S = 60.0  # between looks at what trials have published that are still under way


class Mirroring:
    """Mirrors a study from now on, all that it has already included.

    Args:
        uri: MLflow's tracking URI.
        tell: is told when MLflow does not answer, and when it does again.

    Raises:
        UserError: there is no MLflow at `uri`, and there never was one for this study: a wrong address.
    """

    def __init__(self, study: StudyState, uri: str, tell: Notify):
        self._study, self._uri, self._tell = study, uri, tell
        self._mirror: Mirror | None = None
        self._news = {trial.number: _still(trial) for trial in study.trials}
        self._results: tuple[list[Path], TrialState | None] | None = None
        self._lock, self._call = threading.Lock(), threading.Event()
        self._ending = self._leaving = False
        self._ailing = False
        try:
            self._mirror = Mirror(study, uri)
        except UserError as error:
            if not study.trials:
                raise
            self._ail(error)
        self._call.set()
        study.watchers.append(self._watch)
        self._thread = threading.Thread(target=self._keep, daemon=True, name="raysweep-mlflow")
        self._thread.start()

    def finish(self, files: list[Path], best: TrialState | None, patience_s: float = 60.0) -> bool:
        """Mirror what is left and attach the results; whether that was done in time. The rest waits for the next
        command."""
        self._results = (files, best)
        self._ending = True
        self._call.set()
        self._thread.join(timeout=patience_s)
        self._leaving = True
        done = not self._news and self._results is None
        if not done:
            self._tell(f"MLflow at {public(self._uri)} is not up to date; the same command tells it the rest")
        return done

    def _watch(self, trial: TrialState) -> None:
        with self._lock:
            self._news[trial.number] = _still(trial)
        self._call.set()

    def _keep(self) -> None:
        while not self._leaving and (self._news or self._results or not self._ending):
            if not self._call.wait(LOOK_S):
                self._look()
            self._call.clear()
            try:
                self._say_all()
            except Exception as error:  # MLflow's client raises what its server, its database or its network did
                self._mirror = None
                self._ail(error)
                time.sleep(RETRY_S)
                self._call.set()

    def _look(self) -> None:
        """Trials that are being trained may have published since their last probe: their curves go on."""
        with self._lock:
            under_way = [trial for trial in self._study.trials if not trial.ended and not trial.waits]
            self._news |= {trial.number: _still(trial) for trial in under_way}

    def _say_all(self) -> None:
        self._mirror = self._mirror or Mirror(self._study, self._uri)
        while self._news:
            with self._lock:
                number, trial = next(iter(self._news.items()))
                self._news[number] = self._news.pop(number)  # to the end: one that is refused holds up no other
            self._mirror.sync_trial(trial)
            with self._lock:
                if self._news[number] is trial:
                    del self._news[number]
        if self._results:
            self._mirror.close(*self._results)
            self._results = None
        if self._ailing:
            self._ailing = False
            self._tell("MLflow answers again and has been told what it missed")

    def _ail(self, error: Exception) -> None:
        if not self._ailing:
            self._ailing = True
            said = public(str(error).splitlines()[0] if str(error) else repr(error))
            self._tell(f"MLflow does not answer, it is told later: {said}")


def _still(trial: TrialState) -> TrialState:
    """The trial as it is now, for a thread to read."""
    still = copy.copy(trial)
    still.probes, still.decisions, still.probed_at = dict(trial.probes), dict(trial.decisions), dict(trial.probed_at)
    return still
