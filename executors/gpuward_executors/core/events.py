"""What can happen to an executor: the inputs of ``decide``. Past tense; plain frozen data, no I/O.

The supervisor's messages enter as they are; the rest are events of the engine and of the runs. Bodies
(payloads and results) stay in the shell, which keeps them by run.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from gpuward_ipc.messages import Ack, Assign, Cancel, Pulse, Stop, Welcome
from gpuward_ipc.types import Fault, RunId


class EngineHealth(StrEnum):
    """What one look at the engine's health address found."""

    #: It answered 200: no process of it has died (it may still hang).
    HEALTHY = "healthy"
    #: It refused the connection or answered an error: it is dead or about to be.
    DEAD = "dead"
    #: It did not answer in time: busy or frozen, which cannot be told apart here.
    SILENT = "silent"


class Event(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Base of all events."""


class Ticked(Event, frozen=True):
    """A deadline of the state has come, or the executor has just started."""


# ---------------------------------------------------------------- the engine


class EngineStarted(Event, frozen=True):
    """The engine's process runs; it does not answer yet."""

    #: 0 for an engine without a process.
    pid: int = 0


class EngineAdvanced(Event, frozen=True):
    """The starting engine entered another phase, as its log says."""

    phase: str


class EngineAnswered(Event, frozen=True):
    """The engine is ready for requests."""

    engine_version: str = ""


class EngineEnded(Event, frozen=True):
    """The engine's process is gone, or it could not be started at all."""

    exit_code: int | None = None
    signal: int | None = None
    #: One sentence for people.
    detail: str = ""
    #: The same configuration can never work.
    permanent: bool = False


class EngineProbed(Event, frozen=True):
    """A look at the engine's health, asked for by ``ProbeEngine``, is done."""

    health: EngineHealth


class EngineMeasured(Event, frozen=True):
    """Resident memory of the engine's processes."""

    rss_bytes: int


# ---------------------------------------------------------------- runs


class RunSucceeded(Event, frozen=True):
    """A backend has the result of a run."""

    run: RunId
    body_bytes: int
    #: File with the result, empty when the shell keeps the bytes.
    body_path: str = ""


class RunFailed(Event, frozen=True):
    """A backend could not do a run."""

    run: RunId
    error: str
    fault: Fault


class RunCancelled(Event, frozen=True):
    """A run was given up as ``CancelRun`` asked; its request to the engine is closed."""

    run: RunId


ExecutorEvent = (
    Ticked
    | Welcome
    | Assign
    | Cancel
    | Ack
    | Stop
    | Pulse
    | EngineStarted
    | EngineAdvanced
    | EngineAnswered
    | EngineEnded
    | EngineProbed
    | EngineMeasured
    | RunSucceeded
    | RunFailed
    | RunCancelled
)
