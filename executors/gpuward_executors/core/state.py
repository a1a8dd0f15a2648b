"""The state of an executor: its stage, the runs it holds, its deadlines. Data only; changed by ``decide``."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from gpuward_ipc.messages import Assign, Cancelled, Failed, Succeeded
from gpuward_ipc.types import ExecutorName, Incarnation, RunId

#: Exit codes of an executor, for the supervisor and for people.
EXIT_STOPPED = 0
EXIT_BAD_START = 2
EXIT_SUPERVISOR_GONE = 69
EXIT_ENGINE_DIED = 70

_NO_RUN = RunId(0)
#: Acknowledged runs that are remembered, so that a late duplicate does not run again.
ACKED_RUNS_MAX = 10_000


class ExecutorPolicy(msgspec.Struct, frozen=True):
    """How an executor behaves. Times in seconds."""

    executor: ExecutorName
    incarnation: Incarnation
    pid: int
    #: Runs at once.
    slots: int
    version: str = ""
    #: From the start of the engine to its first answer.
    start_timeout_s: float = 600.0
    #: Until ``Welcome`` says otherwise.
    heartbeat_s: float = 1.0
    #: Interval of ``Hello`` until the supervisor answers.
    hello_every_s: float = 1.0
    #: No answer to ``Hello`` for this long: the supervisor is gone.
    welcome_timeout_s: float = 30.0
    #: An outcome without acknowledgement for this long is sent again with the next heartbeat.
    resend_after_s: float = 2.0
    #: Outcomes sent again with one heartbeat at most: a slow supervisor must not be flooded.
    resends_max: int = 256
    #: How long a stopping engine may take to notice closed requests before it gets TERM (a busy vLLM
    #: hangs on TERM about every third time, an idle one does not).
    settle_s: float = 0.25
    #: An engine that looks dead but whose process lives is looked at again after this long, then killed.
    reprobe_after_s: float = 2.0
    #: How long a killed engine may take to vanish before the executor leaves without knowing its status.
    kill_within_s: float = 2.0


class Stage(StrEnum):
    """Where an executor is in its one life."""

    #: Hello is sent, the supervisor has not answered; there is no engine.
    WAITING = "waiting"
    #: The engine starts; runs wait.
    STARTING = "starting"
    #: The engine answers; runs run.
    READY = "ready"
    #: Told to stop: no run starts any more, the engine is being stopped.
    STOPPING = "stopping"
    #: The engine was given up and killed; its exit status is awaited.
    DYING = "dying"
    #: ``Exit`` was given; nothing happens any more.
    GONE = "gone"


class RunStage(StrEnum):
    """Where a started run is."""

    #: A backend works on it.
    RUNNING = "running"
    #: A backend works on it, but was told to give it up.
    CANCELLING = "cancelling"
    #: The engine failed it; whether the engine is dead is being found out. No backend works on it.
    SUSPECT = "suspect"


Outcome = Succeeded | Failed | Cancelled


@dataclass(slots=True)
class Sent:
    """An outcome that the supervisor has not acknowledged."""

    outcome: Outcome
    sent_at_s: float


@dataclass(slots=True)
class AckedRuns:
    """The runs that are over and acknowledged: the latest by name, older ones below a floor."""

    kept_max: int = ACKED_RUNS_MAX
    #: Every run up to this number counts as over unless it is held; run numbers rise.
    floor: RunId = _NO_RUN
    _order: deque[RunId] = field(default_factory=deque)
    _known: set[RunId] = field(default_factory=set)

    def __contains__(self, run: RunId) -> bool:
        return run in self._known

    def __len__(self) -> int:
        return len(self._known)

    def add(self, run: RunId) -> None:
        """Remember a run; forgets the oldest beyond ``kept_max`` and raises the floor to it."""
        if run in self._known:
            return
        self._known.add(run)
        self._order.append(run)
        if len(self._order) > self.kept_max:
            oldest = self._order.popleft()
            self._known.discard(oldest)
            self.floor = max(self.floor, oldest)


@dataclass(slots=True)
class State:
    """Everything an executor decides by."""

    policy: ExecutorPolicy
    stage: Stage = Stage.WAITING
    heartbeat_s: float = 1.0
    #: Number of the last heartbeat.
    seq: int = 0
    #: Phase of the starting engine, for people.
    phase: str = "starting"
    engine_pid: int = 0
    engine_version: str = ""
    engine_rss_bytes: int = 0

    #: Runs that wait for a slot or for the engine, in order of arrival.
    queued: dict[RunId, Assign] = field(default_factory=dict)
    #: Runs that hold a slot.
    running: dict[RunId, RunStage] = field(default_factory=dict)
    #: Suspect runs that the probe under way covers, with their errors.
    probed: dict[RunId, str] = field(default_factory=dict)
    #: Suspect runs that came after that probe began.
    unprobed: dict[RunId, str] = field(default_factory=dict)
    #: True from ``ProbeEngine`` until the engine is known to be alive or dead.
    probing: bool = False
    #: The last probe found the engine dead.
    looked_dead: bool = False
    #: Outcomes without acknowledgement, ordered by the time they were last sent.
    unacked: dict[RunId, Sent] = field(default_factory=dict)
    acked: AckedRuns = field(default_factory=AckedRuns)

    #: Why the engine was given up, in a sentence; set in ``DYING``.
    cause: str = ""
    #: Grace for the engine's end; set in ``STOPPING``.
    stop_grace_s: float = 0.0

    #: Deadlines; None where nothing is due.
    hello_at_s: float | None = None
    welcome_by_s: float | None = None
    beat_at_s: float | None = None
    ready_by_s: float | None = None
    reprobe_at_s: float | None = None
    stop_engine_at_s: float | None = None
    leave_at_s: float | None = None


def initial_state(policy: ExecutorPolicy) -> State:
    """State of an executor that has done nothing yet; its first event is ``Ticked``."""
    return State(policy=policy, heartbeat_s=policy.heartbeat_s)


def next_deadline(state: State) -> float | None:
    """Time of the next ``Ticked`` that the state wants, or None."""
    due = [
        at_s
        for at_s in (
            state.hello_at_s,
            state.welcome_by_s,
            state.beat_at_s,
            state.ready_by_s,
            state.reprobe_at_s,
            state.stop_engine_at_s,
            state.leave_at_s,
        )
        if at_s is not None
    ]
    return min(due, default=None)
