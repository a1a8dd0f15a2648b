"""Background tasks of the event loop: a failure in one is a bug of ours and must not pass in silence."""

from __future__ import annotations

import asyncio


def raise_failure(task: asyncio.Task[None]) -> None:
    """As done-callback: hand a task's failure to the loop's exception handler, which ends the executor.

    Without this, the loop mentions it when the task happens to be collected, if ever.
    """
    if not task.cancelled():
        task.result()
