from __future__ import annotations

from gpuward_devqueue.ledger import (
    CONNECTION_ENTRIES_MAX,
    ENTRIES_PER_JOB_MAX,
    Entry,
    Ledger,
    LinkNote,
    Note,
)
from gpuward_devqueue.records import ConnectionId, JobId

JOB = JobId("j")


def test_a_page_tells_the_story_of_a_job_in_order() -> None:
    ledger = Ledger()
    ledger.note(1.0, JOB, Note.SUBMITTED)
    ledger.note(2.0, JOB, Note.OFFERED, fence=1, connection=ConnectionId(3), worker_id="w")
    assert ledger.page(JOB) == [
        Entry(1.0, Note.SUBMITTED),
        Entry(2.0, Note.OFFERED, 1, ConnectionId(3), "w"),
    ]
    assert ledger.page(JobId("other")) == []


def test_results_and_errors_both_count_as_answers() -> None:
    ledger = Ledger()
    ledger.note(1.0, JOB, Note.COMPLETED)
    ledger.note(1.0, JobId("k"), Note.FAILED)
    counters = ledger.counters(still_open=7)
    assert (counters.answered, counters.completed, counters.failed, counters.open) == (2, 1, 1, 7)


def test_a_long_story_is_cut_but_still_counted() -> None:
    ledger = Ledger()
    for _ in range(ENTRIES_PER_JOB_MAX + 5):
        ledger.note(1.0, JOB, Note.PROGRESSED)
    report = ledger.report(still_open=0)
    assert len(report.jobs[JOB]) == ENTRIES_PER_JOB_MAX
    assert report.entries_dropped == 5
    assert report.counters.progressed == ENTRIES_PER_JOB_MAX + 5


def test_the_oldest_jobs_lose_their_pages_first() -> None:
    ledger = Ledger(jobs_max=2)
    for name in ("a", "b", "c"):
        ledger.note(1.0, JobId(name), Note.SUBMITTED)
    assert list(ledger.report(still_open=0).jobs) == ["c", "b"]
    assert ledger.counters(still_open=0).submitted == 3


def test_a_report_can_be_limited_to_the_newest_jobs() -> None:
    ledger = Ledger()
    for name in ("a", "b", "c"):
        ledger.note(1.0, JobId(name), Note.SUBMITTED)
    assert list(ledger.report(still_open=0, jobs_max=1).jobs) == ["c"]


def test_connections_are_remembered_in_order_and_bounded() -> None:
    ledger = Ledger()
    for number in range(CONNECTION_ENTRIES_MAX + 1):
        ledger.note_link(1.0, ConnectionId(number), LinkNote.CONNECTED)
    kept = ledger.report(still_open=0).connections
    assert (kept[0].connection, kept[-1].connection) == (1, CONNECTION_ENTRIES_MAX)
    assert ledger.counters(still_open=0).connected == CONNECTION_ENTRIES_MAX + 1
