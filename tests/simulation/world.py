"""The whole node in virtual time: real cores, simulated wires, processes, engines, disk and queue.

One seed is one world: every choice comes from its dice, so a seed replays exactly. After every step the
supervisor's invariants are checked, and the promises that only an onlooker can check: no job runs in two
places, no answer belongs to another job, no report comes twice.
"""

from __future__ import annotations

import hashlib
import itertools
from random import Random
from typing import Any

import msgspec

from gpuward_executors.core.state import Stage
from gpuward_ipc import messages
from gpuward_ipc.types import ExecutorName, Fence, Incarnation, JobId, RunId
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.core import invariants
from gpuward_supervisor.core.decide import decide, initial_state, next_deadline
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.core.state import ExecutorPhase, State
from simulation.clock import Clock
from simulation.executor_side import ExecutorProcess, Habits
from simulation.network import FAIR, Network, Weather
from simulation.queue_side import SOURCE, PromiseBroken, Queue


class Dangers(msgspec.Struct, frozen=True):
    """Mean time between two faults of a kind, in seconds."""

    executor_killed_s: float = 15.0
    engine_dies_s: float = 20.0
    connection_cut_s: float = 25.0
    supervisor_killed_s: float = 120.0
    revoked_s: float = 6.0
    redispatched_s: float = 15.0
    executor_frozen_s: float = 60.0
    weather: Weather = Weather()
    habits: Habits = Habits()


class World:
    """One node and its queue."""

    def __init__(self, seed: int, dangers: Dangers | None = None, executors: int = 3, slots: int = 2) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.clock = Clock()
        self.dangers = dangers or Dangers()
        self.policy = Policy(
            executors=tuple(ExecutorPlan(ExecutorName(f"gpu{n}"), slots) for n in range(executors)),
            sources=(SOURCE,),
            attempts_max=4,
            restart_intensity=1_000_000,
            backoff_max_s=8.0,
            start_timeout_s=60.0,
        )
        self.slots = slots
        self.network = Network(self.clock, Random(seed + 1), self.dangers.weather)
        self.queue = Queue(self.clock, Random(seed + 2), self._from_queue)
        #: Survives a kill of the supervisor: owed reports.
        self.disk: dict[tuple[str, JobId], tuple[Fence, str | None, str, str]] = {}
        self.lives = 0
        self.asking = True
        self.faulty = True
        self._trace = hashlib.sha256()
        self._wake_up()
        self._every(1.5, self._ask)
        for mean_s, strike in (
            (self.dangers.executor_killed_s, self._kill_executor),
            (self.dangers.engine_dies_s, self._kill_engine),
            (self.dangers.connection_cut_s, self.queue.cut),
            (self.dangers.supervisor_killed_s, self._kill_supervisor),
            (self.dangers.revoked_s, self.queue.revoke_one),
            (self.dangers.redispatched_s, self.queue.redispatch_one),
        ):
            self._danger(mean_s, strike)

    # ------------------------------------------------------------ running it

    def run(self, steps: int) -> str:
        """Take this many steps; returns a digest of everything that was decided."""
        for _ in range(steps):
            if not self.clock.step():
                break
            self._check()
        return self._trace.hexdigest()

    def settle(self, within_s: float = 1500.0) -> None:
        """Faults stop, no new jobs come: in the end every job must be answered and nothing be left.

        Raises:
            PromiseBroken: it is not so.
        """
        self.asking = self.faulty = False
        self.network.weather = FAIR
        self.dangers = msgspec.structs.replace(
            self.dangers, habits=Habits(fails_to_start=0, run_fails=0, job_is_bad=0)
        )
        for process in self.processes.values():
            process.habits = self.dangers.habits
        deadline_s = self.clock.now_s + within_s
        while self.clock.now_s < deadline_s:
            if not self.queue.unanswered() and not self.state.jobs and not self.state.owed:
                break
            if not self.clock.step():
                break
            self._check()
        left = self.queue.unanswered()
        if left:
            raise PromiseBroken(f"never answered: {[(j, self.queue.jobs[j].status) for j in left][:5]}")
        if self.state.jobs or self.state.owed:
            raise PromiseBroken(f"still held: {list(self.state.jobs)[:5]} {list(self.state.owed)[:5]}")
        if self.disk:
            raise PromiseBroken(f"still on disk: {list(self.disk)[:5]}")
        # Runs that nobody wants end at the latest when their engine is done with them.
        while self.state.orphans and self.clock.now_s < deadline_s and self.clock.step():
            self._check()
        if self.bodies:
            raise PromiseBroken(f"bodies never forgotten: {list(self.bodies.items())[:5]}")

    # ------------------------------------------------------------ the supervisor's shell

    def _wake_up(self) -> None:
        self.lives += 1
        life = self.lives
        self.state: State = initial_state(self.policy, self.seed * 1000 + life)
        self.bodies: dict[e.BodyId, str] = {}
        self._body_ids = itertools.count(1)
        self._forgotten: set[e.BodyId] = set()
        self.processes: dict[tuple[ExecutorName, Incarnation], ExecutorProcess] = {}
        self._cancelled: set[RunId] = set()
        self._ticking_at_s: float | None = None
        for (_source, job_id), (fence, body, error, url) in list(self.disk.items()):
            kept = None if body is None else self._keep(body)
            self._decide(
                e.ResultRecovered(
                    source=SOURCE,
                    job_id=job_id,
                    fence=fence,
                    body=kept,
                    body_bytes=0 if body is None else 300_000,
                    error=error,
                    result_upload_url=url,
                )
            )
        self._decide(e.Ticked())
        self.queue.node_up = True
        self.clock.after(0.5, self.queue.connect)

    def _decide(self, event: e.SupervisorEvent) -> None:
        commands = decide(self.state, event, self.clock.now_s)
        self._trace.update(repr((event, commands)).encode())
        for command in commands:
            if isinstance(command, do.Remember):
                body = None if command.body is None else self.bodies[command.body]
                key = (command.source, command.job_id)
                self.disk[key] = (command.fence, body, command.error, command.result_upload_url)
            elif isinstance(command, do.Unremember):
                self.disk.pop((command.source, command.job_id), None)
        for command in commands:
            self._perform(command)
        self._schedule_tick()

    def _perform(self, command: do.SupervisorCommand) -> None:
        match command:
            case do.Spawn(executor=name, incarnation=incarnation):
                self.clock.after(0.05, self._in_this_life(lambda: self._start(name, incarnation)))
            case do.Kill(executor=name, incarnation=incarnation):
                self.clock.after(
                    0.01, self._in_this_life(lambda: self._end_process(name, incarnation, None, 9))
                )
            case do.SendAssign():
                payload = self.bodies[command.body]
                self._to_executor(
                    command.executor,
                    command.incarnation,
                    messages.Assign(command.run, command.job_id, command.task, attempt=command.attempt),
                    payload,
                )
            case do.SendCancel(run=run):
                self._cancelled.add(run)
                self._to_executor(command.executor, command.incarnation, messages.Cancel(run))
            case do.SendAck(runs=runs):
                self._to_executor(command.executor, command.incarnation, messages.Ack(runs))
            case do.SendWelcome():
                self._to_executor(command.executor, command.incarnation, messages.Welcome())
            case do.SendPulse():
                self._to_executor(command.executor, command.incarnation, messages.Pulse())
            case do.SendStop(grace_s=grace_s):
                self._to_executor(command.executor, command.incarnation, messages.Stop(grace_s))
            case do.ForgetBody(body=body):
                if body in self._forgotten:
                    raise PromiseBroken(f"body {body} was forgotten twice")
                self._forgotten.add(body)
                del self.bodies[body]
            case do.FetchPayload(job_id=job_id, fence=fence):
                self.clock.after(
                    self.random.uniform(0.01, 2.0), self._in_this_life(lambda: self._fetched(job_id, fence))
                )
            case do.UploadResult(job_id=job_id, fence=fence, body=body):
                text = self.bodies[body]
                self.clock.after(
                    self.random.uniform(0.01, 2.0),
                    self._in_this_life(lambda: self._uploaded(job_id, fence, text)),
                )
            case do.ReportResult():
                self.queue.receive(command, self.bodies[command.body])
            case (
                do.Register()
                | do.Pause()
                | do.Resume()
                | do.AnnounceDrain()
                | do.ReportResultRef()
                | do.ReportError()
                | do.ReportProgress()
            ):
                self.queue.receive(command, None)
            case do.Exit():
                raise PromiseBroken(f"the node ended by itself: {command.reason}")
            case _:
                pass

    def _schedule_tick(self) -> None:
        due_s = next_deadline(self.state)
        if due_s is None or (self._ticking_at_s is not None and self._ticking_at_s <= due_s):
            return
        self._ticking_at_s = due_s

        def tick() -> None:
            if self._ticking_at_s == due_s:
                self._ticking_at_s = None
                self._decide(e.Ticked())

        self.clock.at(due_s, self._in_this_life(tick))

    def _keep(self, text: str) -> e.BodyId:
        body = e.BodyId(next(self._body_ids))
        self.bodies[body] = text
        return body

    # ------------------------------------------------------------ processes and link

    def _start(self, name: ExecutorName, incarnation: Incarnation) -> None:
        self._decide(e.ExecutorSpawned(executor=name, incarnation=incarnation, pid=1))

        def send(message: messages.FromExecutor, body: str | None) -> None:
            self.network.carry(
                self._in_this_life(lambda: self._from_executor(name, incarnation, message, body))
            )

        def left(code: int) -> None:
            self.clock.after(
                0.01, self._in_this_life(lambda: self._end_process(name, incarnation, code, None))
            )

        process = ExecutorProcess(
            name, incarnation, self.slots, self.clock, self.random, self.dangers.habits, send, left
        )
        self.processes[name, incarnation] = process

    def _end_process(
        self, name: ExecutorName, incarnation: Incarnation, code: int | None, signal: int | None
    ) -> None:
        process = self.processes.pop((name, incarnation), None)
        if process is None:
            return
        process.kill()
        self._decide(e.ExecutorExited(executor=name, incarnation=incarnation, exit_code=code, signal=signal))
        swept = e.ExecutorSwept(executor=name, incarnation=incarnation)
        self.clock.after(self.random.uniform(0.02, 0.5), self._in_this_life(lambda: self._decide(swept)))

    def _to_executor(
        self,
        name: ExecutorName,
        incarnation: Incarnation,
        message: messages.FromSupervisor,
        payload: str | None = None,
    ) -> None:
        def arrive() -> None:
            process = self.processes.get((name, incarnation))
            if process is not None:
                process.receive(message, payload)

        self.network.carry(self._in_this_life(arrive))

    def _from_executor(
        self, name: ExecutorName, incarnation: Incarnation, message: messages.FromExecutor, body: str | None
    ) -> None:
        who: dict[str, Any] = {"executor": name, "incarnation": incarnation}
        match message:
            case messages.Hello():
                self._decide(e.ExecutorConnected(**who))
            case messages.Ready(slots=slots):
                self._decide(e.ExecutorReady(**who, slots=slots))
            case messages.Heartbeat():
                self._decide(
                    e.ExecutorBeat(**who, seq=message.seq, runs=message.runs, slots=message.slots, phase="")
                )
            case messages.Succeeded(run=run):
                assert body is not None
                large = 300_000 if self.queue.jobs[JobId(body.removeprefix("result of "))].large else 100
                self._decide(e.RunSucceeded(**who, run=run, body=self._keep(body), body_bytes=large))
            case messages.Failed(run=run):
                self._decide(e.RunFailed(**who, run=run, error=message.error, fault=message.fault))
            case messages.Cancelled(run=run):
                self._decide(e.RunCancelled(**who, run=run))
            case messages.EngineExited():
                self._decide(e.EngineDied(**who, detail=message.detail))
            case _:
                pass

    # ------------------------------------------------------------ the queue's side

    def _from_queue(self, event: e.SupervisorEvent, payload: str | None) -> None:
        if isinstance(event, e.JobOffered) and payload is not None:
            event = msgspec.structs.replace(event, body=self._keep(payload))
        self._decide(event)

    def _fetched(self, job_id: JobId, fence: Fence) -> None:
        if self.faulty and self.random.random() < 0.1:
            failed = e.PayloadFetchFailed(source=SOURCE, job_id=job_id, fence=fence, error="HTTP 404")
            self._decide(failed)
            return
        body = self._keep(f"payload of {job_id}")
        self._decide(
            e.PayloadFetched(source=SOURCE, job_id=job_id, fence=fence, body=body, body_bytes=100, task="t")
        )

    def _uploaded(self, job_id: JobId, fence: Fence, text: str) -> None:
        if self.faulty and self.random.random() < 0.2:
            self._decide(e.ResultUploadFailed(source=SOURCE, job_id=job_id, fence=fence, error="HTTP 403"))
            return
        self.queue.uploads[job_id, fence] = text
        self._decide(e.ResultUploaded(source=SOURCE, job_id=job_id, fence=fence))

    # ------------------------------------------------------------ dangers

    def _every(self, mean_s: float, act: object) -> None:
        def again() -> None:
            act()  # type: ignore[operator]
            self.clock.after(self.random.expovariate(1 / mean_s), again)

        self.clock.after(self.random.expovariate(1 / mean_s), again)

    def _danger(self, mean_s: float, strike: object) -> None:
        def act() -> None:
            if self.faulty:
                strike()  # type: ignore[operator]

        self._every(mean_s, act)

    def _ask(self) -> None:
        if self.asking:
            for _ in range(self.random.choice((1, 1, 2, 6))):
                self.queue.ask(
                    persisted=self.random.random() < 0.6,
                    large=self.random.random() < 0.2,
                    by_url=self.random.random() < 0.2,
                )

    def _kill_executor(self) -> None:
        if self.processes:
            name, incarnation = self.random.choice(sorted(self.processes))
            self._end_process(name, incarnation, None, 9)

    def _kill_engine(self) -> None:
        if self.processes:
            self.processes[self.random.choice(sorted(self.processes))].engine_dies()

    def _kill_supervisor(self) -> None:
        if not self.queue.node_up:
            return  # dead already, and about to be started again
        for process in self.processes.values():
            process.kill()
        self.queue.node_up = False
        self.queue.cut()
        # Nothing of the old life happens any more; the journal is all that is left.
        self.lives += 1
        self.clock.after(self.random.uniform(0.1, 3.0), self._wake_up)

    def _in_this_life(self, act: object) -> _Once:
        return _Once(self, self.lives, act)

    # ------------------------------------------------------------ the onlooker

    def _check(self) -> None:
        if not self.queue.node_up:
            return
        invariants.check(self.state)
        for executor in self.state.executors.values():
            process = self.processes.get((executor.name, executor.incarnation))
            if process is None:
                continue
            stage = process.state.stage
            if executor.phase is ExecutorPhase.READY and stage in {Stage.WAITING, Stage.STARTING}:
                raise PromiseBroken(f"{executor.name} gets jobs, but its engine is not ready: {stage}")
            if executor.phase is ExecutorPhase.DYING and not executor.kills and stage is Stage.READY:
                raise PromiseBroken(f"{executor.name} is taken for dying and is healthy")
        places: dict[str, list[RunId]] = {}
        for process in self.processes.values():
            for run, job in process.working.items():
                if run not in self._cancelled:
                    places.setdefault(job, []).append(run)
        for job, runs in places.items():
            if len(runs) > 1:
                raise PromiseBroken(f"{job} runs in {len(runs)} places: runs {runs}")


class _Once:
    """A callback that belongs to one life of the supervisor."""

    def __init__(self, world: World, life: int, act: object) -> None:
        self._world, self._life, self._act = world, life, act

    def __call__(self) -> None:
        if self._world.lives == self._life:
            self._act()  # type: ignore[operator]
