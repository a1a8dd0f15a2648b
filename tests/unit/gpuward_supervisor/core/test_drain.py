from __future__ import annotations

import pytest

from gpuward_ipc.types import ExecutorName, Fault, Incarnation, SourceName
from gpuward_supervisor.core.commands import (
    AnnounceDrain,
    CloseSource,
    Command,
    Exit,
    ForgetBody,
    Kill,
    SendPulse,
    SendStop,
    Spawn,
)
from gpuward_supervisor.core.decide import next_deadline
from gpuward_supervisor.core.drain import CROSSING_S
from gpuward_supervisor.core.events import (
    BodyId,
    ConnectionId,
    ExecutorSpawnFailed,
    JournalFailed,
    JournalRestored,
    SourceClosed,
    SourceFailed,
    StopNow,
    StopRequested,
)
from gpuward_supervisor.core.state import NodePhase
from support.core_stage import PERSISTED, SOURCE, Stage, ack, assign, cancel, error, result

DRAIN = AnnounceDrain(source=SOURCE, connection=ConnectionId(1))
SHUT_DOWN = "worker shut down before the job finished"


def send_stop(name: str, grace_s: float = 5.0) -> SendStop:
    return SendStop(executor=ExecutorName(name), incarnation=Incarnation(1), grace_s=grace_s)


def kill(name: str, reason: str, incarnation: int = 1) -> Kill:
    return Kill(executor=ExecutorName(name), incarnation=Incarnation(incarnation), reason=reason)


def close(within_s: float = 5.0) -> CloseSource:
    return CloseSource(source=SOURCE, within_s=within_s)


def stop(stage: Stage, grace_s: float | None = None) -> list[Command]:
    return stage.feed(StopRequested(reason="SIGTERM", grace_s=grace_s))


def stop_and_wait(stage: Stage) -> list[Command]:
    """Stop, and let the time pass in which jobs may cross the announcement."""
    return without_pulses(stop(stage) + stage.pass_time(CROSSING_S))


def closed(stage: Stage) -> list[Command]:
    return stage.feed(SourceClosed(source=SOURCE))


def gone(stage: Stage, name: str) -> list[Command]:
    return stage.exit(name, signal=None, code=0) + stage.sweep(name)


def without_pulses(commands: list[Command]) -> list[Command]:
    return [c for c in commands if not isinstance(c, SendPulse)]


class TestOrderlyStop:
    def test_an_idle_node_stops_once_no_job_can_cross_the_announcement_any_more(self) -> None:
        stage = Stage((2, 2))
        assert stop(stage) == [DRAIN]
        assert without_pulses(stage.pass_time(CROSSING_S)) == [
            send_stop("gpu0"),
            send_stop("gpu1"),
            close(),
        ]
        assert gone(stage, "gpu0") == []
        assert closed(stage) == []
        assert gone(stage, "gpu1") == [Exit(code=0, reason="SIGTERM")]
        assert stage.state.phase is NodePhase.ENDED
        assert next_deadline(stage.state) is None

    def test_running_and_waiting_jobs_finish_first(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.offer("b", 20)
        assert stop_and_wait(stage) == [DRAIN]
        assert stage.succeed("gpu0", 1, 11) == [
            ack("gpu0", 1),
            ForgetBody(body=BodyId(10)),
            result(1, "a", 11),
            assign("gpu0", 2, "b", 20),
        ]
        assert stage.succeed("gpu0", 2, 21)[2:] == [result(2, "b", 21), send_stop("gpu0")]
        assert stage.deliver(2)[2:] == [close()]

    def test_jobs_that_are_left_at_the_end_of_the_grace_are_failed(self) -> None:
        stage = Stage((1,), shutdown_grace_s=5.0)
        stage.offer("a", 10)
        stage.offer("b", 20)
        stop(stage)
        assert without_pulses(stage.pass_time(4.9)) == []
        assert without_pulses(stage.pass_time(0.1)) == [
            cancel("gpu0", 1, SHUT_DOWN),
            ForgetBody(body=BodyId(10)),
            error(1, "a", SHUT_DOWN),
            ForgetBody(body=BodyId(20)),
            error(2, "b", SHUT_DOWN),
            send_stop("gpu0"),
        ]

    def test_the_grace_of_the_request_goes_before_that_of_the_policy(self) -> None:
        stage = Stage((1,), shutdown_grace_s=5.0)
        stage.offer("a", 10)
        stop(stage, 30.0)
        assert send_stop("gpu0") not in stage.pass_time(29.9)
        assert send_stop("gpu0") in stage.pass_time(0.1)

    def test_a_second_request_may_shorten_the_grace_but_not_prolong_it(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stop(stage, 30.0)
        stop(stage, 10.0)
        stop(stage, 60.0)
        assert send_stop("gpu0") in stage.pass_time(10.0)

    def test_a_late_result_of_a_failed_job_is_dropped(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stop(stage, 0.0)
        assert stage.succeed("gpu0", 1, 11) == [ack("gpu0", 1), ForgetBody(body=BodyId(11))]

    def test_a_job_may_be_tried_again_within_the_grace(self) -> None:
        stage = Stage((1, 1))
        stage.offer("a", 10)
        stop(stage, 30.0)
        assert stage.exit("gpu0") == [assign("gpu1", 2, "a", 10, attempt=2)]
        assert [c for c in stage.sweep("gpu0") + stage.pass_time(20.0) if isinstance(c, Spawn)] == []

    def test_jobs_that_nobody_can_run_any_more_are_failed_before_the_grace_is_over(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stop(stage, 30.0)
        assert error(1, "a", SHUT_DOWN) in stage.exit("gpu0")

    def test_an_executor_in_backoff_is_not_started_any_more(self) -> None:
        stage = Stage((1, 1))
        gone(stage, "gpu0")
        stop(stage)
        gone(stage, "gpu1")
        assert closed(stage) == [Exit(code=0, reason="SIGTERM")]

    def test_an_executor_without_a_link_is_killed(self) -> None:
        stage = Stage((1,), warm=False)
        stage.tick()
        assert stop(stage) == [kill("gpu0", "stopping at once"), close()]

    def test_an_executor_without_a_link_is_not_addressed_while_it_is_stopping(self) -> None:
        stage = Stage((1, 1), warm=False)
        stage.tick()
        stage.bring_up("gpu0")
        stop(stage)
        pulsed = [c.executor for c in stage.pass_time(2.0, beating=False) if isinstance(c, SendPulse)]
        assert pulsed == ["gpu0", "gpu0"]

    def test_a_failing_start_is_the_end_of_an_executor(self) -> None:
        stage = Stage((1,), warm=False)
        stage.tick()
        stop(stage)
        closed(stage)
        failed = ExecutorSpawnFailed(**stage.at("gpu0"), error="no such file")
        assert stage.feed(failed) == [Exit(code=0, reason="SIGTERM")]

    def test_a_stop_before_the_first_tick_starts_nothing(self) -> None:
        stage = Stage((1,), warm=False)
        assert stop(stage) == [close()]
        assert closed(stage) == [Exit(code=0, reason="SIGTERM")]

    def test_expected_exits_are_no_deaths(self) -> None:
        stage = Stage((1,))
        stop_and_wait(stage)
        gone(stage, "gpu0")
        assert stage.state.counters.deaths == 0
        assert stage.said("executor.died") == []

    def test_an_executor_that_does_not_leave_is_killed_and_in_the_end_abandoned(self) -> None:
        stage = Stage((1,), engine_stop_s=5.0)
        stop_and_wait(stage)
        assert without_pulses(stage.pass_time(6.9)) == []
        assert without_pulses(stage.pass_time(0.1)) == [kill("gpu0", "did not stop within 5 s")]
        closed(stage)
        commands = without_pulses(stage.pass_time(60.0))
        assert commands == [kill("gpu0", "still there after a kill")] * 5 + [Exit(code=1, reason="SIGTERM")]

    def test_an_upload_is_waited_for(self) -> None:
        stage = Stage((1,), upload_threshold_bytes=5)
        stage.offer("a", 10, mode=PERSISTED, result_upload_url="https://up")
        stop(stage, 30.0)
        assert send_stop("gpu0") not in stage.succeed("gpu0", 1, 11)
        assert send_stop("gpu0") in stage.pass_time(30.0)


class TestClosing:
    def test_a_source_is_closed_when_everything_is_delivered(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stop_and_wait(stage)
        assert close() not in stage.succeed("gpu0", 1, 11)
        assert close() in stage.deliver(1)

    def test_a_source_is_closed_when_its_time_is_up(self) -> None:
        stage = Stage((1,), source_close_s=5.0)
        stage.offer("a", 10)
        stop_and_wait(stage)
        stage.succeed("gpu0", 1, 11)
        assert close(1.0) not in stage.pass_time(4.9)
        assert close(1.0) in stage.pass_time(0.1)

    def test_reports_are_sent_on_a_connection_that_comes_back_in_time(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        stage.disconnect()
        stop(stage)
        stage.succeed("gpu0", 1, 11)
        assert result(1, "a", 11, connection=2) in stage.connect(2)
        assert close() in stage.deliver(1, connection=2)

    def test_a_source_that_does_not_end_counts_as_closed_in_the_end(self) -> None:
        stage = Stage((1,), source_close_s=5.0)
        stop_and_wait(stage)
        gone(stage, "gpu0")
        assert stage.pass_time(6.9) == []
        assert stage.pass_time(0.2) == [Exit(code=0, reason="SIGTERM")]
        assert stage.said("source.abandoned") == [{"source": "q"}]

    def test_a_connection_after_the_close_is_ignored(self) -> None:
        stage = Stage((1,))
        stop(stage)
        closed(stage)
        assert stage.connect(2) == []
        assert closed(stage) == []


class TestStopNow:
    def test_everything_ends_without_waiting(self) -> None:
        stage = Stage((1,))
        stage.offer("a", 10)
        assert stage.feed(StopNow(reason="SIGINT")) == [
            DRAIN,
            cancel("gpu0", 1, SHUT_DOWN),
            ForgetBody(body=BodyId(10)),
            error(1, "a", SHUT_DOWN),
            kill("gpu0", "stopping at once"),
            close(1.0),
        ]

    def test_a_stop_under_way_is_hurried(self) -> None:
        stage = Stage((1, 1))
        stage.offer("a", 10)
        stop(stage, 30.0)
        commands = stage.feed(StopNow(reason="SIGTERM again"))
        assert [c for c in commands if isinstance(c, Kill | CloseSource)] == [
            kill("gpu0", "stopping at once"),
            kill("gpu1", "stopping at once"),
            close(1.0),
        ]

    def test_a_source_that_is_closing_is_waited_for_no_longer(self) -> None:
        stage = Stage((1,), source_close_s=60.0)
        stop_and_wait(stage)
        gone(stage, "gpu0")
        stage.feed(StopNow(reason="SIGTERM again"))
        assert stage.pass_time(2.9) == []
        assert stage.pass_time(0.2) == [Exit(code=0, reason="SIGTERM")]

    def test_engines_that_are_stopping_are_killed(self) -> None:
        stage = Stage((1,))
        stop_and_wait(stage)
        assert stage.feed(StopNow(reason="SIGTERM again")) == [kill("gpu0", "stopping at once")]
        assert stage.feed(StopNow(reason="SIGTERM again")) == []

    def test_an_engine_that_is_dying_is_killed(self) -> None:
        stage = Stage((1,))
        stage.engine_dies("gpu0")
        assert kill("gpu0", "stopping at once") in stage.feed(StopNow(reason="SIGTERM"))


class TestFailure:
    def fail_all(self, stage: Stage) -> list[Command]:
        commands: list[Command] = []
        for name in stage.names:
            stage.engine_dies(name, permanent=True)
            commands += gone(stage, name)
        return commands

    def test_a_node_without_executors_answers_its_jobs_and_exits_with_1(self) -> None:
        stage = Stage((1, 1))
        stage.offer("a", 10)
        stage.offer("b", 20)
        commands = self.fail_all(stage)
        assert error(1, "a", "no executor left on this worker") in commands
        assert error(2, "b", "no executor left on this worker") in commands
        assert close() in stage.deliver(2)
        reason = "no executor left: gpu0: engine gone; gpu1: engine gone"
        assert closed(stage) == [Exit(code=1, reason=reason)]

    def test_one_executor_is_enough_to_go_on(self) -> None:
        stage = Stage((1, 1))
        stage.engine_dies("gpu0", permanent=True)
        gone(stage, "gpu0")
        assert stage.state.phase is NodePhase.RUNNING

    def test_a_failing_node_reports_though_it_never_had_an_engine(self) -> None:
        stage = Stage((1,), warm=False)
        stage.tick()
        stage.connect()
        stage.offer("a", 10)
        commands = self.fail_all(stage)
        assert [type(c).__name__ for c in commands[1:4]] == ["Register", "AnnounceDrain", "ReportError"]

    def test_without_a_source_the_node_exits_with_1(self) -> None:
        stage = Stage((1,))
        stage.feed(SourceFailed(source=SOURCE, error="thread died"))
        assert gone(stage, "gpu0") == [Exit(code=1, reason="no source left: q: thread died")]

    def test_one_source_is_enough_to_go_on(self) -> None:
        stage = Stage((1,), sources=(SOURCE, SourceName("r")))
        stage.feed(SourceFailed(source=SourceName("r"), error="thread died"))
        assert stage.state.phase is NodePhase.RUNNING
        stage.feed(SourceFailed(source=SourceName("r"), error="thread died"))
        assert len(stage.said("source.failed")) == 1

    def test_a_requested_stop_during_a_failure_keeps_the_code(self) -> None:
        stage = Stage((1,))
        stage.feed(SourceFailed(source=SOURCE, error="thread died"))
        stop(stage)
        assert [c.code for c in gone(stage, "gpu0") if isinstance(c, Exit)] == [1]


@pytest.mark.parametrize("fault", [Fault.JOB, Fault.ENGINE])
def test_a_journal_that_fails_stops_no_job(fault: Fault) -> None:
    stage = Stage((1,), attempts_max=0)
    stage.feed(JournalFailed(error="disk full"))
    assert not stage.state.journal_ok
    stage.offer("a", 10, mode=PERSISTED)
    assert any(type(c).__name__ == "ReportError" for c in stage.fail("gpu0", 1, "boom", fault))
    stage.feed(JournalRestored())
    assert stage.state.journal_ok
    assert not [n for n in stage.notes if n.event.startswith("journal.")], "the outbox says it already"
