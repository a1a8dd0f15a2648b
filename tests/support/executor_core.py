"""An executor's core brought to a stage, for tests that feed it events and compare commands."""

from __future__ import annotations

from typing import Any

from gpuward_executors.core.commands import ExecutorCommand, Note, Send
from gpuward_executors.core.decide import decide, initial_state
from gpuward_executors.core.events import EngineAnswered, EngineStarted, ExecutorEvent, RunSucceeded, Ticked
from gpuward_executors.core.state import ExecutorPolicy, State
from gpuward_ipc.messages import Assign, FromExecutor, Welcome
from gpuward_ipc.types import ExecutorName, Incarnation, JobId, RunId

NAME = ExecutorName("gpu0")


def policy(**fields: object) -> ExecutorPolicy:
    given: dict[str, Any] = {"executor": NAME, "incarnation": Incarnation(3), "pid": 77, "slots": 2, **fields}
    return ExecutorPolicy(**given)


def feed(state: State, *events: ExecutorEvent, at_s: float = 0.0) -> list[ExecutorCommand]:
    """All commands of these events, notes left out: they are words, not deeds."""
    commands: list[ExecutorCommand] = []
    for event in events:
        commands += decide(state, event, at_s)
    return [command for command in commands if not isinstance(command, Note)]


def sent(commands: list[ExecutorCommand]) -> list[FromExecutor]:
    return [command.message for command in commands if isinstance(command, Send)]


def waiting(**fields: object) -> State:
    state = initial_state(policy(**fields))
    feed(state, Ticked())
    return state


def starting(**fields: object) -> State:
    state = waiting(**fields)
    feed(state, Welcome(heartbeat_s=1.0), EngineStarted(pid=88))
    return state


def ready(**fields: object) -> State:
    state = starting(**fields)
    feed(state, EngineAnswered(engine_version="1.2"))
    return state


def assign(run: int, task: str = "t", body_path: str = "") -> Assign:
    return Assign(RunId(run), JobId(f"job-{run}"), task, body_path=body_path)


def won(run: int, body_bytes: int = 5, body_path: str = "") -> RunSucceeded:
    return RunSucceeded(run=RunId(run), body_bytes=body_bytes, body_path=body_path)
