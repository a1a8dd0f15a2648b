"""What happened to every job and every connection, in order: the evidence for "answered exactly once".

The ledger only counts and remembers; it decides nothing. It is bounded: per job, in jobs, in connection
entries. Counters are never cut.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from enum import StrEnum

import msgspec

from gpuward_devqueue.records import NO_CONNECTION, ConnectionId, JobId

ENTRIES_PER_JOB_MAX = 200
CONNECTION_ENTRIES_MAX = 10_000


class Note(StrEnum):
    """One kind of thing that can happen to a job."""

    SUBMITTED = "submitted"
    OFFERED = "offered"
    PROGRESSED = "progressed"
    COMPLETED = "completed"
    FAILED = "failed"
    #: A message with an older fence than the latest offer's: refused.
    STALE = "stale"
    #: A message with a fence never given out for this job (0, a later one): refused.
    WRONG_FENCE = "wrong_fence"
    #: A second answer with the fence of the accepted one: refused.
    DUPLICATE = "duplicate"
    #: An answer with the right fence after revocation or after the caller gave up: refused.
    LATE = "late"
    REVOKED = "revoked"
    LAPSED = "lapsed"
    TIMED_OUT = "timed_out"
    UPLOADED = "uploaded"
    UPLOAD_REFUSED = "upload_refused"
    UPLOAD_MISSING = "upload_missing"
    PAYLOAD_FETCHED = "payload_fetched"
    #: The connection holding the job went away before an answer came.
    ORPHANED = "orphaned"


class LinkNote(StrEnum):
    """One kind of thing that can happen to a connection."""

    CONNECTED = "connected"
    REFUSED = "refused"
    REGISTERED = "registered"
    PAUSED = "paused"
    RESUMED = "resumed"
    DRAINED = "drained"
    #: A frame that is not of the protocol; the detail says why.
    VIOLATED = "violated"
    #: A message about a job this queue does not hold.
    UNKNOWN_JOB = "unknown_job"
    MISBEHAVED = "misbehaved"
    CLOSED = "closed"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened to a job; ``at_s`` is the queue's monotonic clock."""

    at_s: float
    note: Note
    fence: int = 0
    connection: ConnectionId = NO_CONNECTION
    worker_id: str = ""
    detail: str = ""


class LinkEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing that happened to a connection."""

    at_s: float
    connection: ConnectionId
    note: LinkNote
    worker_id: str = ""
    #: Slots of a registration.
    capacity: int = 0
    #: Close code or HTTP status.
    code: int = 0
    detail: str = ""


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Totals since the queue was started."""

    submitted: int = 0
    offered: int = 0
    progressed: int = 0
    #: Jobs that got an answer, result or error: each counts once.
    answered: int = 0
    completed: int = 0
    failed: int = 0
    #: Refused: repeated answers with the accepted fence.
    duplicates: int = 0
    #: Refused: messages with an older fence.
    stale: int = 0
    wrong_fence: int = 0
    #: Refused: right fence, but revoked or given up.
    late: int = 0
    revoked: int = 0
    lapsed: int = 0
    timed_out: int = 0
    #: Transient jobs that were offered to a worker and never answered.
    lost: int = 0
    orphaned: int = 0
    uploaded: int = 0
    upload_refused: int = 0
    upload_missing: int = 0
    payload_fetched: int = 0
    registered: int = 0
    connected: int = 0
    refused: int = 0
    closed: int = 0
    violations: int = 0
    unknown_jobs: int = 0
    misbehaved: int = 0
    #: Jobs that have not ended: pending or running.
    open: int = 0


class LedgerReport(msgspec.Struct, frozen=True, kw_only=True):
    """A copy of the ledger, newest jobs first."""

    counters: Counters
    jobs: dict[JobId, list[Entry]]
    connections: list[LinkEntry]
    #: Entries not kept because a job had too many.
    entries_dropped: int = 0


class Ledger:
    """Collects entries; every method is O(1).

    Args:
        jobs_max: how many jobs keep their entries; the oldest lose them first.
    """

    def __init__(self, jobs_max: int = 100_000) -> None:
        self._jobs_max = jobs_max
        self._jobs: OrderedDict[JobId, list[Entry]] = OrderedDict()
        self._links: deque[LinkEntry] = deque(maxlen=CONNECTION_ENTRIES_MAX)
        self._notes: Counter[Note] = Counter()
        self._link_notes: Counter[LinkNote] = Counter()
        self._lost = 0
        self._dropped = 0

    def note(
        self,
        at_s: float,
        job_id: JobId,
        note: Note,
        *,
        fence: int = 0,
        connection: ConnectionId = NO_CONNECTION,
        worker_id: str = "",
        detail: str = "",
    ) -> None:
        """Write one line into a job's page."""
        self._notes[note] += 1
        page = self._jobs.get(job_id)
        if page is None:
            page = self._jobs[job_id] = []
            if len(self._jobs) > self._jobs_max:
                self._jobs.popitem(last=False)
        if len(page) >= ENTRIES_PER_JOB_MAX:
            self._dropped += 1
            return
        page.append(Entry(at_s, note, fence, connection, worker_id, detail))

    def note_lost(self) -> None:
        """Count a transient job that a worker had and never answered."""
        self._lost += 1

    def note_link(
        self,
        at_s: float,
        connection: ConnectionId,
        note: LinkNote,
        *,
        worker_id: str = "",
        capacity: int = 0,
        code: int = 0,
        detail: str = "",
    ) -> None:
        """Write one line about a connection."""
        self._link_notes[note] += 1
        self._links.append(LinkEntry(at_s, connection, note, worker_id, capacity, code, detail))

    def page(self, job_id: JobId) -> list[Entry]:
        """Return what happened to one job, oldest first; empty when nothing is known."""
        return list(self._jobs.get(job_id, ()))

    def counters(self, *, still_open: int) -> Counters:
        """Return the totals; the caller knows how many jobs are still open."""
        notes, links = self._notes, self._link_notes
        return Counters(
            submitted=notes[Note.SUBMITTED],
            offered=notes[Note.OFFERED],
            progressed=notes[Note.PROGRESSED],
            answered=notes[Note.COMPLETED] + notes[Note.FAILED],
            completed=notes[Note.COMPLETED],
            failed=notes[Note.FAILED],
            duplicates=notes[Note.DUPLICATE],
            stale=notes[Note.STALE],
            wrong_fence=notes[Note.WRONG_FENCE],
            late=notes[Note.LATE],
            revoked=notes[Note.REVOKED],
            lapsed=notes[Note.LAPSED],
            timed_out=notes[Note.TIMED_OUT],
            lost=self._lost,
            orphaned=notes[Note.ORPHANED],
            uploaded=notes[Note.UPLOADED],
            upload_refused=notes[Note.UPLOAD_REFUSED],
            upload_missing=notes[Note.UPLOAD_MISSING],
            payload_fetched=notes[Note.PAYLOAD_FETCHED],
            registered=links[LinkNote.REGISTERED],
            connected=links[LinkNote.CONNECTED],
            refused=links[LinkNote.REFUSED],
            closed=links[LinkNote.CLOSED],
            violations=links[LinkNote.VIOLATED],
            unknown_jobs=links[LinkNote.UNKNOWN_JOB],
            misbehaved=links[LinkNote.MISBEHAVED],
            open=still_open,
        )

    def report(self, *, still_open: int, jobs_max: int | None = None) -> LedgerReport:
        """Return a copy of everything, or of the newest ``jobs_max`` jobs."""
        wanted = len(self._jobs) if jobs_max is None else jobs_max
        newest = [job_id for job_id, _ in zip(reversed(self._jobs), range(wanted), strict=False)]
        return LedgerReport(
            counters=self.counters(still_open=still_open),
            jobs={job_id: list(self._jobs[job_id]) for job_id in newest},
            connections=list(self._links),
            entries_dropped=self._dropped,
        )
