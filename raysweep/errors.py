"""The two ways in which a command ends badly on purpose. Both are one line to the user, never a traceback."""


class UserError(Exception):
    """The user's mistake: what, where, and what would be right. Exit code 2, nothing written."""


class SweepError(Exception):
    """The sweep cannot go on, through no mistake in its input. Exit code 1; what was finished is kept."""
