"""SIGTERM: how schedulers ask a run to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

TERMINATED = 128 + signal.SIGTERM
"""Exit code of a run that SIGTERM has ended, as a shell reports it: the same command resumes it."""


class Termination:
    """Notes SIGTERM while it is entered, and passes the first one on to the processes launched by this one.

    It takes the place of Lightning's handler, which broadcasts among the ranks in the midst of whatever they do: ranks
    that are between different collectives, or of which one has ended already, then wait for each other.

    Args:
        forward: Sends a signal to the launched processes; None if there are none.
    """

    def __init__(self, forward: Callable[[signal.Signals], object] | None) -> None:
        self.requested = False
        self._forward = forward
        self._previous: Any = None

    def __enter__(self) -> Termination:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None

    def _note(self, signum: int, frame: FrameType | None) -> None:
        first, self.requested = not self.requested, True
        if first and self._forward is not None:
            self._forward(signal.Signals(signum))
