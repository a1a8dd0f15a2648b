from __future__ import annotations

import typing

from gpuward_supervisor.core import decide as module
from gpuward_supervisor.core import events
from gpuward_supervisor.core.decide import decide, initial_state, next_deadline
from gpuward_supervisor.core.events import Ticked
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from support.core_stage import PERSISTED, SOURCE, Stage


def test_every_event_has_its_decision() -> None:
    assert set(module._DECISIONS) == set(typing.get_args(events.SupervisorEvent))
    declared = {
        kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)
    }
    assert set(module._DECISIONS) == declared - {events.Event}


def test_the_first_deadline_after_the_start_is_a_missing_hello() -> None:
    policy = Policy(executors=(ExecutorPlan("gpu0", 1),), sources=(SOURCE,), hello_timeout_s=30.0)  # type: ignore[arg-type]
    state = initial_state(policy, seed=1)
    assert next_deadline(state) is None
    decide(state, Ticked(), 5.0)
    assert next_deadline(state) == 35.0


def test_the_nearest_deadline_counts() -> None:
    stage = Stage((1, 1), heartbeat_s=1.0, lease_renew_s=0.5, capacity_settle_s=0.25)
    assert next_deadline(stage.state) == stage.now_s + 1.0
    stage.offer("a", 10, mode=PERSISTED)
    assert next_deadline(stage.state) == stage.now_s + 0.5
    stage.exit("gpu1")
    assert next_deadline(stage.state) == stage.now_s + 0.25


def story(seed: int) -> list[object]:
    """Deaths, jittered backoffs, retries: everything that chance has a hand in."""
    stage = Stage((2, 2), backoff_jitter=0.5)
    stage.state.rng.seed(seed)
    told: list[object] = []
    for n in range(1, 7):
        told += stage.offer(f"j{n}", n, mode=PERSISTED)
        told += stage.exit(stage.names[n % 2])
        told += stage.sweep(stage.names[n % 2])
        told += stage.pass_time(40.0)
        for executor in stage.state.executors.values():
            if executor.phase == "spawning":
                told += stage.bring_up(executor.name)
        told.append((next_deadline(stage.state), tuple(note.event for note in stage.notes)))
    return told


def test_the_same_events_at_the_same_times_give_the_same_commands() -> None:
    assert story(3) == story(3)


def test_the_seed_decides_the_jitter() -> None:
    policy = Policy(executors=(), sources=())
    draws = [initial_state(policy, seed).rng.random() for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
