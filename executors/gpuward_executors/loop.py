"""The executor's single writer: messages, engine events and timers in, ``decide``, commands out.

The link's descriptor is edge-triggered, and a send may swallow the edge: so every wake-up drains the link,
every batch of sends is followed by a look at it, and a slow guard tick catches what is missed all the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import assert_never

from gpuward_executors.core.commands import (
    CancelRun,
    ExecutorCommand,
    Exit,
    ForgetPayload,
    ForgetResults,
    KillEngine,
    Note,
    ProbeEngine,
    Send,
    StartEngine,
    StartRun,
    StopEngine,
)
from gpuward_executors.core.decide import decide, next_deadline
from gpuward_executors.core.events import EngineMeasured, EngineProbed, ExecutorEvent, Ticked
from gpuward_executors.core.state import State
from gpuward_executors.engines.base import Engine
from gpuward_executors.logs import Logs
from gpuward_executors.runs import Runs
from gpuward_executors.tasks import raise_failure
from gpuward_ipc.channel import SupervisorLink
from gpuward_ipc.errors import BackPressure
from gpuward_ipc.messages import Assign, Succeeded

#: Messages taken from the link before other events of the loop get their turn.
BATCH = 256
GUARD_S = 0.1
MEASURE_EVERY_S = 5.0


class ExecutorLoop:
    """Joins the core with the world; everything here runs in one event loop."""

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        state: State,
        link: SupervisorLink,
        engine: Engine,
        logs: Logs,
        make_runs: Callable[[Callable[[ExecutorEvent], None]], Runs],
    ) -> None:
        """Join.

        Args:
            loop: the event loop.
            state: of the core; from here on changed by this object only.
            link: to the supervisor.
            engine: not started yet.
            logs: takes the core's notes.
            make_runs: builds the runs, given where they report to.
        """
        self._loop = loop
        self._state = state
        self._link = link
        self._engine = engine
        self._logs = logs
        self._runs = make_runs(self.feed)
        self._events: deque[ExecutorEvent] = deque()
        self._turning = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s: float | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        #: A look at the link is queued in the event loop.
        self._looking = False
        self._exit: asyncio.Future[int] = loop.create_future()
        #: Messages that could not be sent because the supervisor did not read; outcomes are sent again later.
        self.unsent = 0
        #: Messages that only the guard tick found.
        self.rescued = 0

    async def run(self) -> int:
        """Live; returns the exit code."""
        self._loop.add_reader(self._link.fileno(), self._on_readable)
        guard = self._in_background(self._guard())
        measure = self._in_background(self._measure())
        try:
            self.feed(Ticked())
            self._look_at_link()
            return await self._exit
        finally:
            guard.cancel()
            measure.cancel()
            self._runs.abandon()
            self._loop.remove_reader(self._link.fileno())
            if self._timer is not None:
                self._timer.cancel()

    def crash(self, error: BaseException) -> None:
        """End ``run`` with an error: after a bug of ours the state is not to be trusted any more."""
        if not self._exit.done():
            self._exit.set_exception(error)

    def feed(self, event: ExecutorEvent) -> None:
        """Take an event in; decided upon at once, or after the one that is being decided upon."""
        self._events.append(event)
        if not self._turning:
            self._turn()
            self._look_at_link()

    def _turn(self) -> None:
        self._turning = True
        try:
            now_s = self._loop.time()
            while self._events:
                for command in decide(self._state, self._events.popleft(), now_s):
                    self._carry_out(command)
        finally:
            self._turning = False
        self._arm_timer()

    def _carry_out(self, command: ExecutorCommand) -> None:
        match command:
            case Send():
                self._send(command)
            case StartRun():
                self._runs.start(command.assign)
            case ForgetResults():
                self._runs.forget_results(command.runs)
            case CancelRun():
                self._runs.cancel(command.run)
            case ForgetPayload():
                self._runs.forget_payload(command.run)
            case Note():
                self._logs.log(command.level, command.event, command.facts)
            case StartEngine():
                self._engine.start(self.feed)
            case StopEngine():
                self._engine.stop(command.grace_s)
            case KillEngine():
                self._engine.kill()
            case ProbeEngine():
                self._in_background(self._probe())
            case Exit():
                if not self._exit.done():
                    self._exit.set_result(command.code)
            case _:
                assert_never(command)

    def _send(self, command: Send) -> None:
        message = command.message
        body = None
        if isinstance(message, Succeeded) and not message.body_path:
            body = self._runs.result(message.run)
        try:
            self._link.send(message, body)
        except BackPressure:
            # Heartbeats repeat everything that matters: outcomes until acknowledged, readiness, runs.
            self.unsent += 1

    def _on_readable(self) -> None:
        self._looking = False
        taken = self._link.receive(BATCH)
        for message, body in taken:
            if body is not None and isinstance(message, Assign):
                self._runs.keep_payload(message.run, body)
            self._events.append(message)
        if self._events and not self._turning:
            self._turn()
        self._look_at_link()

    def _look_at_link(self) -> None:
        if not self._looking and not self._exit.done() and self._link.readable():
            # By way of the loop, so that engines and timers get their turn between two batches.
            self._looking = True
            self._loop.call_soon(self._on_readable)

    def _arm_timer(self) -> None:
        due_s = next_deadline(self._state)
        if due_s == self._timer_at_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at_s = due_s
        self._timer = None if due_s is None else self._loop.call_at(due_s, self._on_deadline)

    def _on_deadline(self) -> None:
        self._timer = None
        self._timer_at_s = None
        self.feed(Ticked())

    def _in_background(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        # The loop itself holds tasks weakly.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(raise_failure)
        return task

    async def _probe(self) -> None:
        self.feed(EngineProbed(health=await self._engine.probe()))

    async def _guard(self) -> None:
        while True:
            await asyncio.sleep(GUARD_S)
            if self._link.readable():
                self.rescued += 1
                self._on_readable()

    async def _measure(self) -> None:
        while True:
            await asyncio.sleep(MEASURE_EVERY_S)
            # /proc of a whole machine: milliseconds that the loop shall not lose.
            self.feed(EngineMeasured(rss_bytes=await asyncio.to_thread(self._engine.rss_bytes)))
