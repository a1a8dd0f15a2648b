"""What an engine is to its executor: something to start, stop, kill and look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from gpuward_executors.core.events import EngineHealth, ExecutorEvent

#: Takes the engine's events: ``EngineStarted`` first, ``EngineEnded`` exactly once and last.
Report = Callable[[ExecutorEvent], None]


class Engine(Protocol):
    """One engine in one life: started once, never again after its end."""

    def start(self, report: Report) -> None:
        """Start it; everything that becomes of it is reported, failures to start included."""

    def stop(self, grace_s: float) -> None:
        """Ask it to end, kill it after ``grace_s`` seconds; 0 kills at once. May be called again."""

    def kill(self) -> None:
        """Kill it now."""

    async def probe(self) -> EngineHealth:
        """Look at its health once, within two seconds."""

    def rss_bytes(self) -> int:
        """Resident memory of its processes; 0 when there are none."""
