from __future__ import annotations

from gpuward_ipc.types import EXIT_ENGINE_IMPOSSIBLE, ExecutorName, Incarnation
from gpuward_supervisor.core.commands import Command, Kill, Pause, SendPulse, SendWelcome, Spawn
from gpuward_supervisor.core.decide import next_deadline
from gpuward_supervisor.core.events import (
    ConnectionId,
    ExecutorBeat,
    ExecutorConnected,
    ExecutorExited,
    ExecutorReady,
    ExecutorRefused,
    ExecutorSpawned,
    ExecutorSpawnFailed,
    ExecutorSwept,
)
from gpuward_supervisor.core.state import ExecutorPhase
from support.core_stage import SOURCE, Stage, ack, assign, cancel


def spawn(name: str, incarnation: int) -> Spawn:
    return Spawn(executor=ExecutorName(name), incarnation=Incarnation(incarnation))


def kill(name: str, reason: str, incarnation: int = 1) -> Kill:
    return Kill(executor=ExecutorName(name), incarnation=Incarnation(incarnation), reason=reason)


def welcome(name: str, incarnation: int = 1) -> SendWelcome:
    return SendWelcome(executor=ExecutorName(name), incarnation=Incarnation(incarnation))


def pulse(name: str, incarnation: int = 1) -> SendPulse:
    return SendPulse(executor=ExecutorName(name), incarnation=Incarnation(incarnation))


def kills(commands: list[Command]) -> list[Command]:
    return [c for c in commands if isinstance(c, Kill)]


def cold(slots: tuple[int, ...] = (2,), **policy: object) -> Stage:
    stage = Stage(slots, warm=False, **policy)
    stage.tick()
    return stage


class TestStart:
    def test_the_first_tick_spawns_every_planned_executor(self) -> None:
        stage = Stage((1, 1), warm=False)
        assert stage.tick() == [spawn("gpu0", 1), spawn("gpu1", 1)]
        assert stage.tick() == []

    def test_a_spawned_process_is_noted(self) -> None:
        stage = cold()
        assert stage.feed(ExecutorSpawned(**stage.at("gpu0"), pid=4711)) == []
        assert stage.executor().pid == 4711
        assert stage.said("executor.spawned") == [{"executor": "gpu0", "incarnation": 1, "pid": 4711}]

    def test_hello_is_welcomed_and_welcomed_again(self) -> None:
        stage = cold()
        hello = ExecutorConnected(**stage.at("gpu0"), version="1")
        assert stage.feed(hello) == [welcome("gpu0")]
        assert stage.feed(hello) == [welcome("gpu0")]
        stage.feed(ExecutorReady(**stage.at("gpu0"), slots=2))
        assert stage.feed(hello) == [welcome("gpu0")]
        assert stage.executor().phase is ExecutorPhase.READY

    def test_hello_of_another_incarnation_is_ignored(self) -> None:
        stage = cold()
        assert stage.feed(ExecutorConnected(**stage.at("gpu0", 2))) == []

    def test_slots_are_those_it_says_but_never_more_than_planned(self) -> None:
        for said, expected in ((1, 1), (2, 2), (3, 2)):
            stage = cold((2,))
            stage.bring_up("gpu0", said)
            assert stage.executor().slots == expected

    def test_ready_without_slots_or_before_hello_is_not_ready(self) -> None:
        stage = cold()
        stage.feed(ExecutorReady(**stage.at("gpu0"), slots=2))
        assert stage.executor().phase is ExecutorPhase.SPAWNING
        stage.feed(ExecutorConnected(**stage.at("gpu0")))
        stage.feed(ExecutorReady(**stage.at("gpu0"), slots=0))
        assert stage.executor().phase is ExecutorPhase.STARTING

    def test_a_lost_ready_is_learned_from_the_next_beat(self) -> None:
        stage = cold()
        stage.feed(ExecutorConnected(**stage.at("gpu0")))
        stage.offer("a", 1, connection=1)
        assert stage.beat("gpu0", slots=2) == [assign("gpu0", 1, "a", 1)]

    def test_an_executor_that_cannot_be_started_is_tried_again(self) -> None:
        stage = cold(backoff_first_s=2.0)
        assert stage.feed(ExecutorSpawnFailed(**stage.at("gpu0"), error="no such file")) == []
        assert stage.executor().phase is ExecutorPhase.BACKOFF
        assert stage.tick(1.9) == []
        assert stage.tick(0.1) == [spawn("gpu0", 2)]

    def test_a_refused_hello_is_killed_and_never_tried_again(self) -> None:
        stage = Stage((2, 2))
        stage.engine_dies("gpu0")
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.pass_time(1.0)
        refused = ExecutorRefused(**stage.at("gpu0"), error="protocol 2, expected 1")
        assert stage.feed(refused) == [kill("gpu0", "protocol 2, expected 1", 2)]
        stage.exit("gpu0")
        stage.sweep("gpu0")
        assert stage.executor().phase is ExecutorPhase.FAILED


class TestSilence:
    def test_no_hello_in_time_is_killed(self) -> None:
        stage = cold(hello_timeout_s=30.0)
        assert kills(stage.tick(29.9)) == []
        assert stage.tick(0.1) == [kill("gpu0", "no hello within 30 s")]

    def test_no_engine_in_time_is_killed_though_it_beats(self) -> None:
        stage = cold(start_timeout_s=60.0)
        stage.feed(ExecutorConnected(**stage.at("gpu0")))
        commands: list[Command] = []
        for _ in range(60):
            commands += stage.tick(1.0) + stage.beat("gpu0", slots=0)
        assert kills(commands) == [kill("gpu0", "engine not ready within 60 s")]

    def test_no_beat_in_time_is_killed(self) -> None:
        stage = Stage((2,), heartbeat_timeout_s=15.0)
        assert kills(stage.pass_time(14.9, beating=False)) == []
        assert kills(stage.pass_time(0.2, beating=False)) == [kill("gpu0", "no heartbeat for 15 s")]

    def test_no_beat_while_starting_is_killed_too(self) -> None:
        stage = cold(heartbeat_timeout_s=15.0)
        stage.feed(ExecutorConnected(**stage.at("gpu0")))
        assert kills(stage.pass_time(15.0, beating=False)) == [kill("gpu0", "no heartbeat for 15 s")]

    def test_beats_keep_it_alive(self) -> None:
        stage = Stage((2,))
        assert kills(stage.pass_time(200.0)) == []

    def test_an_old_beat_does_not_count(self) -> None:
        stage = Stage((2,), heartbeat_timeout_s=15.0)
        stage.beat("gpu0", seq=7)
        commands: list[Command] = []
        for _ in range(15):
            commands += stage.tick(1.0) + stage.beat("gpu0", seq=7)
        assert kills(commands) == [kill("gpu0", "no heartbeat for 15 s")]

    def test_nobody_is_killed_for_the_time_in_which_we_stood_still_ourselves(self) -> None:
        stage = Stage((2, 2), heartbeat_timeout_s=15.0)
        assert stage.tick(3600.0) == [pulse("gpu0"), pulse("gpu1")]
        assert kills(stage.pass_time(14.9, beating=False)) == []
        assert len(kills(stage.pass_time(0.2, beating=False))) == 2

    def test_a_kill_without_effect_is_repeated_loudly(self) -> None:
        stage = cold(hello_timeout_s=30.0)
        stage.tick(30.0)
        assert stage.tick(4.9) == []
        assert stage.tick(0.1) == [kill("gpu0", "still there after a kill")]
        assert stage.tick(5.0) == [kill("gpu0", "still there after a kill")]
        assert [n.level for n in stage.notes if n.event == "executor.killed"] == ["warning", "error", "error"]

    def test_a_killed_executor_gets_no_jobs(self) -> None:
        stage = Stage((2,), heartbeat_timeout_s=15.0)
        stage.pass_time(15.0, beating=False)
        assert stage.offer("a", 1) == []


class TestPulse:
    def test_connected_executors_hear_from_us_every_heartbeat(self) -> None:
        stage = Stage((1, 1), heartbeat_s=1.0)
        assert stage.tick(0.9) == []
        assert stage.tick(0.1) == [pulse("gpu0"), pulse("gpu1")]
        assert stage.tick(1.0) == [pulse("gpu0"), pulse("gpu1")]

    def test_an_executor_without_a_link_is_not_addressed(self) -> None:
        stage = Stage((1, 1), heartbeat_s=1.0)
        stage.exit("gpu0")
        assert [c for c in stage.tick(1.0) if isinstance(c, SendPulse)] == [pulse("gpu1")]

    def test_without_any_connected_executor_there_is_no_pulse(self) -> None:
        stage = Stage((1,), backoff_first_s=50.0)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.disconnect()
        stage.tick(1.0)
        assert next_deadline(stage.state) == stage.executor().spawn_at_s


class TestRunsInBeats:
    def test_an_unknown_run_is_cancelled(self) -> None:
        stage = Stage((2,))
        assert stage.beat("gpu0", 99) == [cancel("gpu0", 99, "nobody wants this run")]

    def test_an_assignment_that_was_lost_is_repeated(self) -> None:
        stage = Stage((2,), reassign_after_s=5.0)
        stage.offer("a", 10)
        stage.now_s += 5.0
        assert stage.beat("gpu0") == []
        stage.now_s += 0.1
        assert stage.beat("gpu0") == [assign("gpu0", 1, "a", 10)]
        assert stage.beat("gpu0") == []

    def test_a_run_that_is_known_there_is_left_alone(self) -> None:
        stage = Stage((2,), reassign_after_s=5.0)
        stage.offer("a", 10)
        stage.now_s += 60.0
        assert stage.beat("gpu0", 1) == []

    def test_a_cancel_without_an_answer_is_repeated_listed_or_not(self) -> None:
        stage = Stage((2,), reassign_after_s=5.0)
        stage.offer("a", 10)
        stage.revoke("a")
        for listed in ((1,), ()):
            stage.tick(4.9)
            assert stage.beat("gpu0", *listed) == []
            stage.tick(0.2)
            assert stage.beat("gpu0", *listed) == [cancel("gpu0", 1, "nobody wants this run")]

    def test_beats_of_another_incarnation_change_nothing(self) -> None:
        stage = Stage((2,))
        assert stage.feed(ExecutorBeat(**stage.at("gpu0", 9), seq=1, runs=(), slots=2)) == []
        assert stage.state.counters.stale_messages == 1


class TestDeath:
    def test_death_and_respawn_step_by_step(self) -> None:
        stage = Stage((2, 2), backoff_first_s=1.0)
        assert stage.engine_dies("gpu0") == [Pause(source=SOURCE, connection=ConnectionId(1))]
        assert stage.executor().phase is ExecutorPhase.DYING
        stage.now_s += 0.2
        stage.exit("gpu0")
        assert stage.executor().phase is ExecutorPhase.SWEEPING
        stage.now_s += 0.3
        assert spawn("gpu0", 2) not in stage.sweep("gpu0")
        assert stage.executor().phase is ExecutorPhase.BACKOFF
        # The delay counts from the exit, not from the sweep.
        assert spawn("gpu0", 2) not in stage.tick(0.69)
        assert spawn("gpu0", 2) in stage.tick(0.02)
        assert [n.event for n in stage.notes if n.event.startswith("executor.")] == [
            "executor.died",
            "executor.respawn_scheduled",
        ]

    def test_a_long_sweep_is_followed_by_the_spawn_at_once(self) -> None:
        stage = Stage((2, 2), backoff_first_s=1.0)
        stage.exit("gpu0")
        stage.tick(3.0)
        assert spawn("gpu0", 2) in stage.sweep("gpu0")

    def test_a_dying_executor_gets_no_jobs_and_keeps_its_own_until_its_exit(self) -> None:
        stage = Stage((2,))
        stage.offer("a", 10)
        assert stage.engine_dies("gpu0") == [Pause(source=SOURCE, connection=ConnectionId(1))]
        assert stage.offer("b", 20) == []
        assert list(stage.executor().runs) == [1]
        stage.exit("gpu0")
        assert stage.executor().runs == {}
        assert stage.state.queued == 2

    def test_a_process_that_outlives_its_engine_is_killed(self) -> None:
        stage = Stage((2, 2))
        stage.engine_dies("gpu0")
        assert kills(stage.pass_time(5.0)) == [kill("gpu0", "still there after its engine's death")]

    def test_exit_and_sweep_of_another_incarnation_are_ignored(self) -> None:
        stage = Stage((2, 2))
        assert stage.feed(ExecutorExited(**stage.at("gpu0", 7), exit_code=0, signal=None)) == []
        assert stage.feed(ExecutorSwept(**stage.at("gpu0", 7))) == []
        assert stage.executor().phase is ExecutorPhase.READY

    def test_exit_and_sweep_count_once(self) -> None:
        stage = Stage((2, 2))
        stage.exit("gpu0")
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.sweep("gpu0")
        assert stage.executor().failures == 1
        assert stage.executor().incarnation == 1

    def test_deaths_in_a_row_are_followed_by_ever_longer_delays(self) -> None:
        stage = Stage((2, 2), backoff_first_s=1.0, backoff_max_s=4.0)
        delays = []
        for _ in range(4):
            stage.exit("gpu0")
            stage.sweep("gpu0")
            delays.append(stage.executor().spawn_at_s - stage.now_s)
            stage.pass_time(delays[-1])
            stage.bring_up("gpu0")
        assert delays == [1.0, 2.0, 4.0, 4.0]

    def test_too_many_deaths_end_the_trying(self) -> None:
        stage = Stage((2, 2), restart_intensity=1, backoff_first_s=1.0)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.pass_time(1.0)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        assert stage.executor().phase is ExecutorPhase.FAILED
        assert stage.said("executor.failed") == [
            {
                "executor": "gpu0",
                "incarnation": 2,
                "reason": "died 2 times within 600 s, at most 1 are borne",
            }
        ]
        assert [c for c in stage.pass_time(100.0) if isinstance(c, Spawn)] == []

    def test_a_permanent_cause_ends_the_trying_at_once(self) -> None:
        stage = Stage((2, 2))
        stage.engine_dies("gpu0", permanent=True)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        assert stage.executor().phase is ExecutorPhase.FAILED

    def test_the_next_incarnation_starts_with_a_clean_slate(self) -> None:
        stage = Stage((2, 2))
        stage.beat("gpu0", seq=50)
        stage.offer("a", 10)
        stage.exit("gpu0")
        stage.sweep("gpu0")
        stage.pass_time(1.0, beating=False)
        stage.bring_up("gpu0")
        stage.beat("gpu0", seq=1)
        assert stage.executor().beat_seq == 1
        assert stage.executor().kills == 0
        assert stage.executor().restarts == 1

    def test_an_outcome_is_acknowledged_to_a_dying_executor_too(self) -> None:
        stage = Stage((2, 2))
        stage.offer("a", 10)
        stage.engine_dies("gpu0")
        assert stage.cancelled("gpu0", 1)[0] == ack("gpu0", 1)


def test_an_exit_code_that_says_impossible_ends_the_respawns_though_the_last_words_were_lost() -> None:
    stage = Stage((1, 1))
    stage.exit("gpu0", signal=None, code=EXIT_ENGINE_IMPOSSIBLE)
    stage.sweep("gpu0")
    assert stage.executor("gpu0").phase is ExecutorPhase.FAILED
    assert stage.said("executor.failed")[0]["reason"] == "its engine cannot run as it is configured"
