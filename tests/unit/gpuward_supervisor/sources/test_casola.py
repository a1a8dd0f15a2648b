"""The source's own life: connecting, backing off, closing. What it says to a queue is in tests/contract."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from gpuward_ipc.types import Fence, JobId
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core.events import (
    ConnectionId,
    JobOffered,
    PayloadFetchFailed,
    ReportsDelivered,
    ReportSeq,
    SourceClosed,
    SourceConnected,
    SourceDisconnected,
    SourceFailed,
)
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings, SourceState
from gpuward_supervisor.sources.casola import BACKLOG_MAX, CasolaSource
from gpuward_supervisor.sources.websocket_dial import Dial
from support.event_inbox import EventInbox
from support.patience import Patience
from support.scripted_queue import ScriptedQueue, job_message

PATIENCE_S = 20
Start = Callable[..., CasolaSource]


@pytest.fixture
def queue() -> Iterator[ScriptedQueue]:
    with ScriptedQueue() as running:
        yield running


@pytest.fixture
def inbox() -> EventInbox:
    return EventInbox()


@pytest.fixture
def bodies(tmp_path: Path) -> Bodies:
    return Bodies(tmp_path / "spool")


@pytest.fixture
def start(queue: ScriptedQueue, inbox: EventInbox, bodies: Bodies) -> Iterator[Start]:
    started: list[CasolaSource] = []

    def _start(backlog: Callable[[], int] = lambda: 0, **settings: Any) -> CasolaSource:
        fast = {"backoff_first_s": 0.001, "backoff_max_s": 0.002, "barrier_interval_s": 0.001}
        known: dict[str, Any] = {
            "url": queue.url,
            "config_id": "c",
            "worker_id": "w",
            "token": Secret("tok-secret"),
        }
        whole = CasolaSettings(**(known | fast | settings))
        source = CasolaSource(whole, bodies, inbox.post, inbox.post_all, backlog=backlog)
        source.start()
        started.append(source)
        return source

    yield _start
    for source in started:
        source.send(close())
        assert source.join(PATIENCE_S)


def close(within_s: float = 0) -> do.CloseSource:
    return do.CloseSource(source=SOURCE, within_s=within_s)


SOURCE = CasolaSettings(url="", config_id="", worker_id="").name


def register(connection: int) -> do.Register:
    return do.Register(source=SOURCE, connection=ConnectionId(connection), capacity=2)


def error_report(connection: int, seq: int) -> do.ReportError:
    return do.ReportError(
        source=SOURCE,
        connection=ConnectionId(connection),
        seq=ReportSeq(seq),
        job_id=JobId("j1"),
        fence=Fence(1),
        error="no",
    )


# ---------------------------------------------------------------- connecting


def test_it_says_nothing_before_it_is_told_to_register(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    source = start()
    connection = queue.accept()
    assert inbox.next(SourceConnected).connection == 1
    assert connection.nothing_came()
    source.send(register(1))
    assert connection.next() == {"type": "register", "worker_id": "w", "config_id": "c", "capacity": 2}
    assert source.snapshot().state is SourceState.OPEN


def test_a_trailing_slash_of_the_url_does_no_harm(queue: ScriptedQueue, start: Start) -> None:
    start(url=queue.url + "/")
    assert queue.accept().path == "/ws"


def test_connections_are_numbered_and_a_loss_is_told_with_its_reason(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    start()
    for number in (1, 2, 3):
        connection = queue.accept()
        assert inbox.next(SourceConnected).connection == number
        connection.close(1012, "restart")
        lost = inbox.next(SourceDisconnected)
        assert (lost.connection, lost.reason) == (number, "closed by the peer with 1012 restart")


def test_commands_for_an_older_connection_are_dropped(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    source = start()
    queue.accept().abort()
    inbox.until(SourceDisconnected)
    inbox.next(SourceConnected)
    connection = queue.accept()
    source.send(register(1))
    source.send(error_report(1, 1))
    source.send(register(2))
    source.send(error_report(2, 2))
    assert [connection.next()["type"] for _ in range(2)] == ["register", "job_error"]
    assert source.snapshot().commands_dropped == 2


def test_failures_double_the_delay(inbox: EventInbox, queue: ScriptedQueue, start: Start) -> None:
    queue.refuse.extend([500, 503, 404])
    with capture_logs() as logs:
        start(backoff_first_s=0.02, backoff_max_s=0.04, backoff_jitter=0.0)
        queue.accept()
        inbox.next(SourceConnected)
    delays = [line["retry_in_s"] for line in logs if line["event"] == "source.connect_failed"]
    assert delays == [0.02, 0.04, 0.04]


def test_a_queue_that_closes_after_register_is_called_less_and_less_often(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    with capture_logs() as logs:
        source = start(backoff_first_s=0.02, backoff_max_s=0.08, backoff_jitter=0.0)
        for number in (1, 2, 3):
            connection = queue.accept()
            inbox.next(SourceConnected)
            source.send(register(number))
            connection.next()
            connection.close(1008)
            inbox.next(SourceDisconnected)
        queue.accept()
    assert [line["retry_in_s"] for line in logs if line["event"] == "source.disconnected"] == [
        0.02,
        0.04,
        0.08,
    ]


def test_a_connection_that_has_worked_resets_the_delay(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.refuse.extend([500, 500, 500])
    with capture_logs() as logs:
        source = start(backoff_first_s=0.02, backoff_max_s=0.04, backoff_jitter=0.0)
        connection = queue.accept()
        inbox.next(SourceConnected)
        source.send(register(1))
        connection.send(job_message())
        inbox.next(JobOffered)
        source.send(error_report(1, 1))
        inbox.next(ReportsDelivered)
        connection.close(1011)
        inbox.next(SourceDisconnected)
        queue.accept()
    assert [line["retry_in_s"] for line in logs if line["event"] == "source.disconnected"] == [0.02]


def test_a_connection_that_has_lived_long_resets_the_delay(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.refuse.extend([500, 500, 500])
    with capture_logs() as logs:
        start(backoff_first_s=0.02, backoff_max_s=0.04, backoff_jitter=0.0, proven_after_s=0.0)
        queue.accept().close(1011)
        inbox.until(SourceDisconnected)
        queue.accept()
    assert [line["retry_in_s"] for line in logs if line["event"] == "source.disconnected"] == [0.02]


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_token_is_told_apart_and_tried_again_like_any_failure(
    queue: ScriptedQueue, inbox: EventInbox, start: Start, status: int
) -> None:
    queue.refuse.append(status)
    with capture_logs() as logs:
        source = start(backoff_first_s=0.02, backoff_jitter=0.0, backoff_max_s=1.0)
        queue.accept()
        inbox.next(SourceConnected)
    (line,) = [line for line in logs if line["event"] == "source.auth_refused"]
    assert (line["log_level"], line["status"], line["retry_in_s"]) == ("error", status, 0.02)
    assert "tok-secret" not in str(logs)
    snapshot = source.snapshot()
    assert (snapshot.auth_refusals, snapshot.connect_failures) == (1, 1)
    assert not snapshot.auth_refused, "connected since"


def test_a_refused_token_shows_in_the_snapshot_as_long_as_it_lasts(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.refuse.append(401)
    source = start(backoff_first_s=0.2, backoff_max_s=0.2)
    patience = Patience(PATIENCE_S)
    while not source.snapshot().auth_refused:
        patience.wait("the refusal to show")
    inbox.next(SourceConnected)
    assert not source.snapshot().auth_refused


def test_a_queue_that_does_not_answer_the_upgrade_is_tried_again(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.silent = True
    source = start(open_timeout_s=0.05)
    queue.refused()
    queue.refused()
    assert source.snapshot().connect_failures >= 1
    queue.silent = False
    queue.accept()
    inbox.next(SourceConnected)


def test_logs_hold_neither_token_nor_query(queue: ScriptedQueue, inbox: EventInbox, start: Start) -> None:
    with capture_logs() as logs:
        start()
        queue.accept().close(1011)
        inbox.until(SourceDisconnected)
    assert [line["event"] for line in logs] == ["source.connected", "source.disconnected"]
    assert "tok-secret" not in str(logs)
    assert logs[0]["url"] == queue.url + "/ws"


# ---------------------------------------------------------------- closing


def test_closing_delivers_the_last_report_first(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    source = start()
    connection = queue.accept()
    inbox.next(SourceConnected)
    source.send(register(1))
    source.send(error_report(1, 1))
    source.send(close(PATIENCE_S))
    assert [connection.next()["type"] for _ in range(2)] == ["register", "job_error"]
    assert inbox.next(ReportsDelivered).seq == 1
    inbox.next(SourceClosed)
    connection.wait_ended()
    assert connection.close_payload == b"\x03\xe8"
    assert source.join(PATIENCE_S)
    assert source.snapshot().state is SourceState.ENDED
    assert inbox.empty()


def test_closing_waits_for_a_report_no_longer_than_it_may(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.answers_pings = False
    source = start()
    connection = queue.accept()
    inbox.next(SourceConnected)
    source.send(register(1))
    source.send(error_report(1, 1))
    source.send(close(0.02))
    inbox.next(SourceClosed)
    assert [connection.next()["type"] for _ in range(2)] == ["register", "job_error"]


def test_closing_with_nothing_owed_is_immediate_even_when_something_was_just_written(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    source = start()
    connection = queue.accept()
    inbox.next(SourceConnected)
    source.send(register(1))
    source.send(do.AnnounceDrain(source=SOURCE, connection=ConnectionId(1)))
    source.send(close(3600))
    inbox.next(SourceClosed)
    assert [connection.next()["type"] for _ in range(2)] == ["register", "drain"]


def test_a_connection_lost_while_closing_is_closed(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.answers_pings = False
    source = start()
    connection = queue.accept()
    inbox.next(SourceConnected)
    source.send(register(1))
    source.send(error_report(1, 1))
    source.send(close(3600))
    connection.next()
    connection.next()
    connection.abort()
    inbox.next(SourceClosed)


def test_closing_interrupts_a_long_delay(queue: ScriptedQueue, inbox: EventInbox, start: Start) -> None:
    queue.refuse.append(500)
    source = start(backoff_first_s=3600, backoff_max_s=3600)
    queue.refused()
    source.send(close(3600))
    inbox.next(SourceClosed)
    assert source.join(PATIENCE_S)


def test_closing_interrupts_a_connect_that_hangs(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    queue.silent = True
    source = start(open_timeout_s=3600)
    queue.refused()
    source.send(close(3600))
    inbox.next(SourceClosed)
    assert source.join(PATIENCE_S)


def test_closing_a_stalled_connection_does_not_wait_for_its_backlog(
    queue: ScriptedQueue, inbox: EventInbox, bodies: Bodies, start: Start
) -> None:
    source = start(close_timeout_s=0.01)
    connection = queue.accept()
    inbox.next(SourceConnected)
    connection.stop_reading()
    source.send(register(1))
    body = bodies.put(b'"' + b"y" * 900_000 + b'"')
    for seq in range(1, 21):
        source.send(
            do.ReportResult(
                source=SOURCE,
                connection=ConnectionId(1),
                seq=ReportSeq(seq),
                job_id=JobId(str(seq)),
                fence=Fence(1),
                body=body,
            )
        )
    source.send(close(0.01))
    inbox.next(SourceClosed)


def test_transfers_end_with_the_source(inbox: EventInbox, queue: ScriptedQueue, start: Start) -> None:
    source = start()
    queue.accept()
    inbox.next(SourceConnected)
    source.send(do.FetchPayload(source=SOURCE, job_id=JobId("a"), fence=Fence(1), url="file:///etc/passwd"))
    assert "http or https" in inbox.next(PayloadFetchFailed).error
    # Nobody answers there; only the abandoning ends it.
    queue.silent = True
    source.send(
        do.FetchPayload(
            source=SOURCE, job_id=JobId("b"), fence=Fence(1), url=queue.url.replace("ws:", "http:")
        )
    )
    queue.refused()
    assert source.snapshot().transfers_running == 1
    source.send(do.AbandonTransfer(source=SOURCE, job_id=JobId("b"), fence=Fence(1)))
    source.send(close())
    inbox.next(SourceClosed)
    assert source.join(PATIENCE_S)
    assert source.snapshot().transfers_running == 0


# ---------------------------------------------------------------- our own bugs


def test_a_bug_in_the_source_reaches_the_core(
    queue: ScriptedQueue, inbox: EventInbox, bodies: Bodies, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(data: bytes) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(bodies, "put", broken)
    with capture_logs():
        source = start()
        connection = queue.accept()
        inbox.next(SourceConnected)
        connection.send(job_message())
        assert "ZeroDivisionError: planted" in inbox.next(SourceFailed).error
        connection.wait_ended()
        assert source.join(PATIENCE_S)


def test_events_are_posted_one_by_one_where_nothing_better_is_offered(
    queue: ScriptedQueue, inbox: EventInbox, bodies: Bodies
) -> None:
    settings = CasolaSettings(url=queue.url, config_id="c", worker_id="w")
    source = CasolaSource(settings, bodies, inbox.post)
    source.start()
    connection = queue.accept()
    connection.send(job_message("a"))
    connection.send(job_message("b"))
    inbox.next(SourceConnected)
    assert [inbox.next(JobOffered).job_id for _ in range(2)] == ["a", "b"]
    source.send(close())
    assert source.join(PATIENCE_S)


# ---------------------------------------------------------------- a flood


def test_nothing_is_read_while_the_loop_is_far_behind(
    queue: ScriptedQueue, inbox: EventInbox, start: Start
) -> None:
    """Or a queue that sends without end would fill the memory."""
    behind = BACKLOG_MAX
    source = start(backlog=lambda: behind)
    connection = queue.accept()
    connection.send(job_message("j1"))
    assert inbox.next(SourceConnected).connection == 1
    for _ in range(5):
        source.send(register(1))
        assert connection.next()["type"] == "register"
    assert inbox.empty()
    behind = 0
    assert inbox.next(JobOffered).job_id == "j1"
    assert source.snapshot().connection == 1


def test_a_connection_that_comes_after_its_dial_was_given_up_is_closed(
    bodies: Bodies, inbox: EventInbox
) -> None:
    """Its outcome may lie in the mailbox already when the time for it is over."""
    settings = CasolaSettings(url="ws://q", config_id="c", worker_id="w")
    source = CasolaSource(settings, bodies, inbox.post)
    late = Dial("ws://q/ws", "", 1.0, lambda _: None)
    late.outcome, peer = socket.socketpair()
    with peer:
        source._take(late)
        assert peer.recv(1) == b""
    assert source.snapshot().connection == 0
