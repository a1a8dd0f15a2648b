"""The outbox: durable in one transaction, in memory while the disk fails, whole again afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuward_ipc.types import Fence, JobId, SourceName
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events as e
from gpuward_supervisor.journal import Journal
from gpuward_supervisor.outbox import Outbox

CASOLA = SourceName("casola")


class Disk:
    """A state directory over several lives of a supervisor; ``full`` leaves no space for additions."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.open()

    def open(self, *, full: bool = False) -> None:
        self.journal = Journal.open(self.folder / "state", min_free_bytes=1 << 60 if full else 0)
        self.bodies = Bodies(self.folder / "state" / "transit")
        self.outbox = Outbox(self.journal, self.bodies)

    def reopen(self) -> list[e.SupervisorEvent]:
        self.journal.close()
        self.open()
        return self.outbox.recover()

    def remember(self, job: str, body: bytes | None, error: str = "") -> do.Remember:
        return do.Remember(
            source=CASOLA,
            job_id=JobId(job),
            fence=Fence(7),
            body=None if body is None else self.bodies.put(body),
            error=error,
            result_upload_url="http://q/put",
        )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path)
    yield disk
    disk.journal.close()


def forget(job: str) -> do.Unremember:
    return do.Unremember(source=CASOLA, job_id=JobId(job))


def recovered(disk: Disk) -> dict[str, tuple[bytes | None, str]]:
    found = {}
    for event in disk.reopen():
        assert isinstance(event, e.ResultRecovered)
        assert (event.source, event.fence, event.result_upload_url) == (CASOLA, 7, "http://q/put")
        body = None if event.body is None else disk.bodies.read(event.body)
        assert event.body_bytes == len(body or b"")
        found[str(event.job_id)] = (body, event.error)
    return found


def test_what_was_remembered_and_not_forgotten_is_recovered(disk: Disk) -> None:
    large = b'"' + b"x" * 400_000 + b'"'
    outcome = disk.outbox.write(
        [
            disk.remember("a", b"{}"),
            disk.remember("b", None, "it broke"),
            disk.remember("c", large),
            disk.remember("d", b"1"),
            forget("d"),
        ]
    )
    assert outcome == []
    assert recovered(disk) == {"a": (b"{}", ""), "b": (None, "it broke"), "c": (large, "")}


def test_commands_of_other_kinds_cost_nothing(disk: Disk) -> None:
    assert disk.outbox.write([do.Exit(code=0, reason="")]) == []
    assert recovered(disk) == {}


def test_results_that_lie_in_files_are_recovered(disk: Disk) -> None:
    path = disk.bodies.new_spool_path()
    path.write_bytes(b"[" + b"1," * 200_000 + b"1]")
    body = disk.bodies.put_file(path, path.stat().st_size)
    disk.outbox.write(
        [
            do.Remember(
                source=CASOLA, job_id=JobId("v"), fence=Fence(7), body=body, result_upload_url="http://q/put"
            )
        ]
    )
    expected = path.read_bytes()
    disk.bodies.forget(body)
    assert recovered(disk) == {"v": (expected, "")}


@pytest.fixture
def full(disk: Disk) -> Disk:
    disk.outbox.write([disk.remember("old", b"1")])
    disk.journal.close()
    disk.open(full=True)
    return disk


def test_a_full_disk_is_said_once_and_jobs_go_on(full: Disk) -> None:
    first = full.outbox.write([full.remember("a", b"{}")])
    assert len(first) == 1 and isinstance(first[0], e.JournalFailed)
    assert full.outbox.write([full.remember("b", b"{}")]) == []
    assert full.outbox.degraded
    assert full.outbox.retry() == []


def test_delivered_reports_are_forgotten_even_on_a_full_disk(full: Disk) -> None:
    full.outbox.write([full.remember("a", b"{}")])
    full.outbox.write([forget("old")])
    full.outbox.retry()
    assert recovered(full) == {}


def test_when_there_is_space_again_everything_is_written(full: Disk) -> None:
    full.outbox.write([full.remember("a", b"{}")])
    full.outbox.write([full.remember("b", b"[]"), full.remember("c", b"0")])
    full.outbox.write([forget("c")])
    full.journal._min_free_bytes = 0  # the disk gets space
    assert full.outbox.retry() == [e.JournalRestored()]
    assert not full.outbox.degraded
    assert recovered(full) == {"old": (b"1", ""), "a": (b"{}", ""), "b": (b"[]", "")}


def test_what_waited_for_the_disk_once_is_not_written_again_at_its_next_failure(full: Disk) -> None:
    full.outbox.write([full.remember("a", b"{}")])
    full.journal._min_free_bytes = 0
    assert full.outbox.retry() == [e.JournalRestored()]
    full.outbox.write([forget("a")])
    full.journal._min_free_bytes = 1 << 60
    (event,) = full.outbox.write([full.remember("b", b"[]")])
    assert isinstance(event, e.JournalFailed)
    full.journal._min_free_bytes = 0
    assert full.outbox.retry() == [e.JournalRestored()]
    assert recovered(full) == {"old": (b"1", ""), "b": (b"[]", "")}


def test_a_journal_that_cannot_be_opened_is_reported_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    journal = Journal.open(tmp_path / "file" / "state")
    outbox = Outbox(journal, Bodies(tmp_path / "transit"))
    (event,) = outbox.recover()
    assert isinstance(event, e.JournalFailed)
    assert outbox.degraded
    journal.close()
