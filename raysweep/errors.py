"""The two expected failures of a command. Both are shown to the user as one line without a traceback or secrets."""

from __future__ import annotations

from trainables.redaction import public


class _Failure(Exception):
    """A message without secrets. It may quote the user or another library, which know none of our rules."""

    def __init__(self, message: str):
        super().__init__(public(message))


class UserError(_Failure):
    """A mistake of the user. The message says what, where, and what would be right. Exit code 2; nothing is written."""


class SweepError(_Failure):
    """The sweep cannot continue although its input is right. Exit code 1; finished work is kept."""
