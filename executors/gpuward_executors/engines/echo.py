"""The engine that is none: ready at once, nothing to start, nothing to die (benchmarks, dry runs)."""

from __future__ import annotations

from gpuward_executors.core.events import EngineAnswered, EngineEnded, EngineHealth, EngineStarted
from gpuward_executors.engines.base import Report


class EchoEngine:
    """An engine without a process."""

    def __init__(self) -> None:
        self._report: Report | None = None

    def start(self, report: Report) -> None:
        """Be ready."""
        self._report = report
        report(EngineStarted())
        report(EngineAnswered(engine_version="echo"))

    def stop(self, grace_s: float) -> None:
        """End at once, whatever the grace."""
        self.kill()

    def kill(self) -> None:
        """End at once."""
        report, self._report = self._report, None
        if report is not None:
            report(EngineEnded(exit_code=0, detail="the echo engine ended"))

    async def probe(self) -> EngineHealth:
        """Healthy as long as the executor is."""
        return EngineHealth.HEALTHY

    def rss_bytes(self) -> int:
        """No process, no memory."""
        return 0
