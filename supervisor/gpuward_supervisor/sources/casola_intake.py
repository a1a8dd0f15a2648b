"""What the Casola queue sends, turned into the core's events: payloads stored, bad messages counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import assert_never

import structlog

from gpuward_ipc.types import INLINE_BODY_MAX_BYTES, Fence, JobId
from gpuward_supervisor.core import events
from gpuward_supervisor.core.events import BodyId, ConnectionId, SupervisorEvent
from gpuward_supervisor.sources import casola_protocol as protocol
from gpuward_supervisor.sources.base import BodyStore, CasolaSettings
from gpuward_supervisor.sources.spooling import Landing, SpoolFailed
from gpuward_supervisor.sources.websocket_frames import Binary, Oversized

#: The same kind of warning is written at most once in this time.
WARN_INTERVAL_S = 1.0
_TEXT_MAX_CHARS = 500


class Intake:
    """Everything that comes in on a source's connections; used by the source's thread only."""

    def __init__(self, settings: CasolaSettings, bodies: BodyStore, clock: Callable[[], float]) -> None:
        """Start with empty counters.

        Args:
            settings: whose connections these are.
            bodies: where payloads go.
            clock: monotonic seconds.
        """
        self._name = settings.name
        self._limit_bytes = settings.inbound_max_bytes
        self._bodies = bodies
        self._clock = clock
        self._log = structlog.get_logger("gpuward").bind(source=self._name)
        self._warned_at_s: dict[str, float] = {}
        #: Jobs that became ``JobOffered``, refused ones included.
        self.jobs_received = 0
        #: Jobs that were offered with a refusal.
        self.jobs_refused = 0
        #: Messages that meant nothing to us.
        self.frames_ignored = 0

    def take(
        self, received: bytes | bytearray | Oversized | Binary, connection: ConnectionId
    ) -> list[SupervisorEvent]:
        """Turn one message into what it means; empty when it means nothing to the core."""
        if isinstance(received, (bytes, bytearray)):
            return self._text(protocol.decode(received), connection)
        if isinstance(received, Oversized):
            return self._oversized(received, connection)
        return self._ignore(f"binary message of {received.size_bytes} bytes")

    def _text(self, message: protocol.Inbound, connection: ConnectionId) -> list[SupervisorEvent]:
        match message:
            case protocol.Job():
                return [self._offer(message, connection)]
            case protocol.Revoked(job_id=job_id, reason=reason):
                text = (reason or "")[:_TEXT_MAX_CHARS]
                return [events.JobRevoked(source=self._name, job_id=JobId(job_id), reason=text)]
            case protocol.QueueError():
                self._warn("source.queue_error", message=protocol.error_text(message)[:_TEXT_MAX_CHARS])
                return []
            case protocol.ResultRefEcho():
                return []
            case protocol.Ignored(reason=reason):
                return self._ignore(reason)
            case protocol.Unusable(job=job, reason=reason):
                return [self._refused(job, connection, reason)]
            case _:
                assert_never(message)

    def _offer(self, job: protocol.Job, connection: ConnectionId) -> SupervisorEvent:
        task = protocol.peek_task(job.payload)
        if refusal := protocol.names_fault(job, task):
            return self._refused(job, connection, refusal)
        if job.payload_url:
            return self._offered(job, connection, task)
        with memoryview(job.payload) as payload:
            body_bytes = len(payload)
            if body_bytes <= INLINE_BODY_MAX_BYTES:
                return self._offered(job, connection, task, self._bodies.put(bytes(payload)), body_bytes)
            # Written on this thread: the loop must not wait for a disk.
            landing = Landing(self._bodies)
            try:
                landing.write(payload)
            except SpoolFailed as error:
                landing.discard()
                text = f"this node has no room for the payload of {body_bytes} bytes: {error}"
                return self._refused(job, connection, text)
        return self._offered(job, connection, task, landing.keep(), body_bytes)

    def _offered(
        self,
        job: protocol.Job,
        connection: ConnectionId,
        task: str = "",
        body: BodyId | None = None,
        body_bytes: int = 0,
        refusal: str = "",
    ) -> SupervisorEvent:
        self.jobs_received += 1
        return events.JobOffered(
            source=self._name,
            connection=connection,
            job_id=JobId(job.job_id or ""),
            fence=Fence(job.fence_token),
            mode=protocol.mode_of(job),
            task=task,
            config_id=job.config_id or "",
            body=body,
            body_bytes=body_bytes,
            payload_url=job.payload_url or "",
            result_upload_url=job.result_upload_url or "",
            refusal=refusal,
        )

    def _refused(self, job: protocol.Job, connection: ConnectionId, refusal: str) -> SupervisorEvent:
        self.jobs_refused += 1
        self._warn("source.job_refused", job_id=job.job_id or "", fence=job.fence_token, reason=refusal)
        return self._offered(job, connection, refusal=refusal)

    def _oversized(self, message: Oversized, connection: ConnectionId) -> list[SupervisorEvent]:
        refusal = (
            f"the job's message of {message.size_bytes} bytes exceeds this node's limit of "
            f"{self._limit_bytes} bytes: send a smaller payload, or have the queue pass it by URL"
        )
        found = protocol.decode_ends(message.head, message.tail, refusal)
        if isinstance(found, protocol.Ignored):
            return self._ignore(
                f"message of {message.size_bytes} bytes, limit {self._limit_bytes}: {found.reason}"
            )
        return [self._refused(found.job, connection, found.reason)]

    def _ignore(self, reason: str) -> list[SupervisorEvent]:
        self.frames_ignored += 1
        self._warn("source.frame_ignored", reason=reason[:_TEXT_MAX_CHARS], ignored=self.frames_ignored)
        return []

    def _warn(self, event: str, **facts: str | int) -> None:
        """Warn, but not at the pace of a peer that sends nothing but junk."""
        now_s = self._clock()
        last_s = self._warned_at_s.get(event)
        if last_s is None or now_s - last_s >= WARN_INTERVAL_S:
            self._warned_at_s[event] = now_s
            self._log.warning(event, **facts)
