"""Payloads and results that travel through presigned URLs: which are under way, their retries, their end.

A few short-lived threads do the work, none while there is nothing to do. Every transfer ends in exactly one
event, or in none when it was abandoned.
"""

from __future__ import annotations

import mmap
import random
import threading
from collections import deque
from collections.abc import Callable
from contextlib import closing

import structlog

from gpuward_ipc.types import Fence, JobId
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core import events
from gpuward_supervisor.sources.backoff import Backoff
from gpuward_supervisor.sources.base import BodyStore, Post, TransferSettings
from gpuward_supervisor.sources.casola_protocol import NAME_MAX_CHARS, json_fault, peek_task
from gpuward_supervisor.sources.presigned import TransferFailed, Wire, download, upload
from gpuward_supervisor.sources.spooling import FileChunks, Landing, SpoolFailed

_Job = tuple[JobId, Fence]


class _Transfer:
    """One command under way."""

    def __init__(self, command: do.FetchPayload | do.UploadResult) -> None:
        self.command = command
        self.abandoned = threading.Event()
        #: The connection of the try that runs.
        self.wire = Wire()


class Transfers:
    """All transfers of one source."""

    def __init__(
        self,
        settings: TransferSettings,
        bodies: BodyStore,
        post: Post,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """Start with none.

        Args:
            settings: limits.
            bodies: where payloads go and results come from.
            post: takes the event that ends a transfer; called on a transfer's thread.
            chance: uniform random numbers in [0, 1), for jitter.
        """
        self._settings = settings
        self._bodies = bodies
        self._post = post
        self._chance = chance
        self._lock = threading.Lock()
        self._waiting: deque[_Transfer] = deque()
        self._open: dict[_Job, list[_Transfer]] = {}
        self._threads = 0

    def begin(self, command: do.FetchPayload | do.UploadResult) -> None:
        """Start a transfer, or queue it while as many as allowed are running. Never blocks."""
        transfer = _Transfer(command)
        with self._lock:
            self._open.setdefault((command.job_id, command.fence), []).append(transfer)
            self._waiting.append(transfer)
            if self._threads >= self._settings.concurrency:
                return
            self._threads += 1
        threading.Thread(target=self._work, name="transfer", daemon=True).start()

    def abandon(self, job_id: JobId, fence: Fence) -> None:
        """Stop the transfers of a job; they post nothing any more."""
        with self._lock:
            given_up = self._open.pop((job_id, fence), [])
            for transfer in given_up:
                transfer.abandoned.set()
                transfer.wire.cut()

    def abandon_all(self) -> None:
        """Stop every transfer."""
        for job_id, fence in list(self._open):
            self.abandon(job_id, fence)

    @property
    def running(self) -> int:
        """Transfers that are under way or waiting for their turn."""
        return sum(map(len, list(self._open.values())))

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                transfer = self._waiting.popleft()
            if transfer.abandoned.is_set():
                continue
            command = transfer.command
            try:
                if isinstance(command, do.FetchPayload):
                    self._fetch(transfer, command)
                else:
                    self._upload(transfer, command)
            except Exception as error:  # noqa: BLE001 - the thread's border: a bug must cost this job only
                self._broke(transfer, error)

    # ---------------------------------------------------------------- the two kinds

    def _fetch(self, transfer: _Transfer, command: do.FetchPayload) -> None:
        landing = Landing(self._bodies)
        try:
            self._with_retries(transfer, lambda: self._download(transfer, command.url, landing))
            task = _checked_task(landing)
        except (TransferFailed, SpoolFailed) as failed:
            landing.discard()
            event = self._fetch_failed(command, str(failed))
            self._end(transfer, lambda: event)
            return

        def arrived() -> events.SupervisorEvent:
            return events.PayloadFetched(
                source=command.source,
                job_id=command.job_id,
                fence=command.fence,
                body_bytes=landing.size_bytes,
                body=landing.keep(),
                task=task,
            )

        if not self._end(transfer, arrived):
            landing.discard()

    def _download(self, transfer: _Transfer, url: str, landing: Landing) -> None:
        landing.discard()
        settings = self._settings
        download(
            url,
            landing.write,
            max_bytes=settings.max_bytes,
            timeout_s=settings.get_timeout_s,
            wire=transfer.wire,
        )

    @staticmethod
    def _fetch_failed(command: do.FetchPayload, error: str) -> events.SupervisorEvent:
        return events.PayloadFetchFailed(
            source=command.source,
            job_id=command.job_id,
            fence=command.fence,
            error=f"the payload could not be downloaded: {error}",
        )

    def _upload(self, transfer: _Transfer, command: do.UploadResult) -> None:
        source, job_id, fence = command.source, command.job_id, command.fence
        try:
            self._with_retries(transfer, lambda: self._put(transfer, command))
        except TransferFailed as failed:
            error = f"the result could not be uploaded: {failed}"
            self._end(
                transfer,
                lambda: events.ResultUploadFailed(source=source, job_id=job_id, fence=fence, error=error),
            )
        else:
            self._end(transfer, lambda: events.ResultUploaded(source=source, job_id=job_id, fence=fence))

    def _put(self, transfer: _Transfer, command: do.UploadResult) -> None:
        body = self._bodies.get(command.body)
        if body is None:
            raise TransferFailed("its body was forgotten meanwhile", retry=False)
        timeout_s = self._settings.put_timeout_s
        if isinstance(body, bytes):
            upload(command.url, [body], len(body), timeout_s=timeout_s, wire=transfer.wire)
            return
        try:
            chunks = FileChunks(body)
        except OSError as error:
            raise TransferFailed(f"its spool file: {error.strerror or error}", retry=False) from error
        with closing(chunks):
            upload(command.url, chunks, body.size_bytes, timeout_s=timeout_s, wire=transfer.wire)

    # ---------------------------------------------------------------- what both share

    def _broke(self, transfer: _Transfer, error: Exception) -> None:
        """End a transfer that met a bug of ours: without an event its job would never end."""
        command = transfer.command
        source, job_id, fence = command.source, command.job_id, command.fence
        structlog.get_logger("gpuward").exception("transfer.failed", source=source, job_id=job_id)
        text = f"internal error of the worker ({type(error).__name__})"
        if isinstance(command, do.FetchPayload):
            event = self._fetch_failed(command, text)
        else:
            text = f"the result could not be uploaded: {text}"
            event = events.ResultUploadFailed(source=source, job_id=job_id, fence=fence, error=text)
        self._end(transfer, lambda: event)

    def _with_retries(self, transfer: _Transfer, attempt: Callable[[], None]) -> None:
        settings = self._settings
        backoff = Backoff(
            first_s=settings.backoff_first_s, max_s=settings.backoff_max_s, jitter=0.3, chance=self._chance
        )
        for number in range(1, settings.attempts + 1):
            try:
                self._within_deadline(transfer, attempt)
            except TransferFailed as failed:
                if not failed.retry or transfer.abandoned.is_set():
                    raise
                if number == settings.attempts:
                    raise TransferFailed(f"{failed}, {number} tries in all", retry=False) from failed
            else:
                return
            if transfer.abandoned.wait(backoff.next_s()):
                raise TransferFailed("abandoned", retry=False)

    def _within_deadline(self, transfer: _Transfer, attempt: Callable[[], None]) -> None:
        wire = Wire()
        with self._lock:
            if transfer.abandoned.is_set():
                raise TransferFailed("abandoned", retry=False)
            transfer.wire = wire
        deadline_s = self._settings.deadline_s
        # A server that sends a byte now and then is never silent for long: only this ends it.
        timer = threading.Timer(deadline_s, wire.cut)
        timer.daemon = True
        timer.start()
        try:
            attempt()
            if wire.is_cut:
                # A body of unknown length ends with its connection: what came is not the whole.
                raise TransferFailed("cut", retry=True)
        except TransferFailed as failed:
            if wire.is_cut:
                raise TransferFailed(f"not done within {deadline_s:g} s", retry=True) from failed
            raise
        finally:
            timer.cancel()

    def _end(self, transfer: _Transfer, event: Callable[[], events.SupervisorEvent]) -> bool:
        """Post the event that ends a transfer, unless it was abandoned; whether it was posted."""
        command = transfer.command
        job = (command.job_id, command.fence)
        with self._lock:
            if transfer.abandoned.is_set():
                return False
            happened = event()
            self._open[job].remove(transfer)
            if not self._open[job]:
                del self._open[job]
            self._post(happened)
            return True


def _checked_task(landing: Landing) -> str:
    content = landing.content()
    if isinstance(content, bytes):
        return _task_of(content)
    with mmap.mmap(content, 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        return _task_of(view)


def _task_of(payload: bytes | memoryview) -> str:
    if fault := json_fault(payload):
        raise TransferFailed(f"it is not JSON: {fault}", retry=False)
    task = peek_task(payload)
    if len(task) > NAME_MAX_CHARS:
        text = f"its task name has {len(task)} characters: at most {NAME_MAX_CHARS} are taken"
        raise TransferFailed(text, retry=False)
    return task
