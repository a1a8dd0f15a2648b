"""The Casola source: one thread that owns the one connection to a Casola queue, and what is written on it.

It connects, and connects again. It decides nothing about jobs, and keeps nothing over a reconnect: what was
not known to be delivered, the core sends again.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Callable
from typing import assert_never

import structlog

from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.core.events import ConnectionId, SupervisorEvent
from gpuward_supervisor.mailbox import Mailbox
from gpuward_supervisor.secrets import without_credentials
from gpuward_supervisor.sources.backoff import Backoff
from gpuward_supervisor.sources.base import (
    BodyStore,
    CasolaSettings,
    Post,
    PostAll,
    SourceCommand,
    SourceSnapshot,
    SourceState,
)
from gpuward_supervisor.sources.casola_intake import Intake
from gpuward_supervisor.sources.casola_link import CasolaLink, LinkCounts
from gpuward_supervisor.sources.transfers import Transfers
from gpuward_supervisor.sources.websocket_connection import WebSocketConnection
from gpuward_supervisor.sources.websocket_dial import Dial, DialFailed
from gpuward_supervisor.sources.websocket_frames import Pong

_AUTH_STATUSES = frozenset({401, 403})
_NEVER_S = float("inf")
#: While this many events wait for the loop nothing is read from the queue, so that a flood waits on the
#: queue's side. The loop takes less than a second for as many.
BACKLOG_MAX = 4096
#: How long at most to wait with reading before the backlog is looked at again.
_BACKLOG_LOOK_S = 0.02


class CasolaSource:
    """A connection to a Casola queue, kept up until it is told to close."""

    def __init__(
        self,
        settings: CasolaSettings,
        bodies: BodyStore,
        post: Post,
        post_all: PostAll | None = None,
        clock: Callable[[], float] = time.monotonic,
        backlog: Callable[[], int] = lambda: 0,
    ) -> None:
        """Build it; ``start`` begins.

        Args:
            settings: where to connect and as whom.
            bodies: where payloads go and results come from.
            post: takes one event to the loop; called on this source's threads.
            post_all: takes several at once; ``post`` one by one when None.
            clock: monotonic seconds.
            backlog: how many events were posted and not taken by the loop yet; any thread.
        """
        self._settings = settings
        self._name = settings.name
        self._bodies = bodies
        self._post = post
        self._post_all = post_all
        self._clock = clock
        self._backlog = backlog
        #: Nothing is read until the loop has caught up.
        self._flooded = False
        self._url = settings.url.rstrip("/") + "/ws"
        self._mailbox: Mailbox[SourceCommand | Dial] = Mailbox()
        self._poller = select.poll()
        self._transfers = Transfers(settings.transfers, bodies, post)
        self._thread = threading.Thread(target=self._run, name=f"source-{self._name}", daemon=True)
        self._intake = Intake(settings, bodies, clock)
        self._log = structlog.get_logger("gpuward").bind(source=self._name)
        #: Events of this turn that were not posted yet.
        self._happened: list[SupervisorEvent] = []

        self._state = SourceState.WAITING
        self._backoff = Backoff(
            first_s=settings.backoff_first_s, max_s=settings.backoff_max_s, jitter=settings.backoff_jitter
        )
        self._dial: Dial | None = None
        #: When to dial next while waiting; when to give the dial up while dialling.
        self._dial_at_s = 0.0
        self._link: CasolaLink | None = None
        self._poll_mask = select.POLLIN
        self._jobs_before = 0
        self._connections = 0
        #: Set by ``CloseSource``: when to stop waiting for the last reports; then for the peer's close frame.
        self._close_by_s = _NEVER_S

        self._connect_failures = 0
        self._auth_refused = False
        self._auth_refusals = 0
        self._counts = LinkCounts()
        self._last_error = ""

    # ---------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Begin to connect."""
        self._thread.start()

    def send(self, command: SourceCommand) -> None:
        """Hand a command over; any thread, never blocks."""
        self._mailbox.post(command)

    def join(self, timeout_s: float) -> bool:
        """Wait for the end that ``CloseSource`` brings; whether it came within ``timeout_s`` seconds.

        After True no command may be sent any more.
        """
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            return False
        # Here and not on the thread: a sender that is just posting would write to a descriptor that may
        # belong to somebody else by now.
        self._mailbox.close()
        return True

    def snapshot(self) -> SourceSnapshot:
        """Counters and state; any thread."""
        link = self._link
        return SourceSnapshot(
            source=self._name,
            state=self._state,
            connection=self._connections,
            connect_failures=self._connect_failures,
            auth_refused=self._auth_refused,
            auth_refusals=self._auth_refusals,
            jobs_received=self._intake.jobs_received,
            jobs_refused=self._intake.jobs_refused,
            frames_ignored=self._intake.frames_ignored,
            reports_written=self._counts.reports_written,
            commands_dropped=self._counts.commands_dropped,
            barriers_passed=self._counts.barriers_passed,
            unwritten_bytes=0 if link is None else link.unwritten_bytes,
            transfers_running=self._transfers.running,
            last_error=self._last_error,
        )

    # ---------------------------------------------------------------- the thread

    def _run(self) -> None:
        try:
            self._poller.register(self._mailbox.fileno(), select.POLLIN)
            while self._state is not SourceState.ENDED:
                ready = self._poller.poll(self._timeout_ms())
                self._turn({descriptor for descriptor, _ in ready})
        except Exception as error:  # noqa: BLE001 - the thread's border: a bug must reach the core
            self._log.exception("source.failed")
            self._state = SourceState.ENDED
            if self._link is not None:
                self._link.drop("failed")
            if self._dial is not None:
                self._dial.abandon()
            self._post(events.SourceFailed(source=self._name, error=f"{type(error).__name__}: {error}"))
        finally:
            self._transfers.abandon_all()

    def _timeout_ms(self) -> int:
        link = self._link
        if link is not None and link.unread and not self._flooded:
            return 0
        due_s = min(self._close_by_s, self._dial_at_s if link is None else link.next_deadline())
        if self._flooded:
            due_s = min(due_s, self._clock() + _BACKLOG_LOOK_S)
        # Rounded up: waking a fraction early would spin until the deadline.
        return max(0, int((due_s - self._clock()) * 1000) + 1)

    def _turn(self, ready: set[int]) -> None:
        """One turn: what came in goes to the core at once, then what the core wants goes out."""
        link = self._link
        self._flooded = self._backlog() >= BACKLOG_MAX
        if link is not None and (link.descriptor in ready or link.unread) and not self._flooded:
            self._read(link)
            self._deliver()
        for command in self._mailbox.take():
            self._take(command)
        now_s = self._clock()
        if self._link is not None:
            if self._flooded:
                self._link.not_reading(now_s)
            self._write(self._link, now_s)
        elif self._close_by_s < _NEVER_S:
            self._end()
        elif now_s >= self._dial_at_s:
            self._dial_due(now_s)
        self._deliver()

    def _deliver(self) -> None:
        happened = self._happened
        if not happened:
            return
        self._happened = []
        if self._post_all is not None:
            self._post_all(happened)
        else:
            for event in happened:
                self._post(event)

    # ---------------------------------------------------------------- connecting

    def _dial_due(self, now_s: float) -> None:
        if self._dial is not None:
            # Each step of the library has a bound of its own; this bounds their sum.
            self._dial.abandon()
            self._dial = None
            self._failed(DialFailed(f"no WebSocket within {self._settings.open_timeout_s:g} s"), now_s)
            return
        self._state = SourceState.DIALLING
        timeout_s = self._settings.open_timeout_s
        self._dial = Dial(self._url, self._settings.token.reveal(), timeout_s, self._mailbox.post)
        self._dial_at_s = now_s + timeout_s
        self._dial.start()

    def _dialled(self, dial: Dial) -> None:
        outcome = dial.outcome
        if dial is not self._dial:
            # It was given up while its outcome lay in the mailbox.
            if isinstance(outcome, socket.socket):
                outcome.close()
            return
        self._dial = None
        now_s = self._clock()
        if isinstance(outcome, DialFailed):
            self._failed(outcome, now_s)
            return
        if self._close_by_s < _NEVER_S:
            outcome.close()
            return
        settings = self._settings
        websocket = WebSocketConnection(
            outcome,
            message_max_bytes=settings.inbound_max_bytes,
            ping_interval_s=settings.ping_interval_s,
            pong_timeout_s=settings.pong_timeout_s,
            clock=self._clock,
        )
        self._connections += 1
        number = ConnectionId(self._connections)
        self._link = link = CasolaLink(number, websocket, settings, self._bodies, self._counts, now_s)
        self._jobs_before = self._intake.jobs_received
        self._poll_mask = select.POLLIN
        self._poller.register(link.descriptor, self._poll_mask)
        self._state = SourceState.OPEN
        self._auth_refused = False
        self._log.info("source.connected", connection=link.number, url=without_credentials(self._url))
        self._happened.append(events.SourceConnected(source=self._name, connection=link.number))

    def _failed(self, failure: DialFailed, now_s: float) -> None:
        self._connect_failures += 1
        self._last_error = failure.error
        self._auth_refused = failure.status in _AUTH_STATUSES
        self._auth_refusals += self._auth_refused
        # A refused token backs off like any failure: operators mend tokens on the queue's side, too.
        retry_in_s = self._backoff.next_s()
        self._wait(now_s, retry_in_s)
        facts = {
            "url": without_credentials(self._url),
            "error": failure.error,
            "retry_in_s": round(retry_in_s, 2),
        }
        if self._auth_refused:
            hint = "the token is missing, wrong or lacks rights: check CASOLA_API_TOKEN"
            self._log.error("source.auth_refused", status=failure.status, hint=hint, **facts)
        else:
            self._log.warning("source.connect_failed", **facts)

    def _lost(self, link: CasolaLink, now_s: float) -> None:
        reason = link.lost
        self._last_error = reason
        self._link = None
        self._poller.unregister(link.descriptor)
        lived_s = round(now_s - link.opened_at_s, 1)
        if self._close_by_s < _NEVER_S:
            self._log.info("source.closed", connection=link.number, reason=reason, lived_s=lived_s)
            self._end()
            return
        worked = self._intake.jobs_received > self._jobs_before and link.delivered
        if worked or now_s - link.opened_at_s >= self._settings.proven_after_s:
            # The queue accepts us: an open connection alone does not say so.
            self._backoff.reset()
        retry_in_s = self._backoff.next_s()
        self._wait(now_s, retry_in_s)
        self._happened.append(
            events.SourceDisconnected(source=self._name, connection=link.number, reason=reason)
        )
        self._log.warning(
            "source.disconnected",
            connection=link.number,
            reason=reason,
            lived_s=lived_s,
            retry_in_s=round(retry_in_s, 2),
        )

    def _wait(self, now_s: float, delay_s: float) -> None:
        self._state = SourceState.WAITING
        self._dial_at_s = now_s + delay_s

    def _end(self) -> None:
        if self._dial is not None:
            self._dial.abandon()
            self._dial = None
        self._state = SourceState.ENDED
        self._happened.append(events.SourceClosed(source=self._name))

    def _read(self, link: CasolaLink) -> None:
        for received in link.receive():
            if isinstance(received, Pong):
                self._happened += link.pong(received)
            else:
                self._happened += self._intake.take(received, link.number)

    def _take(self, command: SourceCommand | Dial) -> None:
        match command:
            case (
                do.ReportResult()
                | do.ReportProgress()
                | do.ReportError()
                | do.ReportResultRef()
                | do.Register()
                | do.Pause()
                | do.Resume()
                | do.AnnounceDrain()
            ):
                link = self._link
                if link is None or command.connection != link.number:
                    # The core learns of the loss by an event and sends again what is still owed.
                    self._counts.commands_dropped += 1
                else:
                    link.send(command)
            case do.FetchPayload() | do.UploadResult():
                self._transfers.begin(command)
            case do.AbandonTransfer(job_id=job_id, fence=fence):
                self._transfers.abandon(job_id, fence)
            case do.CloseSource(within_s=within_s):
                self._close_by_s = min(self._close_by_s, self._clock() + within_s)
                if self._link is not None:
                    self._state = SourceState.CLOSING
            case Dial():
                self._dialled(command)
            case _:
                assert_never(command)

    def _write(self, link: CasolaLink, now_s: float) -> None:
        closing = self._close_by_s < _NEVER_S
        link.write(now_s, hurry=closing)
        if closing:
            self._close_by_s = link.close_when_delivered(now_s, self._close_by_s)
            link.write(now_s, hurry=closing)
        if link.lost:
            self._lost(link, now_s)
            return
        wanted = (0 if self._flooded else select.POLLIN) | (select.POLLOUT if link.wants_write else 0)
        if wanted != self._poll_mask:
            self._poll_mask = wanted
            self._poller.modify(link.descriptor, wanted)
