"""Virtual time: a heap of things to happen, and nothing happens by itself."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class Clock:
    """Runs callbacks in order of their time; ties in order of their scheduling."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._ties = itertools.count()

    def at(self, time_s: float, act: Callable[[], None]) -> None:
        """Let something happen at a time; at once if that has passed."""
        heapq.heappush(self._heap, (max(time_s, self.now_s), next(self._ties), act))

    def after(self, delay_s: float, act: Callable[[], None]) -> None:
        """Let something happen after a delay."""
        self.at(self.now_s + delay_s, act)

    def step(self) -> bool:
        """Let the next thing happen; False when there is none."""
        if not self._heap:
            return False
        self.now_s, _, act = heapq.heappop(self._heap)
        act()
        return True

    def next_s(self) -> float | None:
        """Time of the next thing."""
        return self._heap[0][0] if self._heap else None
