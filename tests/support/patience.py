"""Waiting for something that nobody announces: look again and again, but not for ever."""

from __future__ import annotations

import threading
import time

_PAUSE_S = 0.002


class Patience:
    """A bound for one loop that looks whether something has come about."""

    def __init__(self, limit_s: float) -> None:
        self._until_s = time.monotonic() + limit_s
        self._never = threading.Event()

    def wait(self, what: str) -> None:
        """Wait a moment before looking again.

        Raises:
            AssertionError: it has taken too long.
        """
        if time.monotonic() > self._until_s:
            raise AssertionError(f"waited in vain for {what}")
        self._never.wait(_PAUSE_S)
