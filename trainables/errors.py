"""Errors of other libraries, shortened for our messages."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
