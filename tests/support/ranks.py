"""Runs of the command line in forked processes that can be killed.

A fork starts in no time, where a new interpreter imports for seconds: so many kills fit into a test.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

CRASH = 70


class Ranks:
    """The ranks of one run, each a process of its own as ``srun`` and ``torchrun`` would start it.

    Args:
        count: Number of ranks.
        function: What each does; its return value is its exit code.
        log: File that takes what the ranks print.
    """

    def __init__(self, count: int, function: Callable[[], int], log: Path) -> None:
        port = _free_port()
        self.pids = [_fork(rank, count, port, function, log) for rank in range(count)]
        self.codes: dict[int, int] = {}

    def alive(self) -> list[int]:
        """Return the processes that have not ended."""
        for pid in self.pids:
            if pid not in self.codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    self.codes[pid] = os.waitstatus_to_exitcode(status)
        return [pid for pid in self.pids if pid not in self.codes]

    def kill(self, number: signal.Signals, pids: list[int] | None = None) -> int:
        """Send a signal to the given processes, or to all; return how many were alive."""
        alive = self.alive()
        chosen = [pid for pid in alive if pids is None or pid in pids]
        for pid in chosen:
            os.kill(pid, number)
        return len(chosen)

    def run_for(self, seconds: float) -> bool:
        """Wait until all have ended, at most so long; return whether they have. One that fails ends the others."""
        end = time.monotonic() + seconds
        while self.alive():
            if any(code not in (0, 143, -signal.SIGTERM) for code in self.codes.values()):
                self.kill(signal.SIGKILL)
            if time.monotonic() > end:
                return False
            time.sleep(0.002)
        return True

    def wait(self, seconds: float = 120.0) -> list[int]:
        """Wait until all have ended and return their exit codes in the order of ranks; a hang is an error."""
        if not self.run_for(seconds):
            alive = self.alive()
            self.kill(signal.SIGKILL)
            raise AssertionError(f"processes {alive} hang after {seconds} s")
        return [self.codes[pid] for pid in self.pids]


def _fork(rank: int, count: int, port: int, function: Callable[[], int], log: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = CRASH
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        if count > 1:
            os.environ |= {
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "NODE_RANK": "0",
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(count),
            }
        code = function()
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else CRASH
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
