"""Where the wall time of a driver goes, part by part."""

from __future__ import annotations

import time


class Laps:
    """A stopwatch that is told what has just ended.

    Attributes:
        began: when it was started, in seconds since the epoch.
        seconds: of each part, in order of their first ends; they add up to the time since `began`.
    """

    def __init__(self) -> None:
        self.began = time.time()
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def ended(self, part: str) -> None:
        """All since the part before was `part`."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now
