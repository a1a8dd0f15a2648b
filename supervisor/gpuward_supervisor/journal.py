"""The durable outbox: which reports are still owed to which source, in SQLite, with large bodies as files.

It knows nothing of jobs beyond their key; what is written here survives the death of the supervisor, not of
the host (``synchronous=NORMAL``: after a power loss the queue's lease is the backstop, and an fsync per turn
would stall the loop for up to seconds).

``<state_dir>/``: ``lock`` (held while a supervisor or its guardian lives), ``outbox.db`` and its WAL,
``spool/`` (bodies above 256 KiB), ``reserve`` (space that is given up when the disk is full, so that the
deletion of delivered reports still fits), ``outbox.corrupt-<time>/`` (what could not be read any more).

Long because opening, writing and failing share the connection, the reserve and the rule that a body's file
outlives every transaction that still needs it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import assert_never

import msgspec
import structlog

from gpuward_ipc.types import Fence, JobId, SourceName
from gpuward_supervisor.errors import GpuwardError
from gpuward_supervisor.spool import Spool

SCHEMA_VERSION = 1
#: Bodies above this lie in a file of their own, in bytes: SQLite would write them twice (WAL and database).
SPOOL_ABOVE_BYTES = 256 * 1024
#: Size of the ``reserve`` file, in bytes: SQLite's WAL stays below this between two checkpoints.
RESERVE_BYTES = 4 * 1024 * 1024
#: Free space below which nothing is added, in bytes: a full disk hurts more than this program.
MIN_FREE_BYTES = 8 * 1024 * 1024

_LOCK_RETRY_S = 0.05

_SCHEMA = """
CREATE TABLE IF NOT EXISTS owed (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    source TEXT NOT NULL,
    job_id TEXT NOT NULL,
    fence TEXT NOT NULL,        -- text, because a queue's integers may exceed 64 bits
    body BLOB,
    spool TEXT,                 -- file name inside spool/, for bodies above 256 KiB
    body_bytes INTEGER NOT NULL,
    body_crc INTEGER NOT NULL,
    error TEXT NOT NULL,
    result_upload_url TEXT NOT NULL,
    UNIQUE (source, job_id)
);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_PUT = (
    "INSERT OR REPLACE INTO owed (source, job_id, fence, body, spool, body_bytes, body_crc, error, "
    "result_upload_url) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_DELETE = "DELETE FROM owed WHERE source = ? AND job_id = ?"

_Key = tuple[str, str]
_Row = tuple[str, str, str, bytes | None, str | None, int, int, str, str]


class JournalTrouble(StrEnum):
    """Why the journal cannot be written."""

    #: No space left, or less than is to stay free.
    FULL = "full"
    #: Read-only, forbidden or missing place.
    UNWRITABLE = "unwritable"
    #: The database does not answer as one should.
    BROKEN = "broken"


class JournalError(GpuwardError):
    """A change could not be made durable; nothing of it was kept, and it may be applied again later."""

    def __init__(self, text: str, trouble: JournalTrouble = JournalTrouble.BROKEN) -> None:
        super().__init__(text)
        #: What kind of trouble.
        self.trouble = trouble


class JournalLocked(JournalError):
    """Another supervisor lives on the same state directory."""


class JournalFromTheFuture(JournalError):
    """The database was written by a newer version, which alone knows how to read it."""


class Put(msgspec.Struct, frozen=True, kw_only=True):
    """Make a report durable; replaces an earlier one of the same source and job."""

    source: SourceName
    job_id: JobId
    fence: Fence
    #: Result in memory.
    body: bytes | None = None
    #: Result in a file, which stays the caller's; must not change any more.
    body_path: Path | None = None
    #: Text of an error report; empty for a result.
    error: str = ""
    result_upload_url: str = ""


class Delete(msgspec.Struct, frozen=True, kw_only=True):
    """Forget a report."""

    source: SourceName
    job_id: JobId


class OwedRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A report that an earlier supervisor still owed."""

    source: SourceName
    job_id: JobId
    fence: Fence
    #: Result, where it is small.
    body: bytes | None
    #: File of the result, where it is large; stays the journal's own until the record is deleted.
    spool: Path | None
    #: Size of that file in bytes; 0 without one.
    spool_bytes: int
    #: Text of an error report; empty for a result.
    error: str
    result_upload_url: str


class Journal:
    """The outbox of one state directory; one thread uses it, once per turn of its loop."""

    def __init__(self, state_dir: Path, *, min_free_bytes: int, lock_fd: int | None) -> None:
        """Use ``Journal.open``."""
        self._dir = state_dir
        self._spool = Spool(state_dir / "spool")
        self._database = state_dir / "outbox.db"
        self._reserve = state_dir / "reserve"
        self._min_free_bytes = min_free_bytes
        self._connection: sqlite3.Connection | None = None
        #: Spool file of each record that has one.
        self._spooled: dict[_Key, str] = {}
        self._log = structlog.get_logger("gpuward")
        #: Descriptor of the held lock, for the guardian to inherit: the lock then lasts until it is done.
        self.lock_fd = lock_fd
        #: Why the last write failed; None while the journal works.
        self.failure: JournalError | None = None
        #: Where an unreadable database was moved to, None when there was none.
        self.moved_aside: Path | None = None

    # ------------------------------------------------------------ opening

    @classmethod
    def open(
        cls, state_dir: Path, *, min_free_bytes: int = MIN_FREE_BYTES, lock_wait_s: float = 5.0
    ) -> Journal:
        """Open the journal of a state directory, making what is missing.

        A place that cannot be written (read-only, full) is no reason to refuse work: the journal is returned
        with ``failure`` set, ``apply`` raises, and ``probe`` tries again.

        Args:
            state_dir: private folder on a local file system; made with mode 0700 if it is missing.
            min_free_bytes: space that is to stay free on that file system.
            lock_wait_s: how long the guardian of a supervisor that was just killed may take, in seconds.

        Raises:
            JournalLocked: another supervisor uses the directory.
            JournalFromTheFuture: a newer version wrote the database.
        """
        lock_fd = None
        trouble: JournalError | None = None
        try:
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock_fd = _lock(state_dir / "lock", lock_wait_s)
        except OSError as error:
            trouble = _of_os(error, state_dir)
        journal = cls(state_dir, min_free_bytes=min_free_bytes, lock_fd=lock_fd)
        try:
            if trouble is not None:
                raise trouble
            journal._start()
        except (JournalLocked, JournalFromTheFuture):
            journal.close()
            raise
        except JournalError as error:
            journal.failure = error
            journal._log.error("journal.unwritable", trouble=error.trouble, error=str(error))
        return journal

    def _start(self) -> None:
        """Open the database, refill the reserve, remove bodies that belong to no record."""
        try:
            self._spool.make()
            self._connection = self._connect()
            self._take_stock()
            self._fill_reserve()
        except OSError as error:
            raise _of_os(error, self._dir) from error
        except sqlite3.Error as error:
            raise _of_sqlite(error, self._database) from error

    def _connect(self) -> sqlite3.Connection:
        try:
            return self._open_database()
        except JournalFromTheFuture:
            raise
        except sqlite3.DatabaseError as error:
            if _primary(error) not in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}:
                raise
            self._move_aside(str(error))
            return self._open_database()

    def _open_database(self) -> sqlite3.Connection:
        # SQLite would make it with the umask's mode; its WAL takes the mode of the database.
        os.close(os.open(self._database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        connection = sqlite3.connect(self._database, isolation_level=None, timeout=1.0)
        try:
            # Exclusive: no -shm file, whose mapping turns a full disk into a SIGBUS.
            connection.execute("PRAGMA locking_mode=EXCLUSIVE")
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=NORMAL")
            connection.execute("PRAGMA temp_store=MEMORY")
            if connection.execute("PRAGMA quick_check(1)").fetchone()[0] != "ok":
                damaged = sqlite3.DatabaseError("database fails its integrity check")
                damaged.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
                raise damaged
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA_VERSION:
                raise JournalFromTheFuture(
                    f"{self._database} has schema version {version}, this gpuward knows {SCHEMA_VERSION}: "
                    "start the newer version again and let it drain, or give node.state_dir another folder"
                )
            connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;")
        except BaseException:
            connection.close()
            raise
        return connection

    def _move_aside(self, reason: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self._dir / f"outbox.corrupt-{stamp}-{secrets.token_hex(2)}"
        aside.mkdir(mode=0o700)
        for name in ("outbox.db", "outbox.db-wal", "outbox.db-shm", "spool"):
            with suppress(FileNotFoundError):
                os.rename(self._dir / name, aside / name)
        self._spool.make()
        self.moved_aside = aside
        self._log.error(
            "journal.corrupt",
            reason=reason,
            moved_to=str(aside),
            consequence="reports that an earlier supervisor still owed are lost; the journal starts empty",
        )

    def _take_stock(self) -> None:
        assert self._connection is not None
        rows = self._connection.execute("SELECT source, job_id, spool FROM owed WHERE spool IS NOT NULL")
        self._spooled = {(source, job_id): name for source, job_id, name in rows}
        self._spool.keep_only(set(self._spooled.values()))

    # ------------------------------------------------------------ reading

    def owed(self) -> Iterator[OwedRecord]:
        """Reports that an earlier supervisor still owed, oldest first.

        A result whose body was lost or damaged (a power cut) comes as an error report: its job ends with an
        explanation instead of never.

        Raises:
            JournalError: the database cannot be read.
        """
        if self._connection is None:
            return
        try:
            rows = self._connection.execute(
                "SELECT source, job_id, fence, body, spool, body_bytes, body_crc, error, result_upload_url "
                "FROM owed ORDER BY seq"
            ).fetchall()
        except sqlite3.Error as error:
            raise _of_sqlite(error, self._database) from error
        for source, job_id, fence, body, spool, body_bytes, body_crc, text, url in rows:
            path = None if spool is None else self._spool.path(spool)
            if spool is not None and not self._spool.is_whole(spool, body_bytes, body_crc):
                self._log.error(
                    "journal.body_lost",
                    source=source,
                    job_id=job_id,
                    file=str(path),
                    expected_bytes=body_bytes,
                )
                path, text = None, "the result was computed but its body was lost with the worker's disk"
            yield OwedRecord(
                source=SourceName(source),
                job_id=JobId(job_id),
                fence=Fence(int(fence)),
                body=body,
                spool=path,
                spool_bytes=body_bytes if path is not None else 0,
                error=text,
                result_upload_url=url,
            )

    # ------------------------------------------------------------ writing

    def apply(self, changes: Sequence[Put | Delete]) -> None:
        """Make changes durable in one transaction; of several for one job the last one counts.

        Raises:
            JournalError: they are not durable, and the caller keeps them for later. On a full disk the
                deletions among them have still been made, with the space of the reserve.
        """
        puts: dict[_Key, Put] = {}
        deletes: dict[_Key, Delete] = {}
        for change in changes:
            key = (change.source, change.job_id)
            match change:
                case Put():
                    deletes.pop(key, None)
                    puts[key] = change
                case Delete():
                    puts.pop(key, None)
                    deletes[key] = change
                case _:
                    assert_never(change)
        try:
            self._write(puts, deletes)
        except JournalError as error:
            if error.trouble is JournalTrouble.FULL and deletes:
                self._delete_with_reserve(deletes)
                if not puts:
                    return
            self.failure = error
            raise
        self.failure = None

    def probe(self) -> bool:
        """After a failure: whether the journal can be written again; cheap enough for once a second."""
        try:
            if self.failure is not None and self.failure.trouble is not JournalTrouble.FULL:
                self._disconnect()
            if self._connection is None:
                self._reopen()
            if not self._reserve.exists():
                # More than just the reserve, or the next body would fill the disk again at once.
                self._ensure_free(self._min_free_bytes + 2 * RESERVE_BYTES)
            self._fill_reserve()
            self._write({}, {}, trial=True)
        except (JournalError, OSError):
            return False
        self.failure = None
        return True

    def _reopen(self) -> None:
        if self.lock_fd is None:
            self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.lock_fd = _lock(self._dir / "lock", 0.0)
        self._start()

    def close(self) -> None:
        """Close the database and let go of the lock; the journal is of no use afterwards."""
        self._disconnect()
        if self.lock_fd is not None:
            os.close(self.lock_fd)
            self.lock_fd = None

    def _disconnect(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):  # a broken database may not even close well
                self._connection.close()
            self._connection = None

    def _write(self, puts: dict[_Key, Put], deletes: dict[_Key, Delete], trial: bool = False) -> None:
        connection = self._connection
        if connection is None:
            raise self.failure or JournalError(f"{self._database} is not open")
        written: dict[_Key, str] = {}
        try:
            if puts or trial:
                self._ensure_free(self._min_free_bytes)
            rows = [self._row(key, put, written) for key, put in puts.items()]
            connection.execute("BEGIN IMMEDIATE")
            if deletes:
                connection.executemany(_DELETE, list(deletes))
            if rows:
                connection.executemany(_PUT, rows)
            if trial:
                connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('probed', ?)", (secrets.token_hex(4),)
                )
            connection.execute("COMMIT")
        except BaseException as error:
            self._take_back(connection, written)
            match error:
                case sqlite3.Error():
                    raise _of_sqlite(error, self._database) from error
                case OSError():
                    raise _of_os(error, self._dir) from error
                case _:
                    raise
        # Only now: until the commit the old records still needed their files.
        for key in (*puts, *deletes):
            stale = self._spooled.pop(key, None)
            if stale is not None:
                self._spool.remove(stale)
        self._spooled.update(written)

    def _take_back(self, connection: sqlite3.Connection, written: dict[_Key, str]) -> None:
        if connection.in_transaction:
            with suppress(sqlite3.Error):  # some errors roll back by themselves
                connection.execute("ROLLBACK")
        for name in written.values():
            self._spool.remove(name)

    def _row(self, key: _Key, put: Put, written: dict[_Key, str]) -> _Row:
        body, spool, size, crc = put.body, None, 0, 0
        if put.body_path is not None or (body is not None and len(body) > SPOOL_ABOVE_BYTES):
            spool = written[key] = self._spool.new_name()
            if put.body_path is not None:
                size, crc = self._spool.take_over(spool, put.body_path)
            else:
                assert body is not None
                size, crc = self._spool.write(spool, body)
            body = None
        elif body is not None:
            size = len(body)
        text = put.error.encode("utf-8", "backslashreplace").decode()
        return (*key, str(put.fence), body, spool, size, crc, text, put.result_upload_url)

    # ------------------------------------------------------------ room on the disk

    def _ensure_free(self, needed_bytes: int) -> None:
        status = os.statvfs(self._dir)
        free_bytes = status.f_bavail * status.f_frsize
        if free_bytes < needed_bytes:
            raise JournalError(
                f"{self._dir} has {free_bytes} bytes free, {needed_bytes} are to be: make room",
                JournalTrouble.FULL,
            )

    def _fill_reserve(self) -> None:
        if self._reserve.exists():
            return
        try:
            fd = os.open(self._reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            # A half-filled reserve is none.
            self._reserve.unlink(missing_ok=True)
            raise _of_os(error, self._dir) from error

    def _delete_with_reserve(self, deletes: dict[_Key, Delete]) -> None:
        try:
            self._reserve.unlink(missing_ok=True)
            self._write({}, deletes)
        except (JournalError, OSError) as error:
            self._log.error("journal.deletes_deferred", count=len(deletes), error=str(error))


def _lock(path: Path, wait_s: float) -> int:
    """Descriptor of the held lock.

    Raises:
        JournalLocked: it is held by somebody else after ``wait_s`` seconds.
        OSError: the file cannot be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline_s = time.monotonic() + wait_s
    try:
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline_s:
                    holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise JournalLocked(
                        f"another gpuward (pid {holder}) uses {path.parent}: stop it, or give this one a "
                        "node.state_dir of its own",
                        JournalTrouble.UNWRITABLE,
                    ) from None
                time.sleep(_LOCK_RETRY_S)
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    except OSError as error:
        # The lock holds without the pid: a full disk must not keep us from starting.
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            os.close(fd)
            raise
    except BaseException:
        os.close(fd)
        raise
    return fd


def _primary(error: sqlite3.Error) -> int:
    # The low byte of an extended code is the primary one.
    return int(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)) & 0xFF


def _of_sqlite(error: sqlite3.Error, database: Path) -> JournalError:
    match _primary(error):
        case sqlite3.SQLITE_FULL:
            return JournalError(f"{database}: no space left ({error}): make room", JournalTrouble.FULL)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return JournalError(
                f"{database} cannot be written ({error}): check the mount and its owner",
                JournalTrouble.UNWRITABLE,
            )
        case _:
            return JournalError(f"{database}: {error}", JournalTrouble.BROKEN)


def _of_os(error: OSError, state_dir: Path) -> JournalError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return JournalError(f"{state_dir}: no space left ({error}): make room", JournalTrouble.FULL)
    return JournalError(
        f"{state_dir} cannot be written ({error}): check the mount and its owner, or give "
        "node.state_dir another folder",
        JournalTrouble.UNWRITABLE,
    )
