from __future__ import annotations

import asyncio
from typing import Any

from gpuward_executors.tasks import raise_failure


def failures_of(*, fails: bool, cancelled: bool = False) -> list[str]:
    """What the loop's exception handler hears of a background task."""

    async def work() -> None:
        if fails:
            raise KeyError("x")

    async def run() -> list[str]:
        loop = asyncio.get_running_loop()
        heard: list[str] = []

        def hear(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
            heard.append(repr(context["exception"]))

        loop.set_exception_handler(hear)
        task = loop.create_task(work())
        task.add_done_callback(raise_failure)
        if cancelled:
            task.cancel()
        await asyncio.wait({task})
        await asyncio.sleep(0)
        return heard

    return asyncio.run(run())


def test_a_failure_reaches_the_exception_handler() -> None:
    assert failures_of(fails=True) == ["KeyError('x')"]


def test_a_task_that_ends_well_or_is_cancelled_reaches_nobody() -> None:
    assert failures_of(fails=False) == []
    assert failures_of(fails=True, cancelled=True) == []
