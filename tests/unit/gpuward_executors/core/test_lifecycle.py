from __future__ import annotations

from gpuward_executors.core.commands import (
    CancelRun,
    Exit,
    ForgetPayload,
    KillEngine,
    ProbeEngine,
    Send,
    StartEngine,
    StopEngine,
)
from gpuward_executors.core.decide import initial_state, next_deadline
from gpuward_executors.core.events import (
    EngineAdvanced,
    EngineAnswered,
    EngineEnded,
    EngineHealth,
    EngineMeasured,
    EngineProbed,
    EngineStarted,
    RunCancelled,
    RunFailed,
    Ticked,
)
from gpuward_executors.core.state import Stage
from gpuward_ipc.messages import EngineExited, Goodbye, Heartbeat, Hello, Ready, Stop, Welcome
from gpuward_ipc.types import Fault, Incarnation, RunId
from support.executor_core import NAME, assign, feed, policy, ready, sent, starting, waiting, won

ONE, TWO = RunId(1), RunId(2)
DEAD = EngineProbed(health=EngineHealth.DEAD)


def engine_lost(run: RunId) -> RunFailed:
    return RunFailed(run=run, error="connection lost", fault=Fault.ENGINE)


# ---------------------------------------------------------------- hello and welcome


def test_hello_is_repeated_until_the_supervisor_answers() -> None:
    state = initial_state(policy(version="9"))
    hello = [Send(message=Hello(NAME, Incarnation(3), 77, version="9"))]
    assert feed(state, Ticked(), at_s=10.0) == hello
    assert next_deadline(state) == 11.0
    assert feed(state, Ticked(), at_s=10.5) == []
    assert feed(state, Ticked(), at_s=11.0) == hello


def test_an_executor_that_is_never_welcomed_leaves() -> None:
    assert feed(waiting(welcome_timeout_s=30.0), Ticked(), at_s=30.0) == [Exit(code=69)]


def test_the_first_welcome_starts_the_engine_and_the_heartbeats() -> None:
    state = waiting()
    commands = feed(state, Welcome(heartbeat_s=0.5), at_s=1.0)
    assert commands == [Send(message=Heartbeat(1, phase="starting")), StartEngine()]
    assert next_deadline(state) == 1.5


def test_a_repeated_welcome_starts_nothing() -> None:
    state = starting()
    assert feed(state, Welcome(), EngineAnswered(), Welcome()) == [Send(message=Ready(2, "", 88))]


def test_a_supervisor_of_another_protocol_is_left_alone() -> None:
    assert feed(waiting(), Welcome(protocol=99)) == [Exit(code=69)]


# ---------------------------------------------------------------- heartbeats


def test_heartbeats_say_what_is_held_and_rise() -> None:
    state = ready(slots=1)
    feed(state, assign(1), assign(2), assign(3), won(1), EngineMeasured(rss_bytes=1000))
    [beat] = sent(feed(state, Ticked(), at_s=1.0))
    assert beat == Heartbeat(2, runs=(RunId(3), TWO, ONE), slots=1, phase="ready", engine_rss_bytes=1000)


def test_a_starting_executor_offers_no_slots_and_names_its_phase() -> None:
    state = starting()
    feed(state, EngineAdvanced(phase="loading weights"))
    assert sent(feed(state, Ticked(), at_s=1.0)) == [Heartbeat(2, phase="loading weights")]


def test_a_suspected_engine_is_named_in_the_phase() -> None:
    state = ready()
    feed(state, assign(1), engine_lost(ONE))
    [beat] = sent(feed(state, Ticked(), at_s=1.0))
    assert isinstance(beat, Heartbeat)
    assert beat.phase == "engine suspected dead"


# ---------------------------------------------------------------- the engine's end


def test_an_engines_death_is_its_executors_death() -> None:
    state = ready()
    feed(state, assign(1), assign(2), engine_lost(ONE))
    assert feed(state, EngineEnded(exit_code=0, detail="it exited")) == [
        Send(message=EngineExited(0, None, "it exited")),
        Exit(code=70),
    ]
    assert feed(state, assign(3), EngineEnded(), Ticked(), at_s=99.0) == []
    assert next_deadline(state) is None


def test_an_engine_that_can_never_start_is_permanent() -> None:
    event = EngineEnded(exit_code=127, detail="no vllm", permanent=True)
    assert feed(starting(), event) == [
        Send(message=EngineExited(127, None, "no vllm", permanent=True)),
        Exit(code=71),
    ]


def test_an_engine_that_is_not_ready_in_time_is_killed_and_counts_as_dead() -> None:
    state = starting(start_timeout_s=60.0)
    feed(state, EngineAdvanced(phase="compiling"))
    assert feed(state, Ticked(), at_s=60.0)[-1:] == [KillEngine()]
    [message, leave] = feed(state, EngineEnded(signal=9, detail="killed"), at_s=60.1)
    assert isinstance(message, Send)
    assert isinstance(message.message, EngineExited)
    assert "not ready 60 s after its start (last phase: compiling)" in message.message.detail
    assert message.message.signal == 9
    assert leave == Exit(code=70)


def test_an_engine_that_survives_its_kill_is_left_to_the_supervisor() -> None:
    state = starting(start_timeout_s=60.0, kill_within_s=2.0)
    feed(state, Ticked(), at_s=60.0)
    commands = feed(state, Ticked(), at_s=62.0)
    assert commands[-1:] == [Exit(code=70)]
    assert "did not end" in str(sent(commands)[-1])


def test_a_ready_engine_has_no_deadline_but_the_heartbeat() -> None:
    state = ready(start_timeout_s=60.0)
    assert next_deadline(state) == 1.0


def test_an_answer_after_the_timeout_comes_too_late() -> None:
    state = starting(start_timeout_s=1.0)
    feed(state, Ticked(), at_s=1.0)
    assert feed(state, EngineAnswered(), at_s=1.1) == []
    assert state.stage is Stage.DYING


# ---------------------------------------------------------------- suspicion


def test_an_engine_that_looks_dead_gets_time_to_exit_by_itself() -> None:
    state = ready(reprobe_after_s=2.0)
    feed(state, assign(1), engine_lost(ONE), at_s=5.0)
    assert feed(state, DEAD, at_s=5.0) == []
    assert state.reprobe_at_s == 7.0
    assert feed(state, EngineEnded(signal=11), at_s=5.5)[-1:] == [Exit(code=70)]


def test_an_engine_that_looks_dead_twice_is_killed() -> None:
    state = ready(reprobe_after_s=2.0)
    feed(state, assign(1), assign(2), engine_lost(ONE), DEAD, engine_lost(TWO), at_s=0.5)
    assert ProbeEngine() in feed(state, Ticked(), at_s=2.5)
    assert feed(state, DEAD, at_s=2.6) == [KillEngine()]
    [message, leave] = feed(state, EngineEnded(signal=9, detail="killed"), at_s=2.7)
    assert "health check fails, after a run ended with: connection lost" in str(message)
    assert leave == Exit(code=70)


def test_an_engine_that_recovers_from_looking_dead_fails_only_the_suspects() -> None:
    state = ready(reprobe_after_s=2.0)
    feed(state, assign(1), engine_lost(ONE), DEAD)
    feed(state, Ticked(), at_s=2.0)
    commands = feed(state, EngineProbed(health=EngineHealth.HEALTHY), at_s=2.1)
    assert [type(message).__name__ for message in sent(commands)] == ["Failed"]
    assert feed(state, assign(2)) != []


def test_a_probe_that_nobody_waits_for_is_ignored() -> None:
    assert feed(ready(), DEAD, DEAD) == []


# ---------------------------------------------------------------- stopping


def test_a_stop_before_the_welcome_is_a_goodbye() -> None:
    assert feed(waiting(), Stop()) == [Send(message=Goodbye()), Exit(code=0)]


def test_an_idle_engine_is_stopped_at_once() -> None:
    state = ready()
    assert feed(state, Stop(grace_s=4.0)) == [StopEngine(grace_s=4.0)]
    assert feed(state, EngineEnded(exit_code=0)) == [Send(message=Goodbye()), Exit(code=0)]


def test_a_busy_engine_is_relieved_of_its_requests_before_it_is_stopped() -> None:
    state = ready(slots=1, settle_s=0.25)
    feed(state, assign(1), assign(2))
    assert feed(state, Stop(grace_s=4.0), at_s=0.5) == [ForgetPayload(run=TWO), CancelRun(run=ONE)]
    assert feed(state, RunCancelled(run=ONE), at_s=0.5) == []
    assert next_deadline(state) == 0.75
    assert feed(state, Ticked(), at_s=0.75) == [StopEngine(grace_s=4.0)]


def test_without_grace_nothing_is_waited_for() -> None:
    state = ready()
    feed(state, assign(1))
    assert feed(state, Stop(grace_s=0.0)) == [CancelRun(run=ONE), StopEngine(grace_s=0.0)]


def test_a_second_stop_can_only_hurry() -> None:
    state = ready()
    feed(state, Stop(grace_s=4.0))
    assert feed(state, Stop(grace_s=30.0)) == []
    assert feed(state, Stop(grace_s=0.0)) == [StopEngine(grace_s=0.0)]


def test_a_stop_while_starting_stops_the_engine() -> None:
    state = starting()
    assert feed(state, Stop(grace_s=1.0)) == [StopEngine(grace_s=1.0)]
    assert feed(state, EngineAnswered()) == []


def test_an_engine_that_does_not_die_does_not_hold_the_executor() -> None:
    state = ready(kill_within_s=2.0)
    feed(state, Stop(grace_s=4.0))
    assert feed(state, Ticked(), at_s=6.0)[-2:] == [Send(message=Goodbye()), Exit(code=0)]


def test_a_stop_of_a_dying_executor_changes_nothing() -> None:
    state = starting(start_timeout_s=1.0)
    feed(state, Ticked(), at_s=1.0)
    assert feed(state, Stop(), at_s=1.1) == []
    assert feed(state, EngineEnded(), at_s=1.2)[-1:] == [Exit(code=70)]


def test_suspect_runs_are_abandoned_by_a_stop() -> None:
    state = ready()
    feed(state, assign(1), engine_lost(ONE))
    assert feed(state, Stop(grace_s=1.0)) == [StopEngine(grace_s=1.0)]
    assert feed(state, DEAD) == []


def test_an_engine_without_a_process_is_known_by_pid_zero() -> None:
    state = waiting()
    feed(state, Welcome(), EngineStarted())
    assert feed(state, EngineAnswered(engine_version="echo")) == [Send(message=Ready(2, "echo", 0))]
