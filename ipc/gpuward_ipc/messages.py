"""The messages of the executor link, both ways; msgpack arrays, one struct a message.

A message is one header frame (the struct) and, for ``Assign`` and ``Succeeded``, a second frame with the
body as raw JSON bytes, unless ``body_path`` names a file that holds it. Fields are only ever appended,
with defaults; they are never reordered, retyped or removed.

Both sides tolerate loss, duplication and reordering of messages: runs are idempotent by ``run``, results
are kept and repeated until acknowledged, and every heartbeat lists the runs that the executor holds.
"""

from __future__ import annotations

import msgspec

from gpuward_ipc.types import PROTOCOL_VERSION, ExecutorName, Fault, Incarnation, JobId, RunId


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all link messages."""


# ---------------------------------------------------------------- executor → supervisor


class Hello(Message, frozen=True):
    """First message of an executor: who it is."""

    executor: ExecutorName
    incarnation: Incarnation
    pid: int
    protocol: int = PROTOCOL_VERSION
    #: gpuward version of the executor.
    version: str = ""


class Ready(Message, frozen=True):
    """The engine answers; jobs may come. Repeated in every heartbeat as ``ready``."""

    #: Jobs this executor runs at once.
    slots: int
    engine_version: str = ""
    engine_pid: int = 0


class Heartbeat(Message, frozen=True):
    """Sent from the executor's own loop every ``heartbeat_s``: it is alive, and this is what it holds."""

    #: Rises by one with each heartbeat of an incarnation; an older one is ignored.
    seq: int
    #: Runs that it is working on or whose result it has not seen acknowledged.
    runs: tuple[RunId, ...] = ()
    #: 0 until the engine is ready, then the slots of ``Ready``.
    slots: int = 0
    #: Phase of the engine in a word or two, for people: ``starting``, ``loading weights`` …
    phase: str = ""
    #: Resident memory of the engine's process tree, in bytes; 0 when unknown.
    engine_rss_bytes: int = 0


class Succeeded(Message, frozen=True):
    """A run ended well; the body is the JSON of the job's ``result``."""

    run: RunId
    body_bytes: int
    #: File that holds the body (in the incarnation's spool folder), empty when it is the second frame.
    body_path: str = ""


class Failed(Message, frozen=True):
    """A run failed; ``error`` may be shown to the caller."""

    run: RunId
    error: str
    fault: Fault = Fault.ENGINE


class Cancelled(Message, frozen=True):
    """A run was given up because it was told to."""

    run: RunId


class Progressed(Message, frozen=True):
    """A run got further; ``progress`` is 0..1, or negative when unknown."""

    run: RunId
    progress: float = -1.0
    status_message: str = ""


class EngineExited(Message, frozen=True):
    """The engine is gone, unasked; the executor leaves right after this message."""

    #: Exit code of the engine process, or None when a signal ended it.
    exit_code: int | None = None
    #: Signal number, or None.
    signal: int | None = None
    #: One sentence for people.
    detail: str = ""
    #: True when trying again with the same configuration cannot help (for example no such command).
    permanent: bool = False


class Goodbye(Message, frozen=True):
    """The executor leaves as it was told to; its engine is gone."""


# ---------------------------------------------------------------- supervisor → executor


class Welcome(Message, frozen=True):
    """Answer to ``Hello``: the executor may start its engine."""

    protocol: int = PROTOCOL_VERSION
    #: Interval of heartbeats both ways, in seconds.
    heartbeat_s: float = 1.0


class Assign(Message, frozen=True):
    """Run a job. A ``run`` that is known already is ignored."""

    run: RunId
    job_id: JobId
    #: Task name, for example ``openai/chat-completion``; empty as the caller left it.
    task: str
    #: The source's configuration id, echoed in results of the Casola protocol.
    config_id: str = ""
    #: 1 for the first try of a job, one more for each further one.
    attempt: int = 1
    body_path: str = ""
    body_bytes: int = 0
    #: True when nobody polls for the result (``transient``).
    transient: bool = False


class Cancel(Message, frozen=True):
    """Give up a run: abort the engine's request, answer ``Cancelled``."""

    run: RunId
    reason: str = ""


class Ack(Message, frozen=True):
    """Outcomes of these runs have arrived; the executor may forget them."""

    runs: tuple[RunId, ...]


class Stop(Message, frozen=True):
    """Stop the engine (TERM, KILL after ``grace_s``), say ``Goodbye``, exit 0. Runs left are abandoned."""

    grace_s: float = 5.0


class Pulse(Message, frozen=True):
    """The supervisor is alive."""

    seq: int = 0


FromExecutor = (
    Hello | Ready | Heartbeat | Succeeded | Failed | Cancelled | Progressed | EngineExited | Goodbye
)
FromSupervisor = Welcome | Assign | Cancel | Ack | Stop | Pulse
