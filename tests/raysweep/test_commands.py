"""How every command of `raysweep` talks to a terminal."""

import argparse
import sys

from raysweep.commands.common import guarded


def test_with_json_stderr_counts_as_no_terminal(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")

    def is_terminal(**options: bool) -> bool:
        answers = []
        guarded(lambda _, console: answers.append(console.is_terminal), argparse.Namespace(**options))
        return answers[0]

    assert is_terminal() and is_terminal(json=False)
    assert not is_terminal(json=True)
