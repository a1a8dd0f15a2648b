"""The in-memory link between supervisor and executors, with every fault that a message can meet."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from simulation.clock import Clock


class Weather(msgspec.Struct, frozen=True):
    """Probabilities per message, 0..1, and delays in seconds."""

    drop: float = 0.02
    duplicate: float = 0.02
    #: Share of messages that are late by up to ``late_s``, which also reorders them.
    late: float = 0.05
    late_s: float = 4.0
    delay_s: float = 0.01


FAIR = Weather(0.0, 0.0, 0.0, 0.0, 0.001)


class Network:
    """Delivers messages, or does not."""

    def __init__(self, clock: Clock, random: Random, weather: Weather) -> None:
        self._clock = clock
        self._random = random
        self.weather = weather

    def carry(self, deliver: Callable[[], None]) -> None:
        """Take one message on its way: lost, once or twice, now or late."""
        weather, random = self.weather, self._random
        if random.random() < weather.drop:
            return
        copies = 2 if random.random() < weather.duplicate else 1
        for _ in range(copies):
            delay_s = random.uniform(0, weather.delay_s)
            if random.random() < weather.late:
                delay_s += random.uniform(0, weather.late_s)
            self._clock.after(delay_s, deliver)
