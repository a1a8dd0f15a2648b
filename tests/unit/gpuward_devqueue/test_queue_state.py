"""The rules, by equality: what happens to the queue, and which commands follow."""

from __future__ import annotations

from gpuward_devqueue.ledger import Counters, Ledger, Note
from gpuward_devqueue.queue_state import Limits, QueueState
from gpuward_devqueue.records import (
    Acknowledge,
    Command,
    Complain,
    ConnectionId,
    Forget,
    JobId,
    Mode,
    Offer,
    Revoke,
    Settle,
    Status,
)

ONE, TWO, THREE = ConnectionId(1), ConnectionId(2), ConnectionId(3)
A, B, C, D = JobId("a"), JobId("b"), JobId("c"), JobId("d")


class Queue:
    """A state with a clock that tests move."""

    def __init__(self, **limits: float) -> None:
        self.ledger = Ledger()
        self.state = QueueState(Limits(**limits), self.ledger)  # type: ignore[arg-type]
        self.now_s = 100.0

    def submit(
        self, job_id: JobId, mode: Mode = Mode.PERSISTED, config_id: str | None = None, payload: bytes = b"{}"
    ) -> list[Command]:
        return self.state.submit(
            job_id, mode, payload, config_id=config_id, created_at_s=0.0, now_s=self.now_s
        )

    def register(
        self, connection: ConnectionId, capacity: int = 1, config_id: str = "cfg", name: str = ""
    ) -> list[Command]:
        return self.state.register(connection, name or f"w{connection}", config_id, capacity, self.now_s)

    def complete(
        self, connection: ConnectionId, job_id: JobId, fence: int, result: bytes = b"1"
    ) -> list[Command]:
        return self.state.complete(connection, job_id, fence, result, self.now_s)

    def renew(self, connection: ConnectionId, job_id: JobId, fence: int) -> None:
        self.state.renew(
            connection, job_id, fence, progress=None, status_message="processing", now_s=self.now_s
        )

    def status(self, job_id: JobId) -> Status:
        job = self.state.job(job_id)
        assert job is not None
        return job.status

    def notes(self, job_id: JobId) -> list[Note]:
        return [entry.note for entry in self.ledger.page(job_id)]

    @property
    def counters(self) -> Counters:
        return self.ledger.counters(still_open=self.state.still_open)


# ---------------------------------------------------------------------------- dispatch


def test_a_job_waits_until_a_worker_registers() -> None:
    queue = Queue()
    assert queue.submit(A) == []
    assert queue.state.pending == 1
    assert queue.register(ONE) == [Offer(ONE, A, 1, "cfg")]
    assert (queue.state.pending, queue.status(A)) == (0, Status.RUNNING)


def test_waiting_jobs_are_offered_in_order_up_to_the_capacity() -> None:
    queue = Queue()
    for job_id in (A, B, C):
        queue.submit(job_id)
    assert queue.register(ONE, capacity=2) == [Offer(ONE, A, 1, "cfg"), Offer(ONE, B, 2, "cfg")]


def test_a_freed_slot_takes_the_next_job_in_line() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    queue.submit(B)
    assert queue.complete(ONE, A, 1) == [Settle(A), Offer(ONE, B, 2, "cfg")]


def test_the_worker_with_most_free_slots_gets_the_job() -> None:
    queue = Queue()
    queue.register(ONE, capacity=2)
    queue.register(TWO, capacity=3)
    assert [queue.submit(job_id)[0].connection for job_id in (A, B, C)] == [TWO, ONE, TWO]  # type: ignore[union-attr]


def test_equal_workers_take_turns() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.register(TWO)
    turns = []
    for number in range(4):
        (offer,) = queue.submit(JobId(str(number)))
        assert isinstance(offer, Offer)
        turns.append(offer.connection)
        queue.complete(offer.connection, offer.job_id, offer.fence)
    assert turns == [ONE, TWO, ONE, TWO]


def test_a_job_for_a_config_goes_only_to_its_workers() -> None:
    queue = Queue()
    queue.register(ONE, config_id="small")
    assert queue.submit(A, config_id="big") == []
    assert queue.submit(B) == [Offer(ONE, B, 1, "small")]
    assert queue.register(TWO, config_id="big") == [Offer(TWO, A, 2, "big")]


def test_registering_again_on_the_same_socket_replaces_the_worker_and_offers_the_backlog() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.state.pause(ONE, queue.now_s)
    queue.submit(A)
    queue.submit(B)
    assert queue.register(ONE, capacity=1) == [Offer(ONE, A, 1, "cfg")]
    # The new registration counts no slot in use, though the worker still runs A.
    assert queue.register(ONE, capacity=1) == [Offer(ONE, B, 2, "cfg")]


def test_a_paused_worker_gets_nothing_until_it_resumes() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.state.pause(ONE, queue.now_s)
    assert queue.submit(A) == []
    assert queue.state.resume(ONE, queue.now_s) == [Offer(ONE, A, 1, "cfg")]


def test_a_drained_worker_stays_empty_until_it_registers_again() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.state.drain(ONE, queue.now_s)
    queue.submit(A)
    assert queue.state.resume(ONE, queue.now_s) == []
    assert queue.register(ONE) == [Offer(ONE, A, 1, "cfg")]


def test_pause_before_register_is_refused() -> None:
    queue = Queue()
    (complaint,) = queue.state.pause(ONE, queue.now_s)
    assert isinstance(complaint, Complain)
    assert queue.counters.violations == 1


def test_room_is_a_free_slot_of_a_fitting_worker() -> None:
    queue = Queue()
    assert not queue.state.has_room(None)
    queue.register(ONE, config_id="small")
    assert queue.state.has_room(None)
    assert not queue.state.has_room("big")
    queue.submit(A)
    assert not queue.state.has_room(None)


# ---------------------------------------------------------------------------- fences


def test_fences_rise_with_every_offer_of_any_job() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE, capacity=2)
    queue.submit(A)
    queue.submit(B)
    queue.now_s += 11
    assert queue.state.sweep(queue.now_s) == [Offer(ONE, A, 3, "cfg"), Offer(ONE, B, 4, "cfg")]


def test_an_answer_with_an_older_fence_is_refused() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.now_s += 11
    queue.state.sweep(queue.now_s)
    assert queue.complete(ONE, A, 1) == []
    assert queue.status(A) is Status.RUNNING
    assert queue.complete(ONE, A, 2, b'"new"') == [Settle(A)]
    assert queue.notes(A)[-2:] == [Note.STALE, Note.COMPLETED]


def test_an_answer_with_fence_zero_or_a_future_one_is_refused_for_transient_jobs_too() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A, Mode.TRANSIENT)
    assert queue.complete(ONE, A, 0) == []
    assert queue.state.fail(ONE, A, 99, "boom", queue.now_s) == []
    assert (queue.status(A), queue.counters.wrong_fence) == (Status.RUNNING, 2)


def test_fence_zero_counts_for_transient_jobs_alone_where_it_is_allowed() -> None:
    queue = Queue(accept_fence_zero=True)
    queue.register(ONE, capacity=2)
    queue.submit(A, Mode.TRANSIENT)
    queue.submit(B)
    assert queue.complete(ONE, B, 0) == []
    assert queue.complete(ONE, A, 0) == [Settle(A)]
    queue.submit(C, Mode.TRANSIENT)
    assert queue.state.fail(ONE, A, 0, "again", queue.now_s) == []
    assert (queue.counters.answered, queue.counters.duplicates, queue.counters.wrong_fence) == (1, 1, 1)


def test_a_stale_answer_does_not_free_the_slot_of_the_newer_offer() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    queue.submit(B)
    queue.state.offer_again(A, raise_fence=True, now_s=queue.now_s)
    assert queue.complete(ONE, A, 1) == []
    assert queue.complete(ONE, A, 2) == [Settle(A), Offer(ONE, B, 3, "cfg")]


def test_a_second_answer_with_the_same_fence_is_a_duplicate_and_changes_nothing() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    queue.complete(ONE, A, 1, b'"first"')
    assert queue.complete(ONE, A, 1, b'"second"') == []
    assert queue.state.fail(ONE, A, 1, "boom", queue.now_s) == []
    job = queue.state.job(A)
    assert job is not None
    assert (job.result, job.error, job.status) == (b'"first"', None, Status.COMPLETED)
    assert (queue.counters.answered, queue.counters.duplicates) == (1, 2)


def test_an_answer_for_a_job_never_offered_is_refused_whatever_its_fence() -> None:
    queue = Queue()
    queue.submit(A)
    assert queue.complete(ONE, A, 0) == []
    assert (queue.status(A), queue.counters.wrong_fence) == (Status.PENDING, 1)


def test_messages_about_unknown_jobs_are_counted() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.complete(ONE, A, 1)
    queue.renew(ONE, A, 1)
    assert queue.counters.unknown_jobs == 2


def test_an_error_ends_the_job_with_its_text() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    assert queue.state.fail(ONE, A, 1, "CUDA out of memory", queue.now_s) == [Settle(A)]
    job = queue.state.job(A)
    assert job is not None
    assert (job.status, job.error) == (Status.FAILED, "CUDA out of memory")


# ---------------------------------------------------------------------------- leases


def test_a_lease_lapses_at_its_end_and_not_before() -> None:
    queue = Queue(lease_s=300)
    queue.register(ONE)
    queue.submit(A)
    assert queue.state.sweep(queue.now_s + 299.9) == []
    assert queue.state.sweep(queue.now_s + 300) == [Offer(ONE, A, 2, "cfg")]
    assert queue.notes(A) == [Note.SUBMITTED, Note.OFFERED, Note.LAPSED, Note.OFFERED]


def test_progress_with_the_right_fence_renews_the_lease() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.now_s += 8
    queue.renew(ONE, A, 1)
    assert queue.state.sweep(queue.now_s + 9) == []
    assert queue.state.sweep(queue.now_s + 10) == [Offer(ONE, A, 2, "cfg")]


def test_progress_with_a_wrong_fence_renews_nothing() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.now_s += 8
    queue.renew(ONE, A, 0)
    assert queue.state.sweep(queue.now_s + 2) == [Offer(ONE, A, 2, "cfg")]
    assert queue.counters.wrong_fence == 1


def test_renewing_one_job_does_not_hide_the_lapse_of_another() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE, capacity=2)
    queue.submit(A)
    queue.submit(B)
    queue.now_s += 5
    queue.renew(ONE, A, 1)
    assert queue.state.sweep(queue.now_s + 6) == [Offer(ONE, B, 3, "cfg")]


def test_a_lapsed_job_goes_ahead_of_jobs_submitted_after_it() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.submit(B)
    assert queue.state.sweep(queue.now_s + 10) == [Offer(ONE, A, 2, "cfg")]


def test_transient_jobs_have_no_lease() -> None:
    queue = Queue(lease_s=10, timeout_s=1000)
    queue.register(ONE)
    queue.submit(A, Mode.TRANSIENT)
    assert queue.state.sweep(queue.now_s + 500) == []


def test_an_answer_after_the_lapse_counts_while_nobody_else_has_the_job() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.state.disconnected(ONE, queue.now_s)
    queue.now_s += 10
    assert queue.state.sweep(queue.now_s) == []
    assert queue.status(A) is Status.PENDING
    queue.renew(TWO, A, 1)
    assert queue.notes(A)[-1] is Note.LATE
    assert queue.complete(TWO, A, 1) == [Settle(A)]
    assert queue.state.pending == 0
    assert queue.register(ONE) == []


# ---------------------------------------------------------------------------- connections


def test_a_worker_that_comes_back_delivers_on_its_new_socket() -> None:
    queue = Queue()
    queue.register(ONE, name="w")
    queue.submit(A)
    queue.state.disconnected(ONE, queue.now_s)
    assert queue.status(A) is Status.RUNNING
    assert queue.register(TWO, name="w") == []
    queue.renew(TWO, A, 1)
    assert queue.complete(TWO, A, 1) == [Settle(A)]
    assert Note.ORPHANED in queue.notes(A)


def test_closing_the_old_socket_of_a_name_leaves_the_new_registration_alone() -> None:
    queue = Queue()
    queue.register(ONE, name="w")
    queue.register(TWO, name="w")
    queue.state.disconnected(ONE, queue.now_s)
    assert queue.submit(A) == [Offer(TWO, A, 1, "cfg")]


def test_a_lapse_after_a_disconnect_offers_the_job_to_another_worker() -> None:
    queue = Queue(lease_s=10)
    queue.register(ONE)
    queue.submit(A)
    queue.state.disconnected(ONE, queue.now_s)
    queue.register(TWO)
    assert queue.state.sweep(queue.now_s + 10) == [Offer(TWO, A, 2, "cfg")]


# ---------------------------------------------------------------------------- revocation


def test_revoking_a_running_job_tells_its_worker_and_frees_the_slot() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    queue.submit(B)
    assert queue.state.revoke(A, "changed my mind", queue.now_s) == [
        Revoke(ONE, A, "changed my mind"),
        Settle(A),
        Offer(ONE, B, 2, "cfg"),
    ]
    assert queue.complete(ONE, A, 1) == []
    assert (queue.status(A), queue.counters.late) == (Status.REVOKED, 1)


def test_revoking_a_waiting_job_tells_nobody() -> None:
    queue = Queue()
    queue.submit(A)
    assert queue.state.revoke(A, "no", queue.now_s) == [Settle(A)]
    assert queue.state.pending == 0
    assert queue.register(ONE) == []


def test_a_revocation_follows_the_worker_to_its_new_socket() -> None:
    queue = Queue()
    queue.register(ONE, name="w")
    queue.submit(A)
    queue.state.disconnected(ONE, queue.now_s)
    queue.register(TWO, name="other")
    queue.register(THREE, name="w")
    assert queue.state.revoke(A, "no", queue.now_s)[0] == Revoke(THREE, A, "no")


def test_revoking_twice_does_nothing_the_second_time() -> None:
    queue = Queue()
    queue.submit(A)
    queue.state.revoke(A, "no", queue.now_s)
    assert queue.state.revoke(A, "no", queue.now_s) == []
    assert queue.counters.revoked == 1


# ---------------------------------------------------------------------------- callers


def test_a_transient_job_ends_when_its_caller_gives_up_but_keeps_its_slot() -> None:
    queue = Queue(timeout_s=120)
    queue.register(ONE)
    queue.submit(A, Mode.TRANSIENT)
    queue.submit(B)
    queue.now_s += 120
    assert queue.state.sweep(queue.now_s) == [Settle(A)]
    assert (queue.status(A), queue.counters.lost) == (Status.TIMED_OUT, 1)
    assert queue.complete(ONE, A, 1) == [Offer(ONE, B, 2, "cfg")]
    assert queue.counters.late == 1


def test_a_transient_job_nobody_took_is_timed_out_but_not_lost() -> None:
    queue = Queue(timeout_s=120)
    queue.submit(A, Mode.TRANSIENT)
    queue.state.sweep(queue.now_s + 120)
    assert (queue.counters.timed_out, queue.counters.lost) == (1, 0)
    assert queue.register(ONE) == []


def test_a_transient_job_outlives_its_connection_until_the_caller_gives_up() -> None:
    queue = Queue(timeout_s=120)
    queue.register(ONE)
    queue.submit(A, Mode.TRANSIENT)
    queue.state.disconnected(ONE, queue.now_s)
    assert queue.state.sweep(queue.now_s + 119) == []
    assert queue.complete(TWO, A, 1) == [Settle(A)]


# ---------------------------------------------------------------------------- references


def test_an_uploaded_result_is_taken_and_acknowledged() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    assert queue.state.complete_by_reference(ONE, A, 1, b"[1]", queue.now_s) == [
        Acknowledge(ONE, A),
        Settle(A),
    ]


def test_a_reference_without_an_upload_leaves_the_job_running() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    (complaint,) = queue.state.complete_by_reference(ONE, A, 1, None, queue.now_s)
    assert isinstance(complaint, Complain)
    assert "no uploaded JSON result" in complaint.message
    assert queue.status(A) is Status.RUNNING
    assert queue.complete(ONE, A, 1) == [Settle(A)]


def test_a_reference_with_a_stale_fence_is_refused() -> None:
    queue = Queue()
    queue.register(ONE)
    queue.submit(A)
    queue.state.offer_again(A, raise_fence=True, now_s=queue.now_s)
    assert queue.state.complete_by_reference(ONE, A, 1, b"[1]", queue.now_s) == []
    assert queue.counters.stale == 1


# ---------------------------------------------------------------------------- keeping


def test_the_oldest_ended_jobs_are_forgotten_and_open_ones_never() -> None:
    queue = Queue(jobs_kept_max=1)
    queue.register(ONE, capacity=2)
    queue.submit(A)
    queue.submit(B)
    queue.submit(C)
    queue.complete(ONE, B, 2)
    assert Forget(B) in queue.complete(ONE, C, 3)
    assert queue.state.job(B) is None
    assert queue.status(A) is Status.RUNNING
    assert queue.state.still_open == 1


def test_ended_jobs_are_forgotten_by_weight_except_the_newest() -> None:
    queue = Queue(kept_max_bytes=10)
    queue.register(ONE, capacity=2)
    queue.submit(A)
    queue.submit(B)
    assert queue.complete(ONE, A, 1, b"[" + b" " * 50 + b"]") == [Settle(A)]
    assert Forget(A) in queue.complete(ONE, B, 2)
    assert queue.state.job(B) is not None


def test_a_repeated_offer_counts_one_slot() -> None:
    queue = Queue()
    queue.register(ONE, capacity=2)
    queue.submit(A)
    assert queue.state.offer_again(A, raise_fence=False, now_s=queue.now_s) == [
        Offer(ONE, A, 1, "cfg", again=True)
    ]
    assert queue.submit(B) == [Offer(ONE, B, 2, "cfg")]
    assert queue.state.offer_again(D, raise_fence=True, now_s=queue.now_s) == []
