"""Registered slots, pause and resume, as the queue sees them."""

from __future__ import annotations

from typing import TypeAlias

import pytest

from gpuward_supervisor.core.commands import AnnounceDrain, Command, Pause, Register, Resume
from gpuward_supervisor.core.decide import next_deadline
from gpuward_supervisor.core.events import ConnectionId, SourceDisconnected, StopRequested
from support.core_stage import PERSISTED, SOURCE, Stage, result

Said: TypeAlias = list[str | int]


def said(commands: list[Command], connection: int = 1) -> Said:
    """What the queue was told: a number for a registration, words for the rest."""
    words: Said = []
    for c in commands:
        if isinstance(c, Register | Pause | Resume | AnnounceDrain):
            assert c.connection == connection
            words.append(c.capacity if isinstance(c, Register) else type(c).__name__.lower())
    return words


def fill(stage: Stage, count: int, first: int = 1) -> list[Command]:
    return [c for n in range(first, first + count) for c in stage.offer(f"j{n}", n)]


class TestFirstRegistration:
    def test_nothing_is_said_before_an_executor_is_ready(self) -> None:
        stage = Stage((2, 2), warm=False)
        stage.tick()
        assert said(stage.connect()) == []
        assert said(stage.bring_up("gpu0")) == [2]

    def test_all_ready_slots_are_offered(self) -> None:
        stage = Stage((2, 3), warm=False)
        stage.tick()
        stage.bring_up("gpu0", 2)
        stage.bring_up("gpu1", 3)
        assert said(stage.connect()) == [5]

    def test_no_more_than_the_limit_is_offered(self) -> None:
        stage = Stage((2, 2), warm=False, capacity_max=1)
        stage.tick()
        stage.bring_up("gpu0")
        assert said(stage.connect()) == [1]
        assert said(stage.bring_up("gpu1")) == []
        assert said(fill(stage, 1)) == []

    def test_after_a_reconnect_only_free_slots_are_offered(self) -> None:
        stage = Stage((2, 2))
        fill(stage, 3)
        stage.disconnect()
        assert said(stage.connect(2), 2) == [1]

    def test_after_a_reconnect_without_a_free_slot_the_queue_is_paused(self) -> None:
        stage = Stage((2, 2))
        fill(stage, 4)
        stage.disconnect()
        assert said(stage.connect(2), 2) == [1, "pause"]

    def test_after_a_reconnect_without_executors_nothing_is_said_unless_something_is_owed(self) -> None:
        stage = Stage((2,))
        stage.disconnect()
        stage.exit("gpu0")
        assert said(stage.connect(2), 2) == []

    def test_after_a_reconnect_without_executors_owed_reports_are_sent(self) -> None:
        stage = Stage((2,))
        stage.offer("a", 10)
        stage.disconnect()
        stage.succeed("gpu0", 1, 11)
        stage.exit("gpu0")
        commands = stage.connect(2)
        assert said(commands, 2) == [1, "pause"]
        assert result(1, "a", 11, connection=2) in commands
        assert isinstance(commands[0], Register)

    def test_after_a_reconnect_without_executors_leases_are_kept(self) -> None:
        stage = Stage((2,))
        stage.offer("a", 10, mode=PERSISTED)
        stage.disconnect()
        stage.exit("gpu0")
        assert said(stage.connect(2), 2) == [1, "pause"]

    def test_a_draining_node_registers_only_to_report_and_says_drain_at_once(self) -> None:
        stage = Stage((2,))
        stage.offer("a", 10)
        stage.disconnect()
        stage.feed(StopRequested(reason="SIGTERM", grace_s=60.0))
        assert said(stage.connect(2), 2) == []
        commands = stage.succeed("gpu0", 1, 11)
        assert said(commands, 2) == [1, "announcedrain"]
        assert commands.index(result(1, "a", 11, connection=2)) > commands.index(
            AnnounceDrain(source=SOURCE, connection=ConnectionId(2))
        )

    def test_a_late_disconnect_of_an_older_connection_changes_nothing(self) -> None:
        stage = Stage((2,))
        stage.disconnect()
        stage.connect(2)
        late = SourceDisconnected(source=SOURCE, connection=ConnectionId(1), reason="late")
        assert stage.feed(late) == []
        assert stage.source.registered

    def test_a_connection_that_replaces_another_one_is_registered_itself(self) -> None:
        stage = Stage((2,))
        assert said(stage.connect(2), 2) == [2]


class TestSteadyState:
    def test_nothing_is_said_job_by_job(self) -> None:
        stage = Stage((2, 2))
        commands: list[Command] = []
        for round_ in range(5):
            commands += fill(stage, 4, first=1 + 4 * round_)
            for executor in stage.state.executors.values():
                for run in list(executor.runs):
                    commands += stage.succeed(executor.name, run, 1000 + run)
        assert said(commands) == []

    def test_nothing_is_said_while_time_passes(self) -> None:
        stage = Stage((2, 2))
        fill(stage, 3)
        assert said(stage.pass_time(100.0)) == []


class TestLossOfSlots:
    def test_the_queue_is_paused_for_a_moment_and_then_fed_while_slots_are_free(self) -> None:
        stage = Stage((2, 2), capacity_settle_s=1.0, backoff_first_s=60.0, reregister_min_s=5.0)
        fill(stage, 1)
        assert said(stage.exit("gpu1")) == ["pause"]
        assert said(stage.pass_time(0.9)) == []
        assert said(stage.pass_time(0.2)) == ["resume"]

    def test_the_queue_stays_paused_while_no_slot_is_free(self) -> None:
        stage = Stage((2, 2), backoff_first_s=60.0)
        fill(stage, 3)
        assert said(stage.exit("gpu1")) == ["pause"]
        assert said(stage.pass_time(10.0)) == []
        stage.succeed("gpu0", 1, 11)  # the retry takes the slot
        assert said(stage.succeed("gpu0", 3, 12)) == ["resume"]

    def test_a_respawn_makes_everything_as_before_without_a_registration(self) -> None:
        stage = Stage((2, 2), backoff_first_s=1.0)
        fill(stage, 4)
        stage.succeed("gpu1", 2, 21)
        assert said(stage.exit("gpu1")) == ["pause"]
        stage.sweep("gpu1")
        assert said(stage.pass_time(1.0)) == []
        assert said(stage.bring_up("gpu1")) == ["resume"]
        assert said(stage.pass_time(60.0)) == []

    def test_an_idle_node_registers_what_is_left(self) -> None:
        stage = Stage((2, 2), backoff_first_s=600.0, capacity_settle_s=1.0, reregister_min_s=5.0)
        stage.pass_time(10.0)
        assert said(stage.exit("gpu1")) == [2]
        assert said(stage.pass_time(60.0)) == []

    def test_losing_the_last_executor_pauses_the_queue(self) -> None:
        stage = Stage((2,))
        assert said(stage.exit("gpu0")) == ["pause"]
        assert said(stage.pass_time(0.9)) == []

    def test_a_cancelled_run_holds_its_slot_until_its_end(self) -> None:
        stage = Stage((1,))
        fill(stage, 1)
        assert said(stage.revoke("j1")) == ["pause"]
        assert said(stage.cancelled("gpu0", 1)) == ["resume"]

    def test_jobs_beyond_the_capacity_are_taken_and_say_nothing(self) -> None:
        stage = Stage((1,))
        assert said(fill(stage, 3)) == []
        assert stage.state.queued == 2


class TestGainOfSlots:
    def late(self, jobs: int = 0) -> Stage:
        """One of two executors was registered; the other one comes up a little later."""
        stage = Stage((2, 2), warm=False, capacity_settle_s=1.0, reregister_min_s=5.0)
        stage.tick()
        stage.bring_up("gpu0")
        stage.connect()
        fill(stage, jobs)
        stage.pass_time(0.1)
        assert said(stage.bring_up("gpu1")) == []
        return stage

    def test_an_idle_node_registers_anew_once_the_start_has_settled(self) -> None:
        stage = self.late()
        assert said(stage.pass_time(0.8)) == []
        assert said(stage.pass_time(0.2)) == [4]
        assert said(stage.pass_time(60.0)) == []

    def test_a_busy_node_pauses_until_its_jobs_are_done_and_registers_all(self) -> None:
        stage = self.late(jobs=2)
        assert said(stage.pass_time(0.9)) == ["pause"]
        stage.succeed("gpu0", 1, 11)
        assert said(stage.succeed("gpu0", 2, 12)) == [4]
        assert said(fill(stage, 4, first=3)) == []

    def test_a_node_with_long_jobs_registers_its_free_slots_after_a_moment(self) -> None:
        stage = self.late(jobs=1)  # registered are 2, free are 3
        assert said(stage.pass_time(0.9)) == ["pause"]
        assert said(stage.pass_time(0.9)) == []
        assert said(stage.pass_time(0.2)) == [3]
        assert said(stage.pass_time(3.0)) == []
        # The job that was open then ends: its slot is missed, and nothing runs.
        stage.succeed("gpu0", 1, 11)
        assert said(stage.pass_time(5.0)) == [4]

    def test_gathering_in_vain_is_repeated_ever_more_rarely(self) -> None:
        stage = self.late(jobs=2)  # registered are 2, free are 2: a registration would gain nothing
        assert said(stage.pass_time(2.0)) == ["pause", "resume"]
        assert said(stage.pass_time(9.0)) == []
        assert said(stage.pass_time(3.0)) == ["pause", "resume"]
        assert said(stage.pass_time(17.0)) == []

    def test_never_two_registrations_within_the_interval(self) -> None:
        stage = self.late()
        stage.pass_time(1.0)
        stage.now_s += 0.5
        stage.exit("gpu1")
        assert said(stage.tick(1.0)) == ["resume"]
        assert said(stage.pass_time(3.3)) == []
        assert said(stage.pass_time(0.2)) == [2]

    def test_a_gathering_ends_with_a_loss_of_slots(self) -> None:
        stage = self.late(jobs=2)
        assert said(stage.pass_time(1.0)) == ["pause"]
        assert said(stage.exit("gpu1")) == ["resume"]
        assert stage.source.gather_until_s is None


@pytest.mark.parametrize("jobs", [0, 1, 2])
def test_the_deadline_is_always_ahead_of_the_clock(jobs: int) -> None:
    stage = Stage((2, 2), warm=False)
    stage.tick()
    stage.bring_up("gpu0")
    stage.connect()
    fill(stage, jobs)
    stage.bring_up("gpu1")
    stage.pass_time(300.0)
    deadline_s = next_deadline(stage.state)
    assert deadline_s is not None
    assert deadline_s > stage.now_s
