"""How SIGTERM is heard. With loop.py and trainer.py, the only module that uses Lightning's private names."""

from __future__ import annotations

from types import FrameType

from lightning.pytorch.trainer.connectors.signal_connector import _SignalConnector


class Signals(_SignalConnector):
    """Notes SIGTERM, and passes the first one on to the processes that this one has launched.

    Lightning's own handler broadcasts, which ranks that are told at different moments take for another collective.
    """

    def _sigterm_notifier_fn(self, signum: int, _: FrameType | None) -> None:
        first, self.received_sigterm = not self.received_sigterm, True
        launcher = self.trainer.strategy.launcher
        if first and launcher is not None:
            launcher.kill(signum)
