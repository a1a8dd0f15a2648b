"""The single writer on the real core: what wakes it, when it wakes by itself, in what order it acts."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq
from structlog.testing import capture_logs

from gpuward_ipc import messages as m
from gpuward_ipc.types import ExecutorName, Fence, Incarnation, JobId
from gpuward_supervisor import loop as loop_module
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.core.decide import initial_state
from gpuward_supervisor.core.events import ConnectionId, Mode
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.inlets import ExecutorInlet, JournalInlet, ProcessInlet, SourceInlet
from gpuward_supervisor.loop import SLEEP_MAX_S, Inlet, Loop
from gpuward_supervisor.sources.base import SourceCommand
from support.clock import Clock
from support.shell_parts import CASOLA, GPU0, GPU1, ONE, PATIENCE_S, Shell, next_messages

START_S = 1000.0
#: More than any test sleeps for real: only what is tested can end a wait before the test's own timeout.
FOREVER_S = 3600.0
STOP = e.StopNow(reason="the test is over")


class Sleep:
    """Takes the place of the loop's poller: what is readable is found as ever, sleeping moves the clock."""

    def __init__(self, poller: zmq.Poller, clock: Clock) -> None:
        self._poller = poller
        self._clock = clock
        self._planned: list[tuple[float, Callable[[], object]]] = []
        #: Every wait that was asked for, in milliseconds.
        self.asked_ms: list[int] = []
        #: The time at the end of each wait in which nothing came.
        self.woke_s: list[float] = []

    def at(self, when_s: float, action: Callable[[], object]) -> None:
        """Let something happen at a time; the loop sleeps no longer than that if it makes a noise."""
        self._planned.append((when_s, action))
        self._planned.sort(key=lambda planned: planned[0])

    def poll(self, timeout_ms: int) -> list[tuple[Any, int]]:
        self.asked_ms.append(timeout_ms)
        until_s = self._clock.now_s + timeout_ms / 1000
        while True:
            ready = self._poller.poll(0)
            if ready:
                return ready
            if not self._planned or self._planned[0][0] > until_s:
                self._clock.now_s = until_s
                self.woke_s.append(until_s)
                return []
            when_s, action = self._planned.pop(0)
            self._clock.now_s = max(self._clock.now_s, when_s)
            action()


class Probe:
    """An inlet that says when it was asked."""

    def __init__(self, due_s: float | None = None, answer: Sequence[e.SupervisorEvent] = ()) -> None:
        self.due_s = due_s
        self.answer = answer
        self.taken_at_s: list[float] = []

    @property
    def pollable(self) -> None:
        return None

    def take(self, now_s: float) -> Sequence[e.SupervisorEvent]:
        self.taken_at_s.append(now_s)
        self.due_s = None
        return self.answer

    def next_deadline(self) -> float | None:
        return self.due_s


class Node:
    """A loop with all its inlets but the one for signals, on a clock that moves when the loop sleeps."""

    def __init__(self, shell: Shell, *, inlets: Sequence[Inlet] = (), **policy: Any) -> None:
        names = policy.pop("executors", (GPU0,))
        self.shell = shell
        self.clock = Clock(START_S)
        self.state = initial_state(
            Policy(
                executors=tuple(ExecutorPlan(name, 2) for name in names),
                sources=(CASOLA,),
                backoff_jitter=0.0,
                **policy,
            ),
            seed=1,
        )
        self.swept: list[ExecutorName] = []
        self.inlets: list[Inlet] = [
            ExecutorInlet(shell.link, shell.router.socket),
            ProcessInlet(shell.host, lambda _: None, lambda executor, _: self.swept.append(executor)),
            SourceInlet(shell.mailbox),
            JournalInlet(shell.outbox),
            *inlets,
        ]
        self.loop = Loop(self.state, shell.effects, self.inlets, self.clock)
        self.sleep = Sleep(self.loop._poller, self.clock)
        self.loop._poller = self.sleep  # type: ignore[assignment]

    def run(self, *first: e.SupervisorEvent, until_s: float) -> tuple[int, str]:
        """Run until a time at which the node is told to stop, and it does."""
        self.sleep.at(until_s, lambda: self.shell.mailbox.post(STOP))
        return self.loop.run(first)

    def turn_of(self, kind: type[do.SupervisorCommand]) -> int:
        """Number of the first turn that performed such a command."""
        return next(
            number
            for number, turn in enumerate(self.shell.effects.turns)
            if any(isinstance(command, kind) for command in turn)
        )

    def performed(self) -> list[do.SupervisorCommand]:
        """Everything that was performed, notes excepted."""
        return [c for turn in self.shell.effects.turns for c in turn if not isinstance(c, do.Note)]

    def notes(self) -> list[do.Note]:
        """What was said."""
        return [c for turn in self.shell.effects.turns for c in turn if isinstance(c, do.Note)]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


# ---------------------------------------------------------------- beginning and end


def test_it_ends_with_the_code_and_the_reason_of_the_core(shell: Shell) -> None:
    node = Node(shell)
    shell.mailbox.post(e.StopRequested(reason="SIGTERM"))
    assert node.loop.run(()) == (0, "SIGTERM")
    assert node.swept == [GPU0]
    assert shell.source.kinds() == [do.CloseSource]


def test_a_failure_is_an_end_with_code_1(shell: Shell) -> None:
    shell.host.refusal = OSError(2, "No such file or directory")
    code, reason = Node(shell, restart_intensity=0).loop.run(())
    assert code == 1
    assert "no executor left" in reason and "gpu0" in reason


def test_what_happened_before_comes_first_and_executors_start_in_the_same_turn(shell: Shell) -> None:
    node = Node(shell, executors=(GPU0, GPU1))
    body = shell.bodies.put(b"{}")
    too_large = e.ResultRecovered(
        source=CASOLA, job_id=JobId("j"), fence=Fence(1), body=body, body_bytes=1 << 40, error=""
    )
    node.run(too_large, until_s=START_S + 1)
    assert [c for c in shell.effects.turns[0] if not isinstance(c, do.Note)] == [
        do.ForgetBody(body=body),
        do.Spawn(executor=GPU0, incarnation=ONE),
        do.Spawn(executor=GPU1, incarnation=ONE),
    ]
    assert shell.bodies.get(body) is None


# ---------------------------------------------------------------- what wakes it


def test_what_came_of_a_turn_is_decided_upon_at_once(shell: Shell) -> None:
    """The outcome of a spawn does not wait for the next noise."""
    node = Node(shell)
    node.run(until_s=START_S + 1)
    assert node.sleep.asked_ms[0] == 0
    assert [(note.event, note.facts["pid"]) for note in node.notes()[:1]] == [
        ("executor.spawned", os.getpid())
    ]
    assert node.notes()[0] in shell.effects.turns[1]


@pytest.fixture
def asleep_forever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no forgotten wake-up be made good by the longest sleep."""
    monkeypatch.setattr(loop_module, "SLEEP_MAX_S", FOREVER_S)


def run_beside(node: Node, script: Callable[[], None]) -> None:
    """Run the loop in real time while a script plays the world on another thread, then stop it."""

    def play() -> None:
        try:
            script()
        finally:
            node.shell.mailbox.post(STOP)

    loop = Loop(node.state, node.shell.effects, node.inlets)
    with ThreadPoolExecutor(1) as pool:
        played = pool.submit(play)
        assert loop.run(()) == (0, STOP.reason)
        played.result(PATIENCE_S)


def offer(job: str, body: e.BodyId | None = None, payload_url: str = "", refusal: str = "") -> e.JobOffered:
    return e.JobOffered(
        source=CASOLA,
        connection=ConnectionId(1),
        job_id=JobId(job),
        fence=Fence(5),
        mode=Mode.PERSISTED,
        task="chat",
        config_id="c",
        body=body,
        payload_url=payload_url,
        refusal=refusal,
    )


@pytest.mark.usefixtures("asleep_forever")
def test_each_post_from_another_thread_wakes_it(shell: Shell) -> None:
    fetched: queue.SimpleQueue[SourceCommand] = queue.SimpleQueue()
    shell.source.on_send = fetched.put
    node = Node(shell, hello_timeout_s=FOREVER_S, lease_renew_s=FOREVER_S)

    def post() -> None:
        for number in range(20):
            shell.mailbox.post(offer(f"job-{number}", payload_url="http://q/get"))
            command = fetched.get(timeout=PATIENCE_S)
            assert isinstance(command, do.FetchPayload) and command.job_id == f"job-{number}"

    run_beside(node, post)


@pytest.mark.usefixtures("asleep_forever")
def test_a_job_goes_from_its_source_to_an_executor_and_its_result_back(shell: Shell) -> None:
    """Everything real but the queue and the process: each step is a wake-up by another input."""
    node = Node(shell, hello_timeout_s=FOREVER_S, heartbeat_timeout_s=FOREVER_S, heartbeat_s=FOREVER_S)
    sent: queue.SimpleQueue[SourceCommand] = queue.SimpleQueue()
    shell.source.on_send = sent.put

    def play() -> None:
        shell.mailbox.post(e.SourceConnected(source=CASOLA, connection=ConnectionId(1)))
        executor = shell.peer()
        # The process is spawned in the first turn, before the loop hears anything.
        executor.send(m.Hello(GPU0, ONE, os.getpid()))
        ((welcome, _),) = next_messages(executor, 1)
        assert isinstance(welcome, m.Welcome)
        executor.send(m.Ready(2))
        register = sent.get(timeout=PATIENCE_S)
        assert isinstance(register, do.Register) and register.capacity == 2
        shell.mailbox.post(offer("j", shell.bodies.put(b'{"ask":1}')))
        ((assign, payload),) = next_messages(executor, 1)
        assert isinstance(assign, m.Assign) and payload == b'{"ask":1}'
        executor.send(m.Succeeded(assign.run, 2), b"42")
        report = sent.get(timeout=PATIENCE_S)
        assert isinstance(report, do.ReportResult) and (report.job_id, report.fence) == ("j", 5)
        assert shell.bodies.read(report.body) == b"42"
        shell.mailbox.post(e.ReportsDelivered(source=CASOLA, connection=report.connection, seq=report.seq))
        assert next_messages(executor, 1) == [(m.Ack((assign.run,)), None)]

    run_beside(node, play)
    assert node.state.counters.delivered == 1
    assert len(shell.bodies) == 0
    assert list(shell.journal.owed()) == []


# ---------------------------------------------------------------- when it wakes by itself


def test_a_deadline_of_the_core_wakes_it_on_time(shell: Shell) -> None:
    node = Node(shell, hello_timeout_s=30.0)
    killed_at_s: list[float] = []
    kill = shell.host.kill

    def watched(executor: ExecutorName, incarnation: Incarnation) -> None:
        killed_at_s.append(node.clock.now_s)
        kill(executor, incarnation)

    shell.host.kill = watched  # type: ignore[method-assign]
    node.run(until_s=START_S + 31)
    assert len(killed_at_s) == 1
    assert START_S + 30 <= killed_at_s[0] <= START_S + 30.002


def test_it_never_sleeps_longer_than_its_bound(shell: Shell) -> None:
    node = Node(shell, hello_timeout_s=FOREVER_S)
    node.run(until_s=START_S + 20)
    assert max(node.sleep.asked_ms) == SLEEP_MAX_S * 1000 + 1
    # The first wait is none: the spawn's outcome is there already.
    assert node.sleep.woke_s == pytest.approx([START_S, START_S + 5, START_S + 10, START_S + 15], abs=0.01)


def test_a_wake_up_for_nothing_performs_nothing(shell: Shell) -> None:
    node = Node(shell, hello_timeout_s=FOREVER_S)
    turns: list[int] = []
    node.sleep.at(START_S + 1, lambda: turns.append(len(shell.effects.turns)))
    node.sleep.at(START_S + 19, lambda: turns.append(len(shell.effects.turns)))
    node.run(until_s=START_S + 20)
    assert turns[0] == turns[1] > 0
    assert node.loop.turns > turns[1]


@pytest.mark.parametrize(
    ("in_s", "timeout_ms"),
    [(0.0004, 1), (0.001, 2), (0.0015, 2), (1.0, 1001), (0.0, 0), (-3.0, 0)],
)
def test_a_wait_is_rounded_up_so_that_the_deadline_is_met_and_not_spun_for(
    shell: Shell, in_s: float, timeout_ms: int
) -> None:
    probe = Probe()
    node = Node(shell, inlets=[probe], hello_timeout_s=FOREVER_S)
    node.clock.now_s = 0.0
    probe.due_s = in_s
    node.loop._sleep(no_wait=False)
    assert node.sleep.asked_ms == [timeout_ms]
    assert node.clock.now_s >= in_s


def test_an_inlets_deadline_wakes_it_and_what_it_takes_is_decided_upon(shell: Shell) -> None:
    probe = Probe(START_S + 7.25, [e.StopRequested(reason="the probe")])
    node = Node(shell, inlets=[probe], hello_timeout_s=FOREVER_S)
    assert node.loop.run(()) == (0, "the probe")
    (at_s,) = probe.taken_at_s
    assert START_S + 7.25 <= at_s <= START_S + 7.252


def test_the_hosts_deadline_makes_it_collect(shell: Shell) -> None:
    node = Node(shell, hello_timeout_s=FOREVER_S)
    shell.host.due_s = START_S + 2.5
    node.run(until_s=START_S + 4)
    assert START_S + 2.5 <= shell.host.collected_at_s[0] <= START_S + 2.502


def test_an_inlet_that_has_nothing_is_not_asked(shell: Shell) -> None:
    probe = Probe()
    node = Node(shell, inlets=[probe], hello_timeout_s=FOREVER_S)
    node.run(until_s=START_S + 12)
    assert probe.taken_at_s == []
    assert len(shell.host.collected_at_s) == 1, "only for the end of the executor"


def test_a_deadline_that_passes_during_a_turn_is_met_in_it(shell: Shell) -> None:
    """An event that comes at the same time as a deadline does not put it off."""
    node = Node(shell, hello_timeout_s=1.0)
    connected = e.SourceConnected(source=CASOLA, connection=ConnectionId(1))

    def late() -> None:
        node.clock.pass_s(5.0)
        shell.mailbox.post(connected)

    node.sleep.at(START_S + 0.5, late)
    node.run(until_s=START_S + 6)
    turn = shell.effects.turns[node.turn_of(do.Kill)]
    assert [c.event for c in turn if isinstance(c, do.Note)] == ["source.connected", "executor.killed"]


def test_a_failed_journal_is_tried_again_until_it_works(tmp_path: Path) -> None:
    shell = Shell(tmp_path, journal_works=False)
    try:
        node = Node(shell, hello_timeout_s=FOREVER_S)
        recovered = shell.outbox.recover()
        node.sleep.at(START_S + 2.5, lambda: setattr(shell.journal, "_min_free_bytes", 0))
        shell.mailbox.post(offer("refused", refusal="payload too large"))
        with capture_logs() as logs:
            node.run(*recovered, until_s=START_S + 6)
        assert [line["event"] for line in logs if line["event"] == "journal.restored"] == ["journal.restored"]
        assert not [note for note in node.notes() if "journal" in note.event], "said once"
        assert [str(record.job_id) for record in shell.journal.owed()] == ["refused"]
    finally:
        shell.close()


# ---------------------------------------------------------------- order


def test_what_comes_at_once_is_decided_upon_in_the_order_of_the_inlets_and_performed_once(
    shell: Shell,
) -> None:
    """Last words of an executor count before its death: here the news that no restart can help it."""
    node = Node(shell, executors=(GPU0, GPU1))
    peer = shell.connected()

    def dies() -> None:
        peer.send(m.EngineExited(127, None, "no such command", True))
        assert shell.router.socket.poll(int(PATIENCE_S * 1000))
        shell.host.end(GPU0, ONE)

    node.sleep.at(START_S + 1, dies)
    node.run(until_s=START_S + 2)
    assert [note.facts["executor"] for note in node.notes() if note.event == "executor.failed"] == [GPU0]
    assert do.Spawn(executor=GPU0, incarnation=Incarnation(2)) not in node.performed()


def test_more_than_a_turns_share_of_a_sources_events_waits_for_the_next_turn(shell: Shell) -> None:
    node = Node(shell)
    for number in range(600):
        shell.mailbox.post(e.JobRevoked(source=CASOLA, job_id=JobId(str(number)), reason=""))
    shell.mailbox.post(e.StopRequested(reason="last"))
    assert node.loop.run(())[1] == "last"
    assert node.turn_of(do.CloseSource) > 1
