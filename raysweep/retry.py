"""Waiting for a storage that is full, read-only or away: nothing is lost meanwhile, and not for ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from raysweep.errors import SweepError

RETRY_LIMIT_S = 3600.0  # how long a storage may be of no use before a sweep gives up
POLL_S = 1.0  # between attempts

Result = TypeVar("Result")
Notify = Callable[[str], None]


def waiting_for_storage(error: BaseException) -> str:
    """What people are told while work waits for the storage."""
    return f"the storage cannot be used, waiting for it: {str(error).splitlines()[0] if str(error) else error!r}"


def retry_storage(action: Callable[[], Result], tell: Notify, *errors: type[Exception]) -> Result:
    """What `action` returns, tried again while it raises an OSError or one of `errors`. It must stand being repeated.

    Args:
        tell: is told once what is waited for, and once that it is over.

    Raises:
        SweepError: after `RETRY_LIMIT_S`.
    """
    began, told = time.monotonic(), False
    expected: tuple[type[Exception], ...] = (OSError, *errors)
    while True:
        try:
            result = action()
        except expected as error:
            if not told:
                tell(waiting_for_storage(error))
                told = True
            if time.monotonic() - began > RETRY_LIMIT_S:
                raise SweepError(
                    f"the storage could not be used for {RETRY_LIMIT_S / 60:.0f} minutes: {error}"
                ) from None
            time.sleep(POLL_S)
        else:
            if told:
                tell("the storage can be used again")
            return result
