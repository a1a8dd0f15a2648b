from __future__ import annotations

import asyncio

from gpuward_executors.core.events import (
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineStarted,
    ExecutorEvent,
)
from gpuward_executors.engines.echo import EchoEngine


def test_it_is_ready_at_once_and_ends_once() -> None:
    events: list[ExecutorEvent] = []
    engine = EchoEngine()
    engine.start(events.append)
    assert events == [EngineStarted(), EngineAnswered(engine_version="echo")]
    engine.stop(5.0)
    engine.kill()
    assert events[2:] == [EngineEnded(exit_code=0, detail="the echo engine ended")]


def test_it_is_always_well_and_weighs_nothing() -> None:
    engine = EchoEngine()
    assert asyncio.run(engine.probe()) is EngineHealth.HEALTHY
    assert engine.rss_bytes() == 0
