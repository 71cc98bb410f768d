"""Processes whose storage calls are made when a test says so, or are lost, late, or never answered.

A test patches `obstore` in `raysweep.store.files` with a `Storage` and starts processes. Each is a thread that waits
before each of its storage calls until the test tells it the call's fate.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import selectors
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import obstore

from raysweep.store.files import Files
from raysweep.store.leases import Leases

DEAD_S = 10.0
FATES = ("made", "made", "made", "made", "lost", "answer lost", "late")


class Killed(SystemExit):
    """The process is killed here. Of all exceptions, asyncio lets this one out of its loop."""


class Process:
    """Code in a thread, with files and leases of its own.

    Attributes:
        ended: whether the code has returned, or was killed.
    """

    def __init__(self, name: str, files: Files, code: Callable[[Process], None]):
        self.name, self.files, self.ended = name, files, False
        self.leases = Leases(files, beat_s=1e6, dead_s=DEAD_S)
        self._code = code
        self._wanted: Callable[[], Any] | None = None
        self._fault: BaseException | None = None  # what no process may raise
        self._fates: queue.Queue[str] = queue.Queue()
        self._killed = False
        self._turn = threading.Event()  # set when it waits for a fate, or has ended
        self._thread = threading.Thread(target=self._run, daemon=True)

    @property
    def runs_here(self) -> bool:
        """Whether the caller is this process."""
        return threading.current_thread() is self._thread

    def start(self) -> None:
        """Run it up to its first storage call."""
        self._thread.start()
        self._settle()

    def step(self, fate: str) -> Callable[[], Any] | None:
        """Make its next storage call, or not, and run on to the one after. Returns a call that is made later.

        Args:
            fate: one of FATES, or `killed`.
        """
        late = self._wanted if fate == "late" else None
        self._turn.clear()
        self._fates.put(fate)
        self._settle()
        return late

    def pause(self) -> None:
        """Wait for a moment, as for a storage call."""
        self.call(lambda: None)

    def call(self, action: Callable[[], Any]) -> Any:
        """Make a storage call as the test says."""
        if not self.runs_here:
            return action()  # its heartbeat, or one of several reads at a time
        if not self._killed:
            self._wanted = action
            self._turn.set()
            fate = self._fates.get()
            self._wanted = None
            self._killed = fate == "killed"
        if self._killed:
            raise Killed
        if fate in ("lost", "late"):
            raise OSError("timed out")
        result = action()
        if fate == "answer lost":
            raise OSError("connection reset")
        return result

    def run_loop(self, main: Coroutine[Any, Any, None], clock: Callable[[], float]) -> None:
        """Run a coroutine in this process, by the test's clock. While nothing is ready, the process pauses.

        `asyncio.to_thread` must have been patched with `at_once`.
        """
        loop = _Loop(_Selector(self.pause))
        loop.time = clock  # type: ignore[method-assign]
        loop.set_exception_handler(lambda loop, context: None)  # of tasks that a killed process has left
        try:
            loop.run_until_complete(main)
        finally:
            loop.close()

    def _settle(self) -> None:
        assert self._turn.wait(60), f"{self.name} hangs outside the storage"
        if self._fault:
            raise self._fault

    def _run(self) -> None:
        try:
            self._code(self)
        except (Killed, OSError):
            pass
        except BaseException as fault:
            self._fault = fault
        finally:
            self.ended = True
            self._turn.set()


def arrive(call: Callable[[], Any]) -> None:
    """Make a call that its process has given up. Nobody waits for its answer."""
    with contextlib.suppress(Exception):
        call()


async def at_once(function: Callable[..., Any], *arguments: Any) -> Any:
    """`asyncio.to_thread` without a thread."""
    return function(*arguments)


class Storage:
    """obstore's functions, whose calls wait for the test.

    Args:
        beaten: is called with each process whose heartbeat was written.
    """

    Bytes = obstore.Bytes

    def __init__(self, beaten: Callable[[Process], None]) -> None:
        self._processes: dict[int, Process] = {}
        self._beaten = beaten

    def add(self, process: Process) -> None:
        """Have the calls of a process wait."""
        self._processes[id(process.files._store)] = process

    def __getattr__(self, function: str) -> Any:
        def call(store: Any, *arguments: Any, **options: Any) -> Any:
            process = self._processes.get(id(store))

            def action() -> Any:
                result = getattr(obstore, function)(store, *arguments, **options)
                if process and function == "put" and str(arguments[0]).startswith("owners/"):
                    self._beaten(process)
                return list(result) if function == "list" else result

            return process.call(action) if process else action()

        return call


class _Selector(selectors.DefaultSelector):
    """Waits for no file, only for the test."""

    def __init__(self, pause: Callable[[], None]):
        super().__init__()
        self._pause = pause

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None or timeout > 0:
            self._pause()
        return []


_Loop = asyncio.SelectorEventLoop
