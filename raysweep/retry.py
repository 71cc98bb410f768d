"""Retries: of actions on a storage that is full, read-only or away, and of calls to a process that is restarting."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

from raysweep.errors import SweepError

RETRY_LIMIT_S = 3600.0  # how long a storage may be unusable before a sweep gives up
POLL_S = 1.0  # between two attempts at the storage

Result = TypeVar("Result")
Notify = Callable[[str], None]


class StorageOutage:
    """The time for which a storage has been unusable: notifies the user, and says when to give up.

    A caller reports each attempt, and sleeps `POLL_S` between two of them in its own way: a thread, a coroutine, or
    several ranks together.

    Args:
        notify: receives the reason for waiting, with the first failed attempt and then every `remind_s` seconds.
    """

    def __init__(self, notify: Notify, remind_s: float = math.inf):
        self._notify, self._remind_s = notify, remind_s
        self._since: float | None = None
        self._notified = -math.inf

    def failed(self, error: BaseException) -> bool:
        """Record a failed attempt. Returns whether to try again: False after `RETRY_LIMIT_S` without a success."""
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since > RETRY_LIMIT_S:
            return False
        if now - self._notified >= self._remind_s:
            message = str(error).splitlines()[0] if str(error) else repr(error)
            self._notify(f"the storage cannot be used, waiting for it: {message}")
            self._notified = now
        return True

    def succeeded(self) -> bool:
        """Record a successful attempt. Returns whether it has ended an outage."""
        ended = self._since is not None
        self._since, self._notified = None, -math.inf
        return ended


def gave_up(error: BaseException) -> str:
    """The message for the user after `StorageOutage.failed` has returned False."""
    return f"the storage could not be used for {RETRY_LIMIT_S / 60:.0f} minutes: {error}"


def retry_storage(action: Callable[[], Result], notify: Notify, *errors: type[Exception]) -> Result:
    """Return the result of `action`, which is repeated while it raises an OSError or one of `errors`.

    Args:
        action: may be repeated without harm.
        notify: receives one message when waiting begins and one when it is over.

    Raises:
        SweepError: the storage stayed unusable for `RETRY_LIMIT_S`.
    """
    outage = StorageOutage(notify)
    unusable: tuple[type[Exception], ...] = (OSError, *errors)
    while True:
        try:
            result = action()
        except unusable as error:
            if not outage.failed(error):
                raise SweepError(gave_up(error)) from None
            time.sleep(POLL_S)
        else:
            if outage.succeeded():
                notify("the storage can be used again")
            return result


def retry_call(action: Callable[[], Result], error: type[Exception], attempts: int, pause_s: float) -> Result:
    """Return the result of `action`, which is repeated, `pause_s` seconds apart, while it raises `error`.

    Raises:
        Exception: the `error` of the last of `attempts`.
    """
    for _ in range(attempts - 1):
        try:
            return action()
        except error:
            time.sleep(pause_s)
    return action()
