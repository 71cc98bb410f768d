"""How errors of other libraries are told in ours."""

from __future__ import annotations


def one_line(error: BaseException) -> str:
    """The first line of what an error says, or what it is called where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
