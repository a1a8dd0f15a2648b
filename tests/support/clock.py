"""A clock that moves only when a test moves it."""

from __future__ import annotations


class Clock:
    """Monotonic seconds under the test's control."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> float:
        self.now_s += seconds
        return self.now_s
