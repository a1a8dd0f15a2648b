"""An incarnation of an executor in the simulation: the real executor core on a simulated engine."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec

from gpuward_executors.core import commands as do
from gpuward_executors.core import events as e
from gpuward_executors.core.decide import decide, initial_state, next_deadline
from gpuward_executors.core.state import ExecutorPolicy
from gpuward_ipc import messages
from gpuward_ipc.types import ExecutorName, Fault, Incarnation, RunId
from simulation.clock import Clock
from simulation.queue_side import PromiseBroken


class Habits(msgspec.Struct, frozen=True):
    """How engines behave; times in seconds, probabilities 0..1."""

    start_s: tuple[float, float] = (0.2, 6.0)
    fails_to_start: float = 0.05
    run_s: tuple[float, float] = (0.05, 8.0)
    run_fails: float = 0.03
    job_is_bad: float = 0.02
    #: Ignores a cancel and finishes first.
    ignores_cancel: float = 0.2


class ExecutorProcess:
    """One incarnation, from its start to its end."""

    def __init__(
        self,
        name: ExecutorName,
        incarnation: Incarnation,
        slots: int,
        clock: Clock,
        random: Random,
        habits: Habits,
        send: Callable[[messages.FromExecutor, str | None], None],
        left: Callable[[int], None],
    ) -> None:
        """Start it.

        Args:
            name, incarnation, slots: who it is.
            clock, random, habits: the world that it lives in.
            send: takes a message, with its body, to the network.
            left: told the exit code when it leaves by itself.
        """
        self.name = name
        self.incarnation = incarnation
        self._slots = slots
        self._clock = clock
        self._random = random
        self.habits = habits
        self._send = send
        self._left = left
        policy = ExecutorPolicy(name, incarnation, pid=1, slots=slots, start_timeout_s=30.0)
        self.state = initial_state(policy)
        self.alive = True
        self._engine_alive = False
        self._payloads: dict[RunId, str] = {}
        self._results: dict[RunId, str] = {}
        #: Runs that a backend works on, with their job.
        self.working: dict[RunId, str] = {}
        self._ticking_at_s: float | None = None
        self.take(e.Ticked())

    def receive(self, message: messages.FromSupervisor, payload: str | None) -> None:
        """A message of the supervisor has arrived."""
        if isinstance(message, messages.Assign) and payload is not None:
            self._payloads.setdefault(message.run, payload)
        self.take(message)

    def take(self, event: e.ExecutorEvent) -> None:
        """One turn of its loop."""
        if not self.alive:
            return
        for command in decide(self.state, event, self._clock.now_s):
            self._perform(command)
        if self.alive:
            self._schedule_tick()

    def kill(self) -> None:
        """SIGKILL: no last words."""
        self.alive = False
        self.working.clear()

    def engine_dies(self) -> None:
        """Its engine is gone from one moment to the next."""
        if self.alive and self._engine_alive:
            self._engine_alive = False
            self.working.clear()
            self.take(e.EngineEnded(signal=11, detail="segmentation fault"))

    # ------------------------------------------------------------ effects

    def _perform(self, command: do.ExecutorCommand) -> None:
        match command:
            case do.Send(message=message):
                body = None
                if isinstance(message, messages.Succeeded):
                    body = self._results.get(message.run)
                    if body is None:
                        raise PromiseBroken(
                            f"{self.name}: the result of run {message.run} was forgotten too early"
                        )
                self._send(message, body)
            case do.StartEngine():
                self._clock.after(self._random.uniform(*self.habits.start_s), self._engine_up)
            case do.StartRun(assign=assign):
                self._begin(assign)
            case do.CancelRun(run=run):
                if self._random.random() >= self.habits.ignores_cancel:
                    self._clock.after(0.01, lambda: self._cancelled(run))
            case do.StopEngine() | do.KillEngine():
                self._clock.after(0.05, self._engine_stopped)
            case do.ProbeEngine():
                health = e.EngineHealth.HEALTHY if self._engine_alive else e.EngineHealth.DEAD
                self._clock.after(0.05, lambda: self.take(e.EngineProbed(health=health)))
            case do.ForgetPayload(run=run):
                if run not in self.working:
                    self._payloads.pop(run, None)
            case do.ForgetResults(runs=runs):
                for run in runs:
                    self._results.pop(run, None)
            case do.Exit(code=code):
                self.kill()
                self._left(code)
            case do.Note():
                pass

    def _engine_up(self) -> None:
        if not self.alive:
            return
        if self._random.random() < self.habits.fails_to_start:
            self.take(e.EngineEnded(exit_code=1, detail="could not start"))
            return
        self._engine_alive = True
        self.take(e.EngineStarted(pid=2))
        self.take(e.EngineAnswered())

    def _engine_stopped(self) -> None:
        self._engine_alive = False
        self.working.clear()
        self.take(e.EngineEnded(exit_code=0))

    def _begin(self, assign: messages.Assign) -> None:
        run = assign.run
        payload = self._payloads.get(run)
        if payload is None:
            raise PromiseBroken(f"{self.name}: run {run} was started without its payload")
        if payload != f"payload of {assign.job_id}":
            raise PromiseBroken(f"{self.name}: {assign.job_id} was started with {payload!r}")
        self.working[run] = str(assign.job_id)
        if len(self.working) > self._slots:
            raise PromiseBroken(f"{self.name} runs {len(self.working)} jobs with {self._slots} slots")
        self._clock.after(self._random.uniform(*self.habits.run_s), lambda: self._end(assign))

    def _end(self, assign: messages.Assign) -> None:
        run = assign.run
        if not self.alive or run not in self.working:
            return
        del self.working[run]
        self._payloads.pop(run, None)
        dice = self._random.random()
        if dice < self.habits.job_is_bad:
            self.take(e.RunFailed(run=run, error="bad job", fault=Fault.JOB))
        elif dice < self.habits.job_is_bad + self.habits.run_fails:
            self.take(e.RunFailed(run=run, error="engine said 500", fault=Fault.ENGINE))
        else:
            self._results[run] = f"result of {assign.job_id}"
            self.take(e.RunSucceeded(run=run, body_bytes=100))

    def _cancelled(self, run: RunId) -> None:
        if self.alive and self.working.pop(run, None) is not None:
            self._payloads.pop(run, None)
            self.take(e.RunCancelled(run=run))

    def _schedule_tick(self) -> None:
        due_s = next_deadline(self.state)
        if due_s is None or (self._ticking_at_s is not None and self._ticking_at_s <= due_s):
            return
        self._ticking_at_s = due_s

        def tick() -> None:
            if self._ticking_at_s == due_s:
                self._ticking_at_s = None
                self.take(e.Ticked())

        self._clock.at(due_s, tick)
