"""The two expected failures of a command. Both are shown to the user as one line without a traceback."""


class UserError(Exception):
    """A mistake of the user. The message says what, where, and what would be right. Exit code 2; nothing is written."""


class SweepError(Exception):
    """The sweep cannot continue although its input is right. Exit code 1; finished work is kept."""
