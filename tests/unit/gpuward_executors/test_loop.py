"""The loop over a real link: a ROUTER on one side, the executor's loop with the echo engine on the other."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar, cast

import pytest
import zmq

from gpuward_executors import loop as loop_module
from gpuward_executors.backends.echo import EchoBackend
from gpuward_executors.backends.registry import Registry
from gpuward_executors.core.events import (
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineProbed,
    EngineStarted,
    RunFailed,
)
from gpuward_executors.core.state import initial_state
from gpuward_executors.engines.base import Report
from gpuward_executors.engines.echo import EchoEngine
from gpuward_executors.logs import Logs
from gpuward_executors.loop import BATCH, ExecutorLoop
from gpuward_executors.runs import Runs
from gpuward_ipc.channel import ExecutorRouter, SupervisorLink
from gpuward_ipc.endpoints import link_endpoint
from gpuward_ipc.errors import BackPressure
from gpuward_ipc.messages import (
    Ack,
    Assign,
    EngineExited,
    Failed,
    FromSupervisor,
    Goodbye,
    Heartbeat,
    Hello,
    Pulse,
    Ready,
    Stop,
    Succeeded,
    Welcome,
)
from gpuward_ipc.types import Fault, Incarnation, JobId, RunId
from support.executor_core import NAME, policy

M = TypeVar("M")
INCARNATION = Incarnation(3)


class DeafEngine(EchoEngine):
    """Never ready, never ends by itself; says what it was asked to do."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def start(self, report: Report) -> None:
        self._report = report
        report(EngineStarted(pid=5))

    def stop(self, grace_s: float) -> None:
        self.asked.append(f"stop {grace_s}")
        super().stop(grace_s)

    def kill(self) -> None:
        self.asked.append("kill")
        super().kill()


class DyingEngine(EchoEngine):
    """Looks dead at the first look."""

    async def probe(self) -> EngineHealth:
        assert self._report is not None
        self._report(EngineEnded(exit_code=0, detail="died"))
        return EngineHealth.DEAD


class Side:
    """The supervisor's side, and the loop under test."""

    def __init__(self, folder: Path, engine: EchoEngine, **policy_fields: object) -> None:
        loop = asyncio.get_running_loop()
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.router = ExecutorRouter(self._context, link_endpoint(folder))
        self.link = SupervisorLink(self._context, link_endpoint(folder), NAME, INCARNATION)
        self.log = folder / "log"
        self._log_fd = os.open(self.log, os.O_CREAT | os.O_WRONLY)
        logs = Logs(self._log_fd)
        self.loop = ExecutorLoop(
            loop=loop,
            state=initial_state(policy(**{"heartbeat_s": 0.05, **policy_fields})),
            link=self.link,
            engine=engine,
            logs=logs,
            make_runs=lambda report: Runs(loop, Registry({}, EchoBackend()), folder, report, logs),
        )
        self.life = loop.create_task(self.loop.run())

    def send(self, message: FromSupervisor, body: bytes | None = None) -> None:
        assert self.router.send(NAME, INCARNATION, message, body)

    async def until(
        self, kind: type[M], accept: Callable[[M], bool] = lambda _: True
    ) -> tuple[M, bytes | None]:
        async with asyncio.timeout(30):
            while True:
                for received in self.router.receive(1):
                    if isinstance(received.message, kind) and accept(received.message):
                        return received.message, received.body
                await asyncio.sleep(0.001)

    async def exit_code(self) -> int:
        return await asyncio.wait_for(self.life, 30)

    def close(self) -> None:
        self.life.cancel()
        self.link.flush_and_close(0)
        self.router.close()
        self._context.term()
        os.close(self._log_fd)


@asynccontextmanager
async def side(folder: Path, engine: EchoEngine | None = None, **fields: object) -> AsyncIterator[Side]:
    made = Side(folder, engine or EchoEngine(), **fields)
    try:
        yield made
    finally:
        made.close()


def test_a_life_from_hello_to_goodbye(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path) as it:
            await it.until(Hello)
            it.send(Welcome(heartbeat_s=0.05))
            assert await it.until(Ready) == (Ready(2, "echo", 0), None)
            it.send(Assign(RunId(1), JobId("j"), "t"), b'{"a":1}')
            assert await it.until(Succeeded) == (Succeeded(RunId(1), 7), b'{"a":1}')
            await it.until(Heartbeat, lambda beat: beat.runs == (RunId(1),))
            it.send(Ack((RunId(1),)))
            await it.until(Heartbeat, lambda beat: beat.runs == ())
            it.send(Stop(grace_s=1.0))
            await it.until(Goodbye)
            assert await it.exit_code() == 0

    asyncio.run(run())


def test_more_messages_than_one_batch_are_all_answered(tmp_path: Path) -> None:
    count = 3 * BATCH

    async def run() -> None:
        async with side(tmp_path, slots=7) as it:
            await it.until(Hello)
            it.send(Welcome(heartbeat_s=10.0))
            for number in range(1, count + 1):
                it.send(Assign(RunId(number), JobId("j"), "t"), b"%d" % number)
            for number in range(1, count + 1):
                assert await it.until(Succeeded) == (
                    Succeeded(RunId(number), len(b"%d" % number)),
                    b"%d" % number,
                )

    asyncio.run(run())


def test_an_unacknowledged_result_is_sent_again_whole(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path, resend_after_s=0.05) as it:
            await it.until(Hello)
            it.send(Welcome(heartbeat_s=0.02))
            it.send(Assign(RunId(1), JobId("j"), "t"), b"[1]")
            first = await it.until(Succeeded)
            assert await it.until(Succeeded) == first == (Succeeded(RunId(1), 3), b"[1]")

    asyncio.run(run())


def test_the_end_of_the_engine_is_told_and_ends_the_loop(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path, DyingEngine()) as it:
            await it.until(Hello)
            it.send(Welcome())
            await it.until(Ready)
            it.send(Assign(RunId(1), JobId("j"), "t", body_path=str(tmp_path / "gone")))
            assert (await it.until(EngineExited))[0] == EngineExited(0, None, "died")
            assert await it.exit_code() == 70
            [line] = [json.loads(text) for text in it.log.read_text().splitlines() if "engine.died" in text]
            assert (line["level"], line["detail"], line["runs"]) == ("error", "died", 1)

    asyncio.run(run())


def test_a_failure_on_a_living_engine_is_the_runs_own(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path) as it:
            await it.until(Hello)
            it.send(Welcome())
            it.send(Assign(RunId(1), JobId("j"), "t", body_path=str(tmp_path / "gone")))
            failed, _ = await it.until(Failed)
            assert failed.fault is Fault.ENGINE

    asyncio.run(run())


def test_an_engine_that_never_answers_is_killed_in_time(tmp_path: Path) -> None:
    async def run() -> None:
        engine = DeafEngine()
        async with side(tmp_path, engine, start_timeout_s=0.05) as it:
            await it.until(Hello)
            it.send(Welcome())
            assert "was not ready" in (await it.until(EngineExited))[0].detail
            assert await it.exit_code() == 70
            assert engine.asked == ["kill"]

    asyncio.run(run())


def test_a_stop_reaches_the_engine_with_its_grace(tmp_path: Path) -> None:
    async def run() -> None:
        engine = DeafEngine()
        async with side(tmp_path, engine) as it:
            await it.until(Hello)
            it.send(Welcome())
            await it.until(Heartbeat)
            it.send(Stop(grace_s=2.5))
            assert await it.exit_code() == 0
            assert engine.asked == ["stop 2.5", "kill"]

    asyncio.run(run())


def test_a_supervisor_that_does_not_read_costs_messages_and_nothing_else(tmp_path: Path) -> None:
    class FullLink(SupervisorLink):
        full = False

        def send(self, message: object, body: bytes | None = None) -> None:
            if self.full:
                raise BackPressure("full")
            super().send(message, body)  # type: ignore[arg-type]

    async def run() -> None:
        async with side(tmp_path, resend_after_s=0.05) as it:
            it.link.__class__ = FullLink
            await it.until(Hello)
            it.send(Welcome(heartbeat_s=0.02))
            await it.until(Ready)
            FullLink.full = True
            it.send(Assign(RunId(1), JobId("j"), "t"), b"[1]")
            async with asyncio.timeout(30):
                while it.loop.unsent < 2:  # noqa: ASYNC110 - a counter, not an event
                    await asyncio.sleep(0.001)
            FullLink.full = False
            assert await it.until(Succeeded) == (Succeeded(RunId(1), 3), b"[1]")

    asyncio.run(run())


def test_a_bug_of_ours_ends_the_executor_loudly(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path) as it:
            await it.until(Hello)
            it.loop.crash(ZeroDivisionError("bug"))
            it.loop.crash(KeyError("later"))
            with pytest.raises(ZeroDivisionError):
                await it.exit_code()

    asyncio.run(run())


def test_events_that_arise_while_deciding_are_decided_after(tmp_path: Path) -> None:
    async def run() -> None:
        async with side(tmp_path) as it:
            await it.until(Hello)
            it.loop.feed(Welcome())  # the echo engine reports twice while this is carried out
            assert (await it.until(Ready))[0].slots == 2
            it.loop.feed(EngineAnswered())
            it.loop.feed(EngineProbed(health=EngineHealth.DEAD))
            it.loop.feed(RunFailed(run=RunId(9), error="", fault=Fault.JOB))
            it.loop.feed(Stop())
            assert await it.exit_code() == 0

    asyncio.run(run())


# ---------------------------------------------------------------- wake-ups that ZeroMQ swallows


class SwallowingLink:
    """A link whose descriptor tells of an arrival once, and of one during a send not at all."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.waiting: deque[FromSupervisor] = deque()
        #: What arrives while a message of this type is sent.
        self.replies: dict[type[object], FromSupervisor] = {}

    def fileno(self) -> int:
        return self._fd

    def readable(self) -> bool:
        return bool(self.waiting)

    def arrive(self, *messages: FromSupervisor) -> None:
        self.waiting.extend(messages)
        os.eventfd_write(self._fd, 1)

    def receive(self, limit: int) -> list[tuple[FromSupervisor, bytes | None]]:
        with suppress(BlockingIOError):
            os.eventfd_read(self._fd)
        return [(self.waiting.popleft(), None) for _ in range(min(limit, len(self.waiting)))]

    def send(self, message: object, body: bytes | None = None) -> None:
        reply = self.replies.pop(type(message), None)
        if reply is not None:
            self.waiting.append(reply)

    def close(self) -> None:
        os.close(self._fd)


@asynccontextmanager
async def swallowing(
    folder: Path, hello_every_s: float = 3600.0
) -> AsyncIterator[tuple[SwallowingLink, ExecutorLoop]]:
    link = SwallowingLink()
    log_fd = os.open(os.devnull, os.O_WRONLY)
    logs = Logs(log_fd)
    loop = asyncio.get_running_loop()
    executor = ExecutorLoop(
        loop=loop,
        state=initial_state(policy(hello_every_s=hello_every_s)),
        link=cast(SupervisorLink, link),
        engine=EchoEngine(),
        logs=logs,
        make_runs=lambda report: Runs(loop, Registry({}, EchoBackend()), folder, report, logs),
    )
    try:
        yield link, executor
    finally:
        link.close()
        os.close(log_fd)


def test_a_message_that_came_during_a_send_needs_no_wake_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "GUARD_S", 3600.0)

    async def run() -> None:
        async with swallowing(tmp_path, hello_every_s=0.01) as (link, executor):
            life = asyncio.create_task(executor.run())
            await asyncio.sleep(0)
            # The first hello is out; the next one is sent by a timer, and nothing else looks at the link.
            link.replies[Hello] = Stop(grace_s=0.0)
            assert await asyncio.wait_for(life, 10) == 0

    asyncio.run(run())


def test_what_one_batch_leaves_behind_needs_no_wake_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "GUARD_S", 3600.0)

    async def run() -> None:
        async with swallowing(tmp_path) as (link, executor):
            life = asyncio.create_task(executor.run())
            await asyncio.sleep(0)
            link.arrive(Welcome(heartbeat_s=3600.0), *[Pulse(1)] * (2 * BATCH), Stop(grace_s=0.0))
            assert await asyncio.wait_for(life, 10) == 0

    asyncio.run(run())


def test_a_message_that_no_wake_up_told_of_is_found_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "GUARD_S", 0.001)

    async def run() -> None:
        async with swallowing(tmp_path) as (link, executor):
            life = asyncio.create_task(executor.run())
            await asyncio.sleep(0)
            link.waiting.append(Stop(grace_s=0.0))
            assert await asyncio.wait_for(life, 10) == 0
            assert executor.rescued == 1

    asyncio.run(run())
