"""Whatever comes, in whatever order: a run is in one place, its outcome is not lost, and decisions repeat."""

from __future__ import annotations

from random import Random

import pytest

from gpuward_executors.core.commands import (
    CancelRun,
    ExecutorCommand,
    Exit,
    KillEngine,
    ProbeEngine,
    Send,
    StartEngine,
    StartRun,
    StopEngine,
)
from gpuward_executors.core.decide import decide, initial_state, next_deadline
from gpuward_executors.core.events import (
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineProbed,
    EngineStarted,
    ExecutorEvent,
    RunCancelled,
    RunFailed,
    Ticked,
)
from gpuward_executors.core.state import Stage, State
from gpuward_ipc.messages import Ack, Cancel, Cancelled, Failed, Pulse, Stop, Succeeded, Welcome
from gpuward_ipc.types import Fault, RunId
from support.executor_core import assign, policy, won

RUNS = 12


def check(state: State) -> None:
    places = [set(state.queued), set(state.running), set(state.unacked)]
    assert sum(len(place) for place in places) == len(set().union(*places)), "a run is in two places"
    assert len(state.running) <= state.policy.slots
    assert not (set(state.probed) & set(state.unprobed))
    assert set(state.probed) | set(state.unprobed) <= set(state.running)
    assert not state.unprobed or state.probing
    times = [sent.sent_at_s for sent in state.unacked.values()]
    assert times == sorted(times)


class World:
    """A supervisor and an engine that do as they like, by a seed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.state = initial_state(policy(slots=3))
        self.now_s = 0.0
        self.trace: list[ExecutorCommand] = []
        self.at_work: set[RunId] = set()
        self.started: list[RunId] = []
        self.outcomes: dict[RunId, list[object]] = {}
        self.acked: set[RunId] = set()
        self.engine = "none"
        self.gone = False

    def feed(self, event: ExecutorEvent) -> None:
        commands = decide(self.state, event, self.now_s)
        check(self.state)
        self.trace += commands
        for command in commands:
            match command:
                case StartRun():
                    self.at_work.add(command.assign.run)
                    self.started.append(command.assign.run)
                case Send(message=Succeeded() | Failed() | Cancelled() as message):
                    self.outcomes.setdefault(message.run, []).append(message)
                case StartEngine():
                    self.engine = "starting"
                case KillEngine() | StopEngine():
                    self.engine = "ending"
                case Exit():
                    self.gone = True
                case _:
                    pass

    def event(self) -> ExecutorEvent:
        run = RunId(self.random.randint(1, RUNS))
        choice = self.random.random()
        if choice < 0.25:
            return assign(run)
        if choice < 0.35:
            return Cancel(run)
        if choice < 0.45:
            acked = tuple(run for run in self.outcomes if self.random.random() < 0.5)
            self.acked.update(acked)
            return Ack(acked)
        if choice < 0.7 and self.at_work:
            done = self.random.choice(sorted(self.at_work))
            self.at_work.discard(done)
            return self.random.choice(
                [
                    won(done),
                    RunFailed(run=done, error="e", fault=Fault.JOB),
                    RunFailed(run=done, error="e", fault=Fault.ENGINE),
                    RunCancelled(run=done),
                ]
            )
        if choice < 0.8:
            return EngineProbed(health=self.random.choice([EngineHealth.HEALTHY, EngineHealth.SILENT]))
        if choice < 0.81:
            return EngineProbed(health=EngineHealth.DEAD)
        if choice < 0.9:
            self.now_s += self.random.random()
            return Ticked()
        return self.random.choice([Pulse(), Welcome(), EngineStarted(pid=1), EngineAnswered()])

    def live(self, steps: int) -> None:
        for _ in range(steps):
            self.feed(self.event())


@pytest.mark.parametrize("seed", range(40))
def test_a_run_starts_at_most_once_and_every_outcome_of_a_run_is_the_same(seed: int) -> None:
    world = World(seed)
    world.live(300)
    assert len(world.started) == len(set(world.started))
    for run, outcomes in world.outcomes.items():
        # A cancel of a run that is acknowledged long since is answered for politeness' sake.
        real = [o for o in outcomes if not (isinstance(o, Cancelled) and run in world.acked)]
        assert len(set(map(str, real))) <= 1, real


@pytest.mark.parametrize("seed", range(10))
def test_a_run_that_was_started_or_queued_is_answered_in_the_end(seed: int) -> None:
    world = World(seed)
    world.feed(Ticked())
    world.feed(Welcome())
    world.feed(EngineAnswered())
    for run in range(1, RUNS + 1):
        world.feed(assign(run))
    while len(world.outcomes) < RUNS:
        assert world.at_work or world.state.probing
        for run in sorted(world.at_work):
            world.at_work.discard(run)
            fault = world.random.choice([Fault.JOB, Fault.ENGINE])
            world.feed(world.random.choice([won(run), RunFailed(run=run, error="e", fault=fault)]))
        world.feed(EngineProbed(health=EngineHealth.HEALTHY))
    assert set(world.outcomes) == {RunId(run) for run in range(1, RUNS + 1)}


@pytest.mark.parametrize("seed", range(5))
def test_the_same_events_at_the_same_times_give_the_same_commands(seed: int) -> None:
    first, second = World(seed), World(seed)
    first.live(200)
    second.live(200)
    assert first.trace == second.trace


@pytest.mark.parametrize("seed", range(20))
def test_a_stop_always_ends_the_executor_whatever_the_engine_does(seed: int) -> None:
    world = World(seed)
    world.live(world.random.randint(0, 80))
    if not world.gone:
        world.feed(Stop(grace_s=1.0))
        while not world.gone:
            due_s = next_deadline(world.state)
            assert due_s is not None, world.state.stage
            assert due_s < world.now_s + 60.0
            world.now_s = max(world.now_s, due_s)
            world.feed(Ticked())
    assert world.state.stage is Stage.GONE


def test_nothing_happens_after_the_exit() -> None:
    state = initial_state(policy())
    decide(state, Stop(), 0.0)
    for event in (Ticked(), assign(1), Welcome(), EngineEnded(), Stop()):
        assert decide(state, event, 1.0) == []


def test_a_suspicion_is_probed_once_at_a_time() -> None:
    state = initial_state(policy(slots=9))
    for event in (Ticked(), Welcome(), EngineAnswered(), *(assign(run) for run in range(1, 6))):
        decide(state, event, 0.0)
    probes = [
        command
        for run in range(1, 6)
        for command in decide(state, RunFailed(run=RunId(run), error="e", fault=Fault.ENGINE), 0.0)
    ]
    assert probes == [ProbeEngine()]
    assert CancelRun(run=RunId(1)) not in probes
