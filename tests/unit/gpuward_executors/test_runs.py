from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from gpuward_executors.backends.base import Backend, ImmediateBackend, Work
from gpuward_executors.backends.echo import EchoBackend
from gpuward_executors.backends.registry import AnyBackend, Registry
from gpuward_executors.core.events import ExecutorEvent, RunCancelled, RunFailed, RunSucceeded
from gpuward_executors.errors import EngineFailed, JobRefused
from gpuward_executors.logs import Logs
from gpuward_executors.runs import Runs
from gpuward_ipc.messages import Assign
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, Fault, JobId, RunId

ONE = RunId(1)


class ScriptedBackend(Backend):
    """Does what it is told, and says when it has begun."""

    def __init__(self, act: Callable[[Work], Awaitable[bytes]]) -> None:
        self.act = act
        self.begun = asyncio.Event()

    async def run(self, work: Work) -> bytes:
        self.begun.set()
        return await self.act(work)


class Refusing(ImmediateBackend):
    def answer(self, work: Work) -> bytes:
        raise JobRefused("not this one")


class Room:
    """Runs with a queue of their reports."""

    def __init__(self, folder: Path, backend: AnyBackend | None) -> None:
        self.spool = folder
        self.log = folder / "log"
        self._log_fd = os.open(self.log, os.O_CREAT | os.O_WRONLY)
        self.reports: asyncio.Queue[ExecutorEvent] = asyncio.Queue()
        self.runs = Runs(
            asyncio.get_running_loop(),
            Registry({}, fallback=backend),
            folder,
            self.reports.put_nowait,
            Logs(self._log_fd),
        )

    async def report(self) -> ExecutorEvent:
        return await asyncio.wait_for(self.reports.get(), 30)

    def close(self) -> None:
        os.close(self._log_fd)


def inside(
    folder: Path, make: Callable[[], AnyBackend | None], use: Callable[[Room], Awaitable[None]]
) -> None:
    async def run() -> None:
        room = Room(folder, make())
        try:
            await use(room)
        finally:
            room.close()

    asyncio.run(run())


def scripted(act: Callable[[Work], Awaitable[bytes]]) -> Callable[[], ScriptedBackend]:
    return lambda: ScriptedBackend(act)


async def upper(work: Work) -> bytes:
    return work.payload.upper()


async def forever(_work: Work) -> bytes:
    await asyncio.Event().wait()
    return b""


def assign(body_path: str = "") -> Assign:
    return Assign(ONE, JobId("j"), "task", "cfg", body_path=body_path)


def test_a_result_is_kept_until_it_is_forgotten(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b'"a"')
        room.runs.keep_payload(ONE, b"a second copy")
        room.runs.start(assign())
        assert await room.report() == RunSucceeded(run=ONE, body_bytes=3)
        assert room.runs.result(ONE) == b'"A"'
        room.runs.forget_results((ONE,))
        assert room.runs.result(ONE) is None

    inside(tmp_path, scripted(upper), use)


def test_an_immediate_backend_is_done_before_start_returns(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        assert room.reports.get_nowait() == RunSucceeded(run=ONE, body_bytes=2)

    inside(tmp_path, EchoBackend, use)


@pytest.mark.parametrize("make", [EchoBackend, scripted(upper)])
def test_bodies_too_large_for_a_frame_go_through_files(
    tmp_path: Path, make: Callable[[], AnyBackend]
) -> None:
    async def use(room: Room) -> None:
        payload = b"X" * (INLINE_BODY_MAX_BYTES + 1)
        (tmp_path / "payload").write_bytes(payload)
        room.runs.start(assign(str(tmp_path / "payload")))
        expected = RunSucceeded(run=ONE, body_bytes=len(payload), body_path=str(tmp_path / "1.json"))
        assert await room.report() == expected
        assert (tmp_path / "1.json").read_bytes() == payload
        assert (tmp_path / "1.json").stat().st_mode & 0o777 == 0o600
        assert room.runs.result(ONE) is None

    inside(tmp_path, make, use)


def test_a_payload_file_that_is_gone_is_not_the_jobs_fault(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.start(assign(str(tmp_path / "gone")))
        failed = await room.report()
        assert isinstance(failed, RunFailed)
        assert (failed.fault, str(tmp_path) in failed.error) == (Fault.ENGINE, False)
        assert str(tmp_path) in room.log.read_text()

    inside(tmp_path, scripted(upper), use)


def test_a_run_without_any_payload_is_not_the_jobs_fault(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.start(assign())
        assert await room.report() == RunFailed(
            run=ONE, error="the run came without its payload", fault=Fault.ENGINE
        )

    inside(tmp_path, EchoBackend, use)


@pytest.mark.parametrize(
    ("error", "fault", "text"),
    [
        (JobRefused("bad"), Fault.JOB, "bad"),
        (EngineFailed("dead at /a/b/c"), Fault.ENGINE, "dead at <path>"),
        (KeyError("x"), Fault.JOB, "internal error of the worker (KeyError)"),
    ],
)
def test_failures_say_whose_fault_they_are(tmp_path: Path, error: Exception, fault: Fault, text: str) -> None:
    async def fail(_work: Work) -> bytes:
        raise error

    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        assert await room.report() == RunFailed(run=ONE, error=text, fault=fault)

    inside(tmp_path, scripted(fail), use)


def test_a_bug_of_ours_is_logged_with_its_traceback(tmp_path: Path) -> None:
    async def fail(_work: Work) -> bytes:
        raise ZeroDivisionError

    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        await room.report()
        [line] = [json.loads(line) for line in room.log.read_text().splitlines()]
        assert line["event"] == "run.internal_error"
        assert "ZeroDivisionError" in line["traceback"]

    inside(tmp_path, scripted(fail), use)


def test_an_immediate_refusal_is_reported(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        assert room.reports.get_nowait() == RunFailed(run=ONE, error="not this one", fault=Fault.JOB)

    inside(tmp_path, Refusing, use)


def test_a_task_that_nobody_does_is_reported(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        text = "Unsupported task: 'task' (config_id=cfg)"
        assert room.reports.get_nowait() == RunFailed(run=ONE, error=text, fault=Fault.JOB)

    inside(tmp_path, lambda: None, use)


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_is_cancelled_whether_it_has_begun_or_not(tmp_path: Path, begun: bool) -> None:
    backend: list[ScriptedBackend] = []

    def make() -> ScriptedBackend:
        backend.append(ScriptedBackend(forever))
        return backend[0]

    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        if begun:
            await backend[0].begun.wait()
        room.runs.cancel(ONE)
        assert await room.report() == RunCancelled(run=ONE)

    inside(tmp_path, make, use)


def test_a_cancel_of_a_run_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.cancel(ONE)
        room.runs.forget_payload(ONE)
        room.runs.forget_results((ONE,))
        assert room.reports.empty()

    inside(tmp_path, EchoBackend, use)


def test_a_forgotten_payload_is_gone(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.forget_payload(ONE)
        room.runs.start(assign())
        assert isinstance(await room.report(), RunFailed)

    inside(tmp_path, EchoBackend, use)


def test_abandoned_runs_report_nothing(tmp_path: Path) -> None:
    async def use(room: Room) -> None:
        room.runs.keep_payload(ONE, b"{}")
        room.runs.start(assign())
        room.runs.abandon()
        for _ in range(5):
            await asyncio.sleep(0)
        assert room.reports.empty()

    inside(tmp_path, scripted(forever), use)
