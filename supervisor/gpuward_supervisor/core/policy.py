"""The numbers by which the core decides: one frozen struct, made once from the configuration."""

from __future__ import annotations

import msgspec

from gpuward_ipc.types import ExecutorName, SourceName


class ExecutorPlan(msgspec.Struct, frozen=True):
    """One executor that this node shall run."""

    name: ExecutorName
    #: Jobs it runs at once; what it says itself when ready may be less, never more.
    slots: int


class Policy(msgspec.Struct, frozen=True):
    """How the core behaves. Times in seconds, sizes in bytes."""

    executors: tuple[ExecutorPlan, ...]
    sources: tuple[SourceName, ...]
    #: Further tries of a job whose executor failed it, on another executor where there is one.
    attempts_max: int = 2
    #: How long the caller of a transient job waits, counted from the offer.
    transient_wait_s: float = 120.0
    #: Renewal interval of a persisted job's lease; the queue's lease is 300 s, the protocol wants 30 or less.
    lease_renew_s: float = 20.0

    #: Respawn delay after a first death; doubles with each further one.
    backoff_first_s: float = 1.0
    backoff_max_s: float = 60.0
    #: Random share added to each delay, 0..1.
    backoff_jitter: float = 0.2
    #: An engine that was ready this long starts again with the first delay.
    backoff_reset_s: float = 60.0
    #: More deaths than this within ``restart_period_s``: the executor is given up (OTP's intensity/period).
    restart_intensity: int = 10
    restart_period_s: float = 600.0

    #: From spawn to hello.
    hello_timeout_s: float = 30.0
    #: From hello to ready: how long an engine may take to load.
    start_timeout_s: float = 600.0
    heartbeat_s: float = 1.0
    #: Silence of an executor's own loop after which it is killed.
    heartbeat_timeout_s: float = 15.0
    #: A run that was assigned but is missing in heartbeats for this long is assigned again.
    reassign_after_s: float = 5.0

    #: Orderly stop: how long running jobs may take.
    shutdown_grace_s: float = 5.0
    #: Orderly stop: how long an engine may take from TERM to its end before it is killed.
    engine_stop_s: float = 5.0
    #: Orderly stop: how long a source may take to flush and close.
    source_close_s: float = 5.0

    #: After a loss of slots: pause the queue strictly this long before waiting jobs are accepted again.
    capacity_settle_s: float = 1.0
    #: At most one re-registration on a connection in this time.
    reregister_min_s: float = 5.0
    #: A result body larger than this is uploaded when the job has an upload URL (exclusive).
    upload_threshold_bytes: int = 262_144
    #: A result body larger than this cannot go inline.
    inline_result_max_bytes: int = 64 * 1024 * 1024
    #: Reports kept for a disconnected source; the oldest transient ones are given up first.
    outbox_max: int = 100_000
    #: One log line per finished job.
    job_notes: bool = True
    #: Offer a queue no more slots than this, however many are alive; None for no such limit.
    capacity_max: int | None = None
