"""Commands become deeds, one branch each; what must be durable is so before anybody can see it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from structlog.testing import capture_logs

from gpuward_ipc import messages as m
from gpuward_ipc.codec import encode
from gpuward_ipc.endpoints import identity
from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, ExecutorName, Fence, Incarnation, JobId, RunId
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.core.events import BodyId, ConnectionId, ReportSeq
from gpuward_supervisor.journal import Journal
from gpuward_supervisor.outbox import Outbox
from gpuward_supervisor.sources.base import SourceCommand
from support.shell_parts import CASOLA, GPU0, GPU1, ONE, PATIENCE_S, Shell, next_messages

TWO = Incarnation(2)
JOB = JobId("j")
WHO: dict[str, Any] = {"executor": GPU0, "incarnation": ONE}
WHERE: dict[str, Any] = {"source": CASOLA, "connection": ConnectionId(1)}


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.close()


@pytest.fixture
def without_room(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path, journal_works=False)
    yield shell
    shell.close()


def remember(body: BodyId, job: str = "j") -> do.Remember:
    return do.Remember(source=CASOLA, job_id=JobId(job), fence=Fence(7), body=body)


def report(body: BodyId, job: str = "j") -> do.ReportResult:
    return do.ReportResult(**WHERE, seq=ReportSeq(1), job_id=JobId(job), fence=Fence(7), body=body)


def assignment(body: BodyId) -> do.SendAssign:
    return do.SendAssign(**WHO, run=RunId(3), job_id=JOB, task="t", config_id="c", attempt=2, body=body)


def ack(run: int, incarnation: Incarnation = ONE, executor: ExecutorName = GPU0) -> do.SendAck:
    return do.SendAck(executor=executor, incarnation=incarnation, runs=(RunId(run),))


def owed_after_a_crash_now(shell: Shell, life: int) -> list[tuple[str, bytes | None]]:
    """What another supervisor would find if this one were killed at this moment."""
    left = shell.folder / f"life-{life}"
    shutil.copytree(shell.state_dir, left, ignore=shutil.ignore_patterns("reserve"))
    journal = Journal.open(left, min_free_bytes=0)
    try:
        bodies = Bodies(left / "transit")
        found = []
        for event in Outbox(journal, bodies).recover():
            assert isinstance(event, e.ResultRecovered), event
            found.append((str(event.job_id), None if event.body is None else bodies.read(event.body)))
        return found
    finally:
        journal.close()


# ---------------------------------------------------------------- durable before visible


def test_a_result_is_durable_before_its_report_leaves(shell: Shell) -> None:
    """Whatever the order in which the turn decided it."""
    body = shell.bodies.put(b'{"answer":42}')
    seen: list[list[tuple[str, bytes | None]]] = []
    shell.source.on_send = lambda _: seen.append(owed_after_a_crash_now(shell, 1))
    assert shell.perform(report(body), remember(body)) == []
    assert seen == [[("j", b'{"answer":42}')]]
    assert shell.source.sent == [report(body)]


def test_the_executor_may_forget_a_result_only_once_it_is_durable(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = shell.bodies.put(b"{}")
    seen: list[list[tuple[str, bytes | None]]] = []
    send = shell.link.send

    def watched(*message: object) -> bool:
        seen.append(owed_after_a_crash_now(shell, 1))
        return send(*message)  # type: ignore[arg-type]

    monkeypatch.setattr(shell.link, "send", watched)
    shell.perform(ack(1), remember(body))
    shell.perform()
    assert seen == [[("j", b"{}")]]


def test_a_delivered_report_is_forgotten_before_its_body_is(shell: Shell) -> None:
    body = shell.bodies.put(b"{}")
    shell.perform(remember(body))
    shell.perform(do.ForgetBody(body=body), do.Unremember(source=CASOLA, job_id=JOB))
    assert owed_after_a_crash_now(shell, 1) == []
    assert shell.bodies.get(body) is None


def test_a_body_may_be_remembered_and_forgotten_in_one_turn(shell: Shell) -> None:
    body = shell.bodies.put(b"{}")
    assert shell.perform(do.ForgetBody(body=body), remember(body)) == []
    assert owed_after_a_crash_now(shell, 1) == [("j", b"{}")]


def test_a_failing_journal_is_an_event_and_reports_go_out_all_the_same(without_room: Shell) -> None:
    shell = without_room
    body = shell.bodies.put(b"{}")
    with capture_logs() as logs:
        first = shell.perform(remember(body), report(body))
        second = shell.perform(remember(body, "k"), report(body, "k"))
    assert len(first) == 1 and isinstance(first[0], e.JournalFailed) and "bytes free" in first[0].error
    assert second == [], "it is said once"
    assert shell.source.sent == [report(body), report(body, "k")]
    assert [line["event"] for line in logs] == ["journal.failed"]


# ---------------------------------------------------------------- executors: messages


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (do.SendPulse(**WHO), m.Pulse(1)),
        (do.SendWelcome(**WHO), m.Welcome(heartbeat_s=2.5)),
        (do.SendStop(**WHO, grace_s=4.0), m.Stop(4.0)),
        (do.SendCancel(**WHO, run=RunId(3), reason="revoked"), m.Cancel(RunId(3), "revoked")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_commands_become_messages(
    shell: Shell, command: do.SupervisorCommand, message: m.FromSupervisor
) -> None:
    executor = shell.connected()
    assert shell.perform(command) == []
    assert next_messages(executor, 1) == [(message, None)]


def test_an_assignment_carries_its_payload(shell: Shell) -> None:
    executor = shell.connected()
    shell.perform(assignment(shell.bodies.put(b'{"a":1}')))
    assert next_messages(executor, 1) == [
        (m.Assign(RunId(3), JOB, "t", "c", 2, "", 7), b'{"a":1}'),
    ]


def test_pulses_are_numbered(shell: Shell) -> None:
    executor = shell.connected()
    shell.perform(do.SendPulse(**WHO), do.SendPulse(**WHO))
    shell.perform(do.SendPulse(**WHO))
    assert [message for message, _ in next_messages(executor, 3)] == [m.Pulse(1), m.Pulse(2), m.Pulse(3)]


def test_a_heartbeat_that_crossed_an_acknowledgement_cancels_nothing(shell: Shell) -> None:
    """The run was listed because its acknowledgement had waited for the turn that reads the heartbeat."""
    executor = shell.connected()
    shell.perform(ack(3))
    shell.perform(do.SendCancel(**WHO, run=RunId(3), reason="nobody wants this run"), do.SendPulse(**WHO))
    assert [message for message, _ in next_messages(executor, 2)] == [m.Ack((RunId(3),)), m.Pulse(1)]


def test_a_heartbeat_in_the_turn_of_the_outcome_cancels_nothing(shell: Shell) -> None:
    """Both arrived together: the heartbeat could not know yet."""
    executor = shell.connected()
    cancel = do.SendCancel(**WHO, run=RunId(3), reason="nobody wants this run")
    other = do.SendCancel(**WHO, run=RunId(4), reason="revoked")
    shell.perform(ack(3), cancel, other)
    shell.perform(do.SendPulse(**WHO))
    shell.perform(cancel)
    assert [message for message, _ in next_messages(executor, 4)] == [
        m.Cancel(RunId(4), "revoked"),
        m.Ack((RunId(3),)),
        m.Pulse(1),
        m.Cancel(RunId(3), "nobody wants this run"),
    ]


def test_a_heartbeat_in_the_turn_of_one_outcome_and_after_another_cancels_neither(shell: Shell) -> None:
    executor = shell.connected()
    shell.perform(ack(2))
    cancels = [do.SendCancel(**WHO, run=RunId(run), reason="nobody wants this run") for run in (2, 3)]
    shell.perform(ack(3), *cancels)
    shell.perform(do.SendPulse(**WHO))
    assert [message for message, _ in next_messages(executor, 3)] == [
        m.Ack((RunId(2),)),
        m.Ack((RunId(3),)),
        m.Pulse(1),
    ]


def test_acknowledgements_wait_for_the_next_turn_and_go_first(shell: Shell) -> None:
    """So that they cost no wake-up of their own."""
    executor = shell.connected()
    shell.perform(ack(3), do.SendPulse(**WHO))
    shell.perform(assignment(shell.bodies.put(b"{}")))
    assert [type(message) for message, _ in next_messages(executor, 3)] == [m.Pulse, m.Ack, m.Assign]


def test_the_acks_of_a_turn_are_one_message_for_each_incarnation(shell: Shell) -> None:
    first, second = shell.connected(), shell.connected(GPU1, TWO)
    shell.perform(ack(1), ack(2), ack(7, TWO, GPU1), ack(3), do.SendPulse(**WHO))
    shell.perform(do.SendPulse(**WHO))
    assert [message for message, _ in next_messages(first, 3)] == [
        m.Pulse(1),
        m.Ack((RunId(1), RunId(2), RunId(3))),
        m.Pulse(2),
    ]
    assert next_messages(second, 1) == [(m.Ack((RunId(7),)), None)]


def test_what_an_executor_that_is_gone_would_have_got_is_nobodys_trouble(shell: Shell) -> None:
    with capture_logs() as logs:
        assert shell.perform(do.SendPulse(**WHO), ack(1), assignment(shell.bodies.put(b"{}"))) == []
    assert logs == []


@pytest.fixture
def stuck(tmp_path: Path) -> Iterator[Shell]:
    """A shell whose gpu0 takes in next to nothing and reads none of it."""
    shell = Shell(tmp_path, window=64)
    peer = shell.context.socket(zmq.DEALER)
    peer.setsockopt(zmq.IDENTITY, identity(GPU0, ONE))
    peer.setsockopt(zmq.RCVHWM, 1)
    peer.connect(shell.endpoint)
    peer.send(encode(m.Goodbye()))
    assert shell.router.socket.poll(int(PATIENCE_S * 1000))
    assert shell.link.receive() == []
    yield shell
    peer.close(0)
    shell.close()


@pytest.mark.parametrize(
    "command",
    [
        do.SendCancel(**WHO, run=RunId(3), reason="x" * 100_000),
        do.SendAck(**WHO, runs=tuple(map(RunId, range(50_000)))),
        assignment(BodyId(1)),
    ],
    ids=lambda command: type(command).__name__,
)
def test_an_executor_that_does_not_read_is_logged_and_the_others_are_served(
    stuck: Shell, command: do.SupervisorCommand
) -> None:
    assert stuck.bodies.put(b"x" * 100_000) == BodyId(1)
    reading = stuck.connected(GPU1, TWO)
    pulses = 0
    with capture_logs() as logs:
        # Sooner or later the kernel's buffers and both queues are full.
        while not logs:
            assert pulses < 1000, "it takes everything"
            assert stuck.perform(command, do.SendPulse(executor=GPU1, incarnation=TWO)) == []
            pulses += 1
            assert next_messages(reading, 1) == [(m.Pulse(pulses), None)]
    assert [(line["event"], line["log_level"], line["executor"]) for line in logs] == [
        ("executor.does_not_read", "error", GPU0)
    ]


def test_a_payload_that_cannot_be_spooled_is_logged_with_its_job(shell: Shell) -> None:
    shell.connected()
    body = shell.bodies.put(b"x" * (INLINE_BODY_MAX_BYTES + 1))
    shell.bodies.spool_dir.rmdir()
    with capture_logs() as logs:
        assert shell.perform(assignment(body)) == []
    assert [(line["event"], line["log_level"], line["job_id"]) for line in logs] == [
        ("spool.write_failed", "error", "j")
    ]


# ---------------------------------------------------------------- executors: processes


def test_a_spawn_answers_with_the_pid(shell: Shell) -> None:
    (spawned,) = shell.perform(do.Spawn(**WHO))
    assert spawned == e.ExecutorSpawned(**WHO, pid=shell.host.pid_of(GPU0, ONE) or 0)
    assert shell.host.launched == [shell.launch_of(GPU0, ONE)]


def test_a_spawn_that_fails_is_an_event_and_the_others_are_spawned(shell: Shell) -> None:
    shell.host.refusal = OSError(12, "Cannot allocate memory")
    assert shell.perform(do.Spawn(**WHO)) == [
        e.ExecutorSpawnFailed(**WHO, error="[Errno 12] Cannot allocate memory")
    ]
    shell.host.refusal = None
    assert isinstance(shell.perform(do.Spawn(**WHO))[0], e.ExecutorSpawned)


def test_a_start_that_cannot_be_prepared_is_a_spawn_that_fails(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_folder(*_: object) -> None:
        raise OSError(28, "No space left on device", "/run/x/gpu0.1")

    monkeypatch.setattr(shell.effects, "_launch_of", no_folder)
    (failed,) = shell.perform(do.Spawn(**WHO))
    assert isinstance(failed, e.ExecutorSpawnFailed)
    assert "No space left on device: '/run/x/gpu0.1'" in failed.error
    assert shell.host.launched == []


def test_outcomes_come_in_order_the_journals_first(without_room: Shell) -> None:
    shell = without_room
    outcomes = shell.perform(
        do.Spawn(**WHO), do.Spawn(executor=GPU1, incarnation=ONE), remember(shell.bodies.put(b"1"))
    )
    assert [type(outcome) for outcome in outcomes] == [
        e.JournalFailed,
        e.ExecutorSpawned,
        e.ExecutorSpawned,
    ]


def test_a_kill_is_done_and_told_by_the_core_alone(shell: Shell) -> None:
    with capture_logs() as logs:
        assert shell.perform(do.Kill(**WHO, reason="no heartbeat")) == []
    assert shell.host.killed == [(GPU0, ONE)]
    assert logs == []


# ---------------------------------------------------------------- the rest


TO_SOURCES: list[SourceCommand] = [
    do.Register(**WHERE, capacity=4),
    do.Pause(**WHERE),
    do.Resume(**WHERE),
    do.AnnounceDrain(**WHERE),
    report(BodyId(1)),
    do.ReportResultRef(**WHERE, seq=ReportSeq(2), job_id=JOB, fence=Fence(7)),
    do.ReportError(**WHERE, seq=ReportSeq(3), job_id=JOB, fence=Fence(7), error="no"),
    do.ReportProgress(**WHERE, job_id=JOB, fence=Fence(7), progress=0.5),
    do.FetchPayload(source=CASOLA, job_id=JOB, fence=Fence(7), url="http://q/get"),
    do.UploadResult(source=CASOLA, job_id=JOB, fence=Fence(7), url="http://q/put", body=BodyId(1)),
    do.AbandonTransfer(source=CASOLA, job_id=JOB, fence=Fence(7)),
    do.CloseSource(source=CASOLA, within_s=1.0),
]


def test_what_is_for_a_source_is_handed_to_it_in_order(shell: Shell) -> None:
    assert set(map(type, TO_SOURCES)) == set(SourceCommand.__args__)
    assert shell.perform(*TO_SOURCES) == []
    assert shell.source.sent == TO_SOURCES


def test_a_body_is_forgotten(shell: Shell) -> None:
    body = shell.bodies.put(b"{}")
    shell.perform(do.ForgetBody(body=body), do.ForgetBody(body=body))
    assert shell.bodies.get(body) is None
    assert len(shell.bodies) == 0


@pytest.mark.parametrize(
    ("level", "written"),
    [
        ("debug", "debug"),
        ("info", "info"),
        ("warning", "warning"),
        ("error", "error"),
        ("critical", "critical"),
        ("loud", "info"),
    ],
)
def test_a_note_is_a_line_of_its_level(shell: Shell, level: str, written: str) -> None:
    with capture_logs() as logs:
        shell.perform(do.Note(level=level, event="executor.died", facts={"executor": "gpu0", "signal": 11}))
    assert logs == [{"event": "executor.died", "log_level": written, "executor": "gpu0", "signal": 11}]


def test_the_exit_is_kept_for_the_loop(shell: Shell) -> None:
    assert shell.effects.exit is None
    shell.perform(do.Exit(code=1, reason="no executor left"), do.SendPulse(**WHO))
    assert shell.effects.exit == (1, "no executor left")
