"""Who waits for what: for jobs to end, or for a statement about the queue to hold."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from gpuward_devqueue.errors import StillWaiting
from gpuward_devqueue.records import JobId


class _Waiter:
    """Somebody waits until all of these jobs have ended."""

    def __init__(self, missing: set[JobId]) -> None:
        self.missing = missing
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Waits:
    """All waits of one queue; costs nothing per event while nobody waits."""

    def __init__(self) -> None:
        self._waiters: dict[JobId, list[_Waiter]] = {}
        self._watchers: dict[asyncio.Future[None], Callable[[], bool]] = {}

    def ended(self, job_id: JobId) -> None:
        """Wake those for whom this job was the last one missing."""
        for waiter in self._waiters.pop(job_id, ()):
            waiter.missing.discard(job_id)
            if not waiter.missing and not waiter.done.done():
                waiter.done.set_result(None)

    async def until_ended(self, open_jobs: Iterable[JobId]) -> None:
        """Wait until all these jobs, which are open now, have ended."""
        missing = set(open_jobs)
        if not missing:
            return
        waiter = _Waiter(missing)
        for job_id in missing:
            self._waiters.setdefault(job_id, []).append(waiter)
        try:
            await waiter.done
        finally:
            for job_id in waiter.missing:
                self._waiters[job_id].remove(waiter)
                if not self._waiters[job_id]:
                    del self._waiters[job_id]

    def changed(self) -> None:
        """Ask all statements again: something has happened."""
        for held, statement in self._watchers.items():
            if held.done():
                continue
            try:
                if statement():
                    held.set_result(None)
            except Exception as error:  # noqa: BLE001 - it belongs to whoever asked, not to the queue's work
                held.set_exception(error)

    async def until(self, statement: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait until a statement holds; it is asked again after every change.

        Args:
            statement: must be cheap and change nothing.
            timeout_s: how long to wait.
            what: what is waited for, for the error.

        Raises:
            StillWaiting: it did not come to hold in time.
        """
        if statement():
            return
        held: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers[held] = statement
        try:
            async with asyncio.timeout(timeout_s):
                await held
        except TimeoutError:
            raise StillWaiting(f"waited {timeout_s} s for: {what}") from None
        finally:
            del self._watchers[held]
