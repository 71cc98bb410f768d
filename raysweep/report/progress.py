"""What is shown while a sweep runs: a live table on a terminal, otherwise a line for each trial that ends."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from raysweep.study.activity import Activity, LaneActivity
from raysweep.study.state import StudyState
from raysweep.study.summary import STATE_WORDS
from raysweep.study.trial import TrialState
from trainables.redaction import public

REFRESH_S = 1.0
ROWS = 14  # of the live table
MANY = 1000  # trials at a rung for which the share that continues is computed


class Progress:
    """Shows how far studies are.

    Attributes:
        latest: what the lanes were doing at the last refresh.
    """

    def __init__(self, studies: Sequence[StudyState], console: Console):
        self.studies, self.console = studies, console
        self.latest = Activity()
        self._began = time.monotonic()
        self._noted = 0

    @contextlib.contextmanager
    def shown(self, activity: Callable[[], Activity]) -> Iterator[None]:
        """Keep the display up to date inside a `with` block, in a thread of its own.

        Args:
            activity: returns what the lanes are doing; it is called every `REFRESH_S` seconds.
        """
        stop = threading.Event()
        live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None

        def refresh() -> None:
            while not stop.wait(REFRESH_S):
                self.latest = activity()
                for note in self.latest.notes[self._noted :]:
                    self.console.print(Text(public(note), style="yellow"))
                self._noted = len(self.latest.notes)
                if live:
                    live.update(Group(*map(self._table, self.studies), *self._other_drivers()), refresh=True)

        thread = threading.Thread(target=refresh, daemon=True)
        for study in [] if live else self.studies:
            study.watchers.append(partial(self._line, study))
        with live or contextlib.nullcontext():
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join(timeout=5)

    def _line(self, study: StudyState, trial: TrialState) -> None:
        if trial.ended:
            name = study.name(trial) if len(self.studies) > 1 else f"trial {trial.number}"
            self.console.print(f"{name}: {STATE_WORDS[trial.state]}, {trial.reason}", highlight=False)

    def _other_drivers(self) -> list[Text]:
        """The work of other drivers that this one waits for."""
        return [Text(f"under way elsewhere: {work}", style="dim") for work in self.latest.elsewhere]

    def _table(self, study: StudyState) -> Group:
        metric = study.metric
        table = Table(box=None, pad_edge=False)
        for name in ("trial", "step", "rung", metric, "state", "steps/s"):
            table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
        lanes = {trial: lane for lane in self.latest.lanes for trial in lane.trials}
        shown = [t for t in study.trials if not t.ended]
        most = ROWS // len(self.studies)
        shown += [t for t in reversed(study.trials) if t.ended and t.repeats is None][: max(0, most - len(shown))]
        for trial in sorted(shown, key=lambda trial: trial.number):
            lane = lanes.get(study.name(trial))
            value = trial.last(metric)
            rungs = [] if trial.state == "UNAVAILABLE" else study.rungs(trial)
            passed = f"{sum(step in trial.probes for step in rungs)}/{len(rungs)}" if rungs else ""
            step, rate = trial.step, ""
            if lane and lane.kind == "train":
                step, rate = lane.step, f"{lane.steps_per_s:.1f}"
            state = _activity(lane) if lane else STATE_WORDS[trial.state] if trial.ended else "waiting"
            table.add_row(str(trial.number), str(step), passed, "" if value is None else f"{value:.4g}", state, rate)
        ended = sum(trial.ended for trial in study.trials)
        total = max(len(study.trials), study.space.search.trials)
        best = min(((t.last(metric), t.number) for t in study.trials if t.state == "COMPLETE"), default=(None, None))
        head = f"{study.space.id}   {ended} of {total} trials ended   {self.latest.computed_steps} steps computed"
        if best[1] is not None:
            head += f"   best {best[0]:.4g} (trial {best[1]})"
        return Group(Text(f"{head}   {self._time_left(study)}", style="bold"), table)

    def _time_left(self, study: StudyState) -> str:
        """An estimate of the time left: the steps still expected if each rung stops its usual share, at the speed so
        far."""
        done = self.latest.computed_steps
        if not done:
            return "starting workers"
        space = study.space
        share = space.search.scheduler.keep(MANY) / MANY if space.search.mode == "explore" else 1.0
        expected, typical = 0.0, 0.0
        for trial in study.distinct:
            if trial.state == "UNAVAILABLE":
                continue
            before, chance, ahead, whole = 0, 1.0, 0.0, 0.0
            for position, rung in enumerate(study.rungs(trial)):
                whole += (rung - before) * share**position
                if rung > trial.step:
                    ahead, chance = ahead + (rung - before) * chance, chance * share
                before = rung
            typical = whole
            expected += 0.0 if trial.ended else ahead
        expected += typical * max(0, space.search.trials - len(study.trials))
        seconds = expected * (time.monotonic() - self._began) / done
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else "about a minute left"


def _activity(lane: LaneActivity) -> str:
    if lane.kind == "probe":
        return "probing"
    return f"teacher ({lane.method})" if lane.teacher else "training"
