from __future__ import annotations

from gpuward_supervisor.core.state import (
    GONE_PHASES,
    HOPEFUL_PHASES,
    ExecutorPhase,
)
from support.core_stage import Stage


def test_load_is_unfinished_jobs_and_runs_whose_end_is_awaited() -> None:
    stage = Stage((2,))
    stage.offer("a", 10)
    stage.offer("b", None, payload_url="https://store")
    assert stage.state.load() == 2
    stage.revoke("a")
    assert stage.state.load() == 2
    stage.cancelled("gpu0", 1)
    assert stage.state.load() == 1
    stage.revoke("b")
    assert stage.state.load() == 0


def test_offerable_are_the_slots_that_are_alive_up_to_the_limit() -> None:
    assert Stage((2, 3)).state.offerable_slots() == 5
    assert Stage((2, 3), capacity_max=4).state.offerable_slots() == 4
    stage = Stage((2, 3), capacity_max=4)
    stage.exit("gpu1")
    assert stage.state.offerable_slots() == 2


def test_no_phase_is_both_gone_and_hopeful() -> None:
    assert not GONE_PHASES & HOPEFUL_PHASES
    assert ExecutorPhase.BACKOFF not in GONE_PHASES | HOPEFUL_PHASES
