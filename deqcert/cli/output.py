"""Output whose reader may leave."""

from __future__ import annotations

import os
from typing import Any


class Output:
    """A stream of text; once its reader has closed the pipe (``| head``), work goes on unread instead of ending there.

    ``unread`` says whether the reader has left before the end.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.unread = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, or not if nobody reads."""
        self._unless_unread(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush, or not if nobody reads."""
        self._unless_unread(self._stream.flush)

    def _unless_unread(self, action: Any, *text: str) -> None:
        try:
            action(*text)
        except BrokenPipeError:
            self.unread = True
            # Also what the stream still holds and Python flushes when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
