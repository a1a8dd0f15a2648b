"""How long to wait before the next try: doubling from a first delay to a longest one, plus random jitter."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """The delays of one series of failures."""

    def __init__(
        self,
        *,
        first_s: float,
        max_s: float,
        jitter: float,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Start a series.

        Args:
            first_s: delay after the first failure, before jitter.
            max_s: longest delay, before jitter.
            jitter: largest random share added to a delay, 0..1.
            chance: uniform random numbers in [0, 1).
        """
        self._first_s = min(first_s, max_s)
        self._max_s = max_s
        self._jitter = jitter
        self._chance = chance
        self._next_s = self._first_s

    def next_s(self) -> float:
        """The delay after one more failure, in seconds."""
        delay_s = self._next_s
        self._next_s = min(delay_s * 2, self._max_s)
        return delay_s * (1.0 + self._jitter * self._chance())

    def reset(self) -> None:
        """Begin the series again: the last try succeeded."""
        self._next_s = self._first_s
