"""What the executor's core wants done: the outputs of ``decide``. Imperative; plain frozen data.

No command returns anything into the decision: every outcome comes back as an event.
"""

from __future__ import annotations

import msgspec

from gpuward_ipc.messages import Assign, FromExecutor
from gpuward_ipc.types import RunId

#: Plain scalars only: a note is one flat line.
Facts = dict[str, str | int | float | bool | None]


class ExecutorCommandBase(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all commands."""


class Send(ExecutorCommandBase, frozen=True):
    """Send a message to the supervisor; with the kept result as its body where it is an inline success."""

    message: FromExecutor


class StartEngine(ExecutorCommandBase, frozen=True):
    """Start the engine; answers with ``EngineStarted``, ``EngineAnswered``, in the end ``EngineEnded``."""


class StopEngine(ExecutorCommandBase, frozen=True):
    """Ask the engine to end (TERM), kill it after ``grace_s``; 0 kills at once."""

    grace_s: float


class KillEngine(ExecutorCommandBase, frozen=True):
    """Kill the engine now."""


class ProbeEngine(ExecutorCommandBase, frozen=True):
    """Look at the engine's health once; answers with ``EngineProbed``."""


class StartRun(ExecutorCommandBase, frozen=True):
    """Begin a run with the payload kept for it."""

    assign: Assign


class CancelRun(ExecutorCommandBase, frozen=True):
    """Close the run's request to the engine; answers with ``RunCancelled`` unless the run ended meanwhile."""

    run: RunId


class ForgetPayload(ExecutorCommandBase, frozen=True):
    """Drop the payload kept for this run: it will not be started (again)."""

    run: RunId


class ForgetResults(ExecutorCommandBase, frozen=True):
    """Drop the results kept for these runs."""

    runs: tuple[RunId, ...]


class Note(ExecutorCommandBase, frozen=True):
    """Write one line to the log."""

    level: str
    event: str
    facts: Facts


class Exit(ExecutorCommandBase, frozen=True):
    """End this process with an exit code, after all messages before this have been handed over."""

    code: int


ExecutorCommand = (
    Send
    | StartEngine
    | StopEngine
    | KillEngine
    | ProbeEngine
    | StartRun
    | CancelRun
    | ForgetPayload
    | ForgetResults
    | Note
    | Exit
)
