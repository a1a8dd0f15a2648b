"""The runs under way in the event loop, and the bodies kept for them; decides nothing."""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gpuward_executors.backends.base import Backend, ImmediateBackend, Work
from gpuward_executors.backends.error_text import presentable
from gpuward_executors.backends.registry import Registry
from gpuward_executors.core.commands import Facts
from gpuward_executors.core.events import ExecutorEvent, RunCancelled, RunFailed, RunSucceeded
from gpuward_executors.errors import EngineFailed, JobRefused
from gpuward_executors.logs import Logs
from gpuward_ipc.messages import Assign
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, Fault, RunId


class Runs:
    """Carries runs out; every started run is reported exactly once."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        registry: Registry,
        spool: Path,
        report: Callable[[ExecutorEvent], None],
        logs: Logs,
    ) -> None:
        """Prepare.

        Args:
            loop: the event loop.
            registry: backends by task.
            spool: existing folder for results that are too large for a frame; the supervisor deletes them.
            report: takes ``RunSucceeded``, ``RunFailed`` and ``RunCancelled``.
            logs: takes the tracebacks of our own bugs.
        """
        self._loop = loop
        self._registry = registry
        self._spool = spool
        self._report = report
        self._logs = logs
        self._payloads: dict[RunId, bytes] = {}
        self._results: dict[RunId, bytes] = {}
        self._tasks: dict[RunId, asyncio.Task[ExecutorEvent]] = {}

    def keep_payload(self, run: RunId, payload: bytes) -> None:
        """Keep a payload until its run starts; the first one of a run stays."""
        self._payloads.setdefault(run, payload)

    def forget_payload(self, run: RunId) -> None:
        """Drop a payload."""
        self._payloads.pop(run, None)

    def result(self, run: RunId) -> bytes | None:
        """The kept result of a run."""
        return self._results.get(run)

    def forget_results(self, runs: tuple[RunId, ...]) -> None:
        """Drop results."""
        for run in runs:
            self._results.pop(run, None)

    def start(self, assign: Assign) -> None:
        """Begin a run; what takes no time is reported before this returns."""
        run = assign.run
        payload = self._payloads.pop(run, None)
        try:
            backend = self._registry.choose(assign.task, assign.config_id)
        except JobRefused as refused:
            self._report(_failed(run, refused, Fault.JOB))
            return
        if payload is None and not assign.body_path:
            self._report(_failed(run, "the run came without its payload", Fault.ENGINE))
            return
        if isinstance(backend, ImmediateBackend) and payload is not None:
            try:
                result = backend.answer(Work(assign.task, assign.config_id, payload))
            except JobRefused as refused:
                self._report(_failed(run, refused, Fault.JOB))
                return
            if len(result) <= INLINE_BODY_MAX_BYTES:
                self._results[run] = result
                self._report(RunSucceeded(run=run, body_bytes=len(result)))
                return
        task = self._loop.create_task(self._carry_out(assign, backend, payload))
        self._tasks[run] = task
        task.add_done_callback(partial(self._settle, run))

    def cancel(self, run: RunId) -> None:
        """Give a run up; its request to the engine is closed."""
        task = self._tasks.get(run)
        if task is not None:
            task.cancel()

    def abandon(self) -> None:
        """Give all runs up and report nothing more: the executor leaves."""
        self._report = _nobody
        for task in list(self._tasks.values()):
            task.cancel()

    def _settle(self, run: RunId, task: asyncio.Task[ExecutorEvent]) -> None:
        del self._tasks[run]
        self._report(RunCancelled(run=run) if task.cancelled() else task.result())

    async def _carry_out(
        self, assign: Assign, backend: Backend | ImmediateBackend, payload: bytes | None
    ) -> ExecutorEvent:
        run = assign.run
        try:
            if payload is None:
                payload = await asyncio.to_thread(Path(assign.body_path).read_bytes)
            work = Work(assign.task, assign.config_id, payload)
            result = (
                backend.answer(work) if isinstance(backend, ImmediateBackend) else await backend.run(work)
            )
            if len(result) <= INLINE_BODY_MAX_BYTES:
                self._results[run] = result
                return RunSucceeded(run=run, body_bytes=len(result))
            path = self._spool / f"{run}.json"
            await asyncio.to_thread(_write_private, path, result)
            return RunSucceeded(run=run, body_bytes=len(result), body_path=str(path))
        except JobRefused as refused:
            return _failed(run, refused, Fault.JOB)
        except EngineFailed as error:
            return _failed(run, error, Fault.ENGINE)
        except OSError as error:
            self._logs.log("error", "run.body_failed", {"run": run, "error": str(error)})
            return _failed(run, f"a body could not be read or written: {error.strerror}", Fault.ENGINE)
        except Exception as error:  # noqa: BLE001 - a bug of ours must cost this job only, not its neighbours
            facts: Facts = {"run": run, "task": assign.task, "traceback": traceback.format_exc()[-4000:]}
            self._logs.log("error", "run.internal_error", facts)
            return _failed(run, f"internal error of the worker ({type(error).__name__})", Fault.JOB)


def _failed(run: RunId, error: object, fault: Fault) -> RunFailed:
    return RunFailed(run=run, error=presentable(str(error)), fault=fault)


def _nobody(event: ExecutorEvent) -> None:
    """Takes a report that nobody wants."""


def _write_private(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(content)
