"""One connection to a Casola queue, as far as it is written on: order, barriers, and an orderly close.

``register`` is first, whatever the core sent before it. Behind reports goes a ping; its pong proves that the
queue's stack has read them, which is the only acknowledgement there is.
"""

from __future__ import annotations

from collections import deque
from typing import assert_never

import structlog

from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.core.events import ConnectionId, ReportSeq, SupervisorEvent
from gpuward_supervisor.sources import casola_protocol as protocol
from gpuward_supervisor.sources.base import BodyStore, CasolaSettings
from gpuward_supervisor.sources.spooling import FileChunks
from gpuward_supervisor.sources.websocket_connection import Received, WebSocketConnection
from gpuward_supervisor.sources.websocket_frames import Pong

#: While more than this waits to be written, commands wait as commands: their bodies are not copied yet.
UNWRITTEN_MAX_BYTES = 4 * 1024 * 1024

#: Commands that become a message.
LinkCommand = (
    do.Register
    | do.Pause
    | do.Resume
    | do.AnnounceDrain
    | do.ReportResult
    | do.ReportResultRef
    | do.ReportError
    | do.ReportProgress
)


class LinkCounts:
    """What a source counts over all its connections."""

    def __init__(self) -> None:
        self.reports_written = 0
        self.commands_dropped = 0
        self.barriers_passed = 0


class CasolaLink:
    """One connection; used by the source's thread only."""

    def __init__(
        self,
        number: ConnectionId,
        websocket: WebSocketConnection,
        settings: CasolaSettings,
        bodies: BodyStore,
        counts: LinkCounts,
        now_s: float,
    ) -> None:
        """Take over a connection on which nothing was written yet.

        Args:
            number: the core's number of it.
            websocket: the connection; its own from now on.
            settings: who we are, and the times.
            bodies: where results come from.
            counts: added to.
            now_s: monotonic seconds.
        """
        self.number = number
        #: For the poller, which needs the number even after the socket is closed.
        self.descriptor = websocket.fileno()
        self.opened_at_s = now_s
        self._websocket = websocket
        self._settings = settings
        self._bodies = bodies
        self._counts = counts
        self._log = structlog.get_logger("gpuward").bind(source=settings.name)
        self._registered = False
        #: What may not be written yet: it came before ``register``, or waits behind a large backlog.
        self._held: deque[LinkCommand] = deque()
        self._written_seq = ReportSeq(0)
        self._delivered_seq = ReportSeq(0)
        #: The report that the barrier under way stands for, 0 when none is.
        self._barrier_seq = ReportSeq(0)
        self._barrier_at_s = now_s
        self._close_sent = False

    @property
    def lost(self) -> str:
        """Why the connection is gone; empty while it is open."""
        return self._websocket.lost

    @property
    def unread(self) -> bool:
        """More input may wait than a poll would tell."""
        return self._websocket.unread

    @property
    def wants_write(self) -> bool:
        """Output waits for the socket to become writable."""
        return self._websocket.wants_write

    @property
    def unwritten_bytes(self) -> int:
        """Bytes of output that the socket has not taken yet."""
        return self._websocket.unwritten_bytes

    @property
    def delivered(self) -> bool:
        """The queue has read at least one report."""
        return self._delivered_seq > 0

    def receive(self) -> list[Received]:
        """Read what is there."""
        return self._websocket.receive()

    def not_reading(self, now_s: float) -> None:
        """Say that ``receive`` was put off although something may wait."""
        self._websocket.not_reading(now_s)

    def send(self, command: LinkCommand) -> None:
        """Write a command, in the order of the calls; a first ``Register`` overtakes what came before it."""
        if self.lost:
            self._counts.commands_dropped += 1
            return
        if self._registered:
            may_write = not self._held and self._websocket.unwritten_bytes < UNWRITTEN_MAX_BYTES
        else:
            may_write = isinstance(command, do.Register)
        if may_write:
            self._encode(command)
        else:
            self._held.append(command)

    def write(self, now_s: float, *, hurry: bool) -> None:
        """Hand the socket what it takes, and do what is due.

        Args:
            now_s: monotonic seconds.
            hurry: raise the delivery barrier now and not at the end of its interval.
        """
        websocket = self._websocket
        if websocket.lost:
            return
        websocket.tick(now_s)
        while True:
            while self._held and self._registered and websocket.unwritten_bytes < UNWRITTEN_MAX_BYTES:
                self._encode(self._held.popleft())
            self._raise_barrier(now_s, hurry=hurry)
            websocket.flush()
            # A socket that took everything would not wake us for what is still held.
            if not self._held or not self._registered or websocket.wants_write or websocket.lost:
                return

    def next_deadline(self) -> float:
        """When ``write`` has something to do even if nothing happens, on the clock."""
        due_s = self._websocket.next_deadline()
        if self._written_seq > self._delivered_seq and not self._barrier_seq:
            due_s = min(due_s, self._barrier_at_s)
        return due_s

    def pong(self, pong: Pong) -> list[SupervisorEvent]:
        """Take the answer to a ping of ours."""
        if not self._barrier_seq or pong.payload != b"b%d" % self._barrier_seq:
            return []
        self._counts.barriers_passed += 1
        self._delivered_seq, self._barrier_seq = self._barrier_seq, ReportSeq(0)
        return [
            events.ReportsDelivered(
                source=self._settings.name, connection=self.number, seq=self._delivered_seq
            )
        ]

    def close_when_delivered(self, now_s: float, by_s: float) -> float:
        """Go on with closing: first everything must have been read, then the peer's close frame must come.

        Args:
            now_s: monotonic seconds.
            by_s: until when to wait for the step under way.

        Returns:
            Until when to wait from now on.
        """
        if self._close_sent:
            if now_s >= by_s:
                self.drop("the queue did not answer our close frame")
            return by_s
        owed = self._held or self._websocket.wants_write or self._written_seq > self._delivered_seq
        if owed and now_s < by_s:
            return by_s
        self._close_sent = True
        self._websocket.begin_close()
        return now_s + self._settings.close_timeout_s

    def drop(self, reason: str) -> None:
        """Close the socket at once."""
        self._websocket.drop(reason)

    def _encode(self, command: LinkCommand) -> None:
        websocket = self._websocket
        match command:
            case do.ReportResult():
                if not self._encode_result(command):
                    return
            case do.ReportProgress(job_id=job_id, fence=fence):
                progress, text = command.progress, command.status_message
                websocket.write(protocol.job_progress(job_id, fence, progress, text))
                return
            case do.ReportError(job_id=job_id, fence=fence, error=error):
                websocket.write(protocol.job_error(job_id, fence, error))
            case do.ReportResultRef(job_id=job_id, fence=fence):
                websocket.write(protocol.job_result_ref(job_id, fence))
            case do.Register(capacity=capacity):
                self._registered = True
                settings = self._settings
                websocket.write(protocol.register(settings.worker_id, settings.config_id, capacity))
                return
            case do.Pause():
                websocket.write(protocol.PAUSE)
                return
            case do.Resume():
                websocket.write(protocol.RESUME)
                return
            case do.AnnounceDrain():
                websocket.write(protocol.DRAIN)
                return
            case _:
                assert_never(command)
        self._counts.reports_written += 1
        self._written_seq = max(self._written_seq, command.seq)

    def _encode_result(self, command: do.ReportResult) -> bool:
        job_id, fence = command.job_id, command.fence
        body = self._bodies.get(command.body)
        if isinstance(body, bytes):
            self._websocket.write(protocol.job_result(job_id, fence, body))
            return True
        if body is None:
            # Revoked or superseded between the core's decision and this moment: nobody wants it any more.
            self._counts.commands_dropped += 1
            return False
        try:
            chunks = FileChunks(body)
        except OSError as error:
            self._log.error("source.result_unreadable", job_id=job_id, error=str(error))
            text = "the result was computed, but this node could not read it back from its disk"
            self._websocket.write(protocol.job_error(job_id, fence, text))
            return True
        before, after = protocol.result_ends(job_id, fence)
        self._websocket.write_long(before, chunks, body.size_bytes, after)
        return True

    def _raise_barrier(self, now_s: float, *, hurry: bool) -> None:
        """Ping right behind the last report, at most one at a time, and not for every single report."""
        if self._written_seq <= self._delivered_seq or self._barrier_seq:
            return
        if now_s < self._barrier_at_s and not hurry:
            return
        self._barrier_seq = self._written_seq
        self._barrier_at_s = now_s + self._settings.barrier_interval_s
        self._websocket.ping(b"b%d" % self._barrier_seq)
