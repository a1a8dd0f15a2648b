"""A development queue in a thread of its own, with blocking calls: for tests and scripts."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from types import TracebackType
from typing import Self, TypeVar

import msgspec

from gpuward_devqueue.broker import Broker, SeenFrame
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import NotRunning
from gpuward_devqueue.ledger import Counters, Entry, LedgerReport
from gpuward_devqueue.misbehaviour import Fault, Misbehaviour, misbehaviour
from gpuward_devqueue.records import JobId, JobView, Mode, WorkerView, view_of_job, view_of_worker
from gpuward_devqueue.server import DevQueue

T = TypeVar("T")

#: How long starting, stopping and a plain question may take before something is badly wrong.
CALL_TIMEOUT_S = 30.0


class DevQueueThread:
    """Runs a ``DevQueue`` while the ``with`` block lasts; any thread may call it.

    Args:
        config: see ``DevQueueConfig``; by default a free port on loopback.
    """

    def __init__(self, config: DevQueueConfig | None = None) -> None:
        self.config = config or DevQueueConfig()
        self._queue: DevQueue | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # ------------------------------------------------------------------ life

    def start(self) -> Self:
        """Start serving; returns when the port is open.

        Raises:
            PortTaken: the address cannot be bound.
        """
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="devqueue", daemon=True)
        self._thread.start()
        self._queue = DevQueue(self.config)
        try:
            self._await(self._queue.start())
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop serving and end the thread; a second call does nothing."""
        loop, thread, queue = self._loop, self._thread, self._queue
        if loop is None or thread is None or queue is None:
            return
        try:
            self._await(queue.stop())
        finally:
            self._loop = self._thread = self._queue = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join(CALL_TIMEOUT_S)
            loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # ------------------------------------------------------------------ addresses

    @property
    def ws_url(self) -> str:
        """Where workers go, without ``/ws``: the value for ``CASOLA_WS_URL``."""
        return self._running().ws_url

    @property
    def http_url(self) -> str:
        """Where callers go."""
        return self._running().http_url

    # ------------------------------------------------------------------ jobs

    def submit(
        self,
        payload: object,
        mode: Mode | str = Mode.PERSISTED,
        *,
        config_id: str | None = None,
        job_id: str | None = None,
    ) -> JobId:
        """Take a job in and return its id; see ``submit_many``."""
        return self.submit_many([payload], mode, config_id=config_id, job_ids=[job_id])[0]

    def submit_many(
        self,
        payloads: Iterable[object],
        mode: Mode | str = Mode.PERSISTED,
        *,
        config_id: str | None = None,
        job_ids: Iterable[str | None] | None = None,
    ) -> list[JobId]:
        """Take jobs in; those that find no free slot wait in line, transient ones until their timeout.

        Args:
            payloads: anything msgspec can encode as JSON; ``msgspec.Raw`` and ``bytes`` go as they are.
            mode: ``persisted`` or ``transient``.
            config_id: which workers may have them; None = any.
            job_ids: ids to use instead of made-up ones.

        Returns:
            The ids, in order.
        """
        bodies = [_body(payload) for payload in payloads]
        names: list[str | None] = [None] * len(bodies) if job_ids is None else list(job_ids)
        chosen = Mode(mode)

        def submit(broker: Broker) -> list[JobId]:
            return [
                broker.submit(body, chosen, config_id=config_id, job_id=name)
                for body, name in zip(bodies, names, strict=True)
            ]

        return self.ask(submit)

    def revoke(self, job_id: JobId, reason: str = "revoked by caller") -> None:
        """End a job; errors as ``Broker.revoke``."""
        self.ask(lambda broker: broker.revoke(job_id, reason))

    def job(self, job_id: JobId) -> JobView:
        """Return a job; errors as ``Broker.job``."""
        return self.ask(lambda broker: view_of_job(broker.job(job_id)))

    def wait_terminal(self, job_ids: Iterable[JobId], timeout_s: float = 10.0) -> dict[JobId, JobView]:
        """Wait until all these jobs have ended; errors as ``Broker.wait_terminal``."""
        wanted = list(job_ids)
        broker = self._running().broker
        return self._await(broker.wait_terminal(wanted, timeout_s), timeout_s + CALL_TIMEOUT_S)

    # ------------------------------------------------------------------ workers and evidence

    def workers(self) -> list[WorkerView]:
        """Return the registered workers."""
        return self.ask(lambda broker: [view_of_worker(worker) for worker in broker.workers()])

    def wait_workers(self, count: int, timeout_s: float = 10.0) -> list[WorkerView]:
        """Wait until exactly this many workers are registered and return them."""
        self.wait_until(
            lambda broker: len(broker.workers()) == count, timeout_s, f"{count} registered workers"
        )
        return self.workers()

    def wait_until(
        self, statement: Callable[[Broker], bool], timeout_s: float = 10.0, what: str = "the queue to change"
    ) -> None:
        """Wait until a statement about the broker holds (asked on its thread after every change).

        Raises:
            StillWaiting: it did not come to hold in time.
        """
        broker = self._running().broker
        waiting = broker.wait_until(lambda: statement(broker), timeout_s, what)
        self._await(waiting, timeout_s + CALL_TIMEOUT_S)

    def ledger(self) -> LedgerReport:
        """Return a copy of the whole ledger."""
        return self.ask(lambda broker: broker.report())

    def counters(self) -> Counters:
        """Return the ledger's totals; cheaper than ``ledger``."""
        return self.ask(lambda broker: broker.counters())

    def page(self, job_id: JobId) -> list[Entry]:
        """Return what happened to one job."""
        return self.ask(lambda broker: broker.page(job_id))

    def frames(self) -> list[SeenFrame]:
        """Return the latest frames of workers; needs ``frames_kept_max`` in the configuration."""
        return self.ask(lambda broker: broker.frames())

    # ------------------------------------------------------------------ faults

    def misbehave(self, fault: Fault | str, **given: float) -> Misbehaviour:
        """Make a fault due; fields as ``misbehaviour``, e.g. ``misbehave("close-mid-job", code=1012)``."""
        what = misbehaviour(fault, **given)
        self.ask(lambda broker: broker.script.add(what))
        return what

    def behave(self, fault: Fault | None = None) -> None:
        """Call off one kind of fault, or all."""
        self.ask(lambda broker: broker.script.clear(fault))

    # ------------------------------------------------------------------ inside

    def ask(self, question: Callable[[Broker], T]) -> T:
        """Run a function with the broker on the queue's own thread and return what it returns."""
        broker = self._running().broker

        async def on_loop() -> T:
            return question(broker)

        return self._await(on_loop())

    def _running(self) -> DevQueue:
        if self._queue is None:
            raise NotRunning("the queue's thread is not running: use `with DevQueueThread() as queue:`")
        return self._queue

    def _await(self, work: Coroutine[object, object, T], timeout_s: float = CALL_TIMEOUT_S) -> T:
        assert self._loop is not None, "only called while running"
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)


def _body(payload: object) -> bytes:
    if isinstance(payload, bytes):
        return payload
    return msgspec.json.encode(payload)
