"""The one door of the executor's core: which event goes to which decision.

``decide`` changes the state in place and returns commands in the order in which they must be carried out;
it knows no clock, no I/O and no threads: same state, events and times, same commands.
"""

from __future__ import annotations

from typing import assert_never

from gpuward_executors.core.commands import ExecutorCommand
from gpuward_executors.core.events import (
    EngineAdvanced,
    EngineAnswered,
    EngineEnded,
    EngineMeasured,
    EngineProbed,
    EngineStarted,
    ExecutorEvent,
    RunCancelled,
    RunFailed,
    RunSucceeded,
    Ticked,
)
from gpuward_executors.core.lifecycle import (
    engine_answered,
    engine_ended,
    engine_probed,
    stop_asked,
    ticked,
    welcomed,
)
from gpuward_executors.core.runs import (
    acknowledged,
    assigned,
    cancelled_by_supervisor,
    failed,
    given_up,
    succeeded,
)
from gpuward_executors.core.state import Stage, State, initial_state, next_deadline
from gpuward_ipc.messages import Ack, Assign, Cancel, Pulse, Stop, Welcome

__all__ = ["decide", "initial_state", "next_deadline"]


def decide(state: State, event: ExecutorEvent, now_s: float) -> list[ExecutorCommand]:
    """Take one event in and say what must be done.

    Args:
        state: changed in place; owned by one caller.
        event: what happened.
        now_s: when, on any clock that never goes back.

    Returns:
        Commands, to be carried out in this order.
    """
    if state.stage is Stage.GONE:
        return []
    # The three events of every run come first: this chain is the executor's hot path.
    match event:
        case Assign():
            return assigned(state, event, now_s)
        case RunSucceeded():
            return succeeded(state, event, now_s)
        case Ack():
            return acknowledged(state, event)
        case RunFailed():
            return failed(state, event, now_s)
        case RunCancelled():
            return given_up(state, event, now_s)
        case Cancel():
            return cancelled_by_supervisor(state, event, now_s)
        case Ticked():
            return ticked(state, now_s)
        case Welcome():
            return welcomed(state, event, now_s)
        case Stop():
            return stop_asked(state, event, now_s)
        case EngineStarted():
            state.engine_pid = event.pid
            return []
        case EngineAdvanced():
            state.phase = event.phase
            return []
        case EngineMeasured():
            state.engine_rss_bytes = event.rss_bytes
            return []
        case EngineAnswered():
            return engine_answered(state, event)
        case EngineEnded():
            return engine_ended(state, event)
        case EngineProbed():
            return engine_probed(state, event, now_s)
        case Pulse():
            return []
        case _:
            assert_never(event)
