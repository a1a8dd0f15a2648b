"""The outbox between core and journal: one transaction a turn, and memory alone while the disk fails.

A full or broken disk never stops jobs: changes then wait here, keyed by job, and are written as soon as
the journal takes them again. What would be lost by a crash in the meantime is said loudly by the core.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import structlog

from gpuward_ipc.types import JobId, SourceName
from gpuward_supervisor.bodies import Bodies, SpoolFile
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.journal import Delete, Journal, JournalError, OwedRecord, Put

#: How often a failed journal is tried again, in seconds.
RETRY_S = 1.0

_CONSEQUENCE = "results are kept in memory only until the journal can be written again"


class Outbox:
    """Writes ``Remember`` and ``Unremember``; owned by the loop."""

    def __init__(self, journal: Journal, bodies: Bodies) -> None:
        self._journal = journal
        self._bodies = bodies
        #: Changes that could not be written, the newest per job; empty while the journal works.
        self._waiting: dict[tuple[SourceName, JobId], do.Remember | do.Unremember] = {}
        self._failed = journal.failure is not None
        self._log = structlog.get_logger("gpuward")

    @property
    def degraded(self) -> bool:
        """True while results are kept in memory only."""
        return self._failed

    def recover(self) -> list[events.SupervisorEvent]:
        """Return the reports still owed from an earlier life, oldest first, and the journal's health."""
        recovered: list[events.SupervisorEvent] = []
        if self._journal.failure is not None:
            self._log.error("journal.failed", error=str(self._journal.failure), consequence=_CONSEQUENCE)
            recovered.append(events.JournalFailed(error=str(self._journal.failure)))
        try:
            records = list(self._journal.owed())
        except JournalError as error:
            self._log.error("journal.unreadable", error=str(error))
            return recovered
        return recovered + [self._recovered(record) for record in records]

    def _recovered(self, record: OwedRecord) -> events.ResultRecovered:
        body: events.BodyId | None = None
        size, error = 0, record.error
        if record.body is not None and not error:
            body, size = self._bodies.put(record.body), len(record.body)
        elif record.spool is not None and not error:
            try:
                # The journal keeps its own file until the report is delivered; this is a second name of it.
                body, size = self._bodies.link_file(record.spool, record.spool_bytes), record.spool_bytes
            except OSError as failure:
                error = "the result was computed but its body cannot be read any more"
                self._log.error("journal.body_lost", job_id=record.job_id, error=str(failure))
        return events.ResultRecovered(
            source=record.source,
            job_id=record.job_id,
            fence=record.fence,
            body=body,
            body_bytes=size,
            error=error,
            result_upload_url=record.result_upload_url,
        )

    def write(self, decided: Sequence[do.SupervisorCommand]) -> list[events.SupervisorEvent]:
        """Write what the commands ask for in one transaction; returns what came of it."""
        changes = [c for c in decided if type(c) is do.Remember or type(c) is do.Unremember]
        if not changes:
            return []
        if self._failed:
            self._defer(changes)
            return []
        try:
            self._journal.apply([self._change(change) for change in changes])
        except (JournalError, OSError) as error:
            self._failed = True
            self._defer(changes)
            self._log.error(
                "journal.failed",
                error=str(error),
                consequence=_CONSEQUENCE,
            )
            return [events.JournalFailed(error=str(error))]
        return []

    def retry(self) -> list[events.SupervisorEvent]:
        """Try to write what waits; call every ``RETRY_S`` while ``degraded``."""
        if not self._failed:
            return []
        try:
            if not self._journal.probe():
                self._write_deletions()
                return []
            self._journal.apply([self._change(change) for change in self._waiting.values()])
        except (JournalError, OSError):
            return []
        self._log.warning("journal.restored", written=len(self._waiting))
        self._waiting.clear()
        self._failed = False
        return [events.JournalRestored()]

    def _write_deletions(self) -> None:
        """Delivered reports are forgotten even while nothing can be added: the reserve is there for that."""
        gone = {key: change for key, change in self._waiting.items() if isinstance(change, do.Unremember)}
        if gone:
            self._journal.apply([self._change(change) for change in gone.values()])
            for key in gone:
                del self._waiting[key]

    def _defer(self, changes: Iterable[do.Remember | do.Unremember]) -> None:
        for change in changes:
            self._waiting[(change.source, change.job_id)] = change

    def _change(self, change: do.Remember | do.Unremember) -> Put | Delete:
        if isinstance(change, do.Unremember):
            return Delete(source=change.source, job_id=change.job_id)
        body = None if change.body is None else self._bodies.get(change.body)
        return Put(
            source=change.source,
            job_id=change.job_id,
            fence=change.fence,
            body=body if isinstance(body, bytes) else None,
            body_path=body.path if isinstance(body, SpoolFile) else None,
            error=change.error,
            result_upload_url=change.result_upload_url,
        )
