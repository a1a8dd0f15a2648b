from __future__ import annotations

import json
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpuward_ipc.types import Fence, JobId
from gpuward_supervisor.bodies import Bodies
from gpuward_supervisor.core import commands as do
from gpuward_supervisor.core.events import ConnectionId, ReportsDelivered, ReportSeq, SupervisorEvent
from gpuward_supervisor.sources import casola_link
from gpuward_supervisor.sources.base import CasolaSettings
from gpuward_supervisor.sources.casola_link import UNWRITTEN_MAX_BYTES, CasolaLink, LinkCounts
from gpuward_supervisor.sources.websocket_connection import WebSocketConnection
from gpuward_supervisor.sources.websocket_frames import Pong
from support.clock import Clock
from support.scripted_queue import QueueConnection

SETTINGS = CasolaSettings(url="ws://q", config_id="c", worker_id="w", barrier_interval_s=1.0)
PATIENCE_S = 20
ON: dict[str, Any] = {"source": SETTINGS.name, "connection": ConnectionId(1)}
REGISTER = do.Register(**ON, capacity=4)


class Ends:
    """A link, and the queue at its other end."""

    def __init__(self, bodies: Bodies) -> None:
        ours, theirs = socket.socketpair()
        self.clock = Clock()
        self.bodies = bodies
        self.counts = LinkCounts()
        websocket = WebSocketConnection(
            ours, message_max_bytes=1000, ping_interval_s=3600, pong_timeout_s=10, clock=self.clock
        )
        self.link = CasolaLink(ConnectionId(1), websocket, SETTINGS, bodies, self.counts, self.clock())
        self.queue = QueueConnection(theirs, {}, "/ws", answers_pings=True)

    def write(self, *commands: Any, hurry: bool = False) -> None:
        for command in commands:
            self.link.send(command)
        self.link.write(self.clock(), hurry=hurry)

    def result(self, seq: int, body: bytes = b'{"x":1}', job_id: str = "a") -> do.ReportResult:
        kept = self.bodies.put(body)
        return do.ReportResult(**ON, seq=ReportSeq(seq), job_id=JobId(job_id), fence=Fence(7), body=kept)

    def events(self) -> list[SupervisorEvent]:
        """Wait for input and turn its pongs into events."""
        assert select.select([self.link.descriptor], [], [], PATIENCE_S)[0]
        pongs = [item for item in self.link.receive() if isinstance(item, Pong)]
        return [event for pong in pongs for event in self.link.pong(pong)]

    def read_until_lost(self) -> None:
        while not self.link.lost:
            self.events()


@pytest.fixture
def ends(tmp_path: Path) -> Iterator[Ends]:
    both = Ends(Bodies(tmp_path / "spool"))
    yield both
    both.link.drop("test over")
    both.queue.end()


def test_every_command_becomes_its_message(ends: Ends) -> None:
    of_a_job: dict[str, Any] = {"job_id": JobId("a"), "fence": Fence(7)}
    ends.write(
        REGISTER,
        do.Pause(**ON),
        do.Resume(**ON),
        do.AnnounceDrain(**ON),
        ends.result(1),
        do.ReportResultRef(**ON, **of_a_job, seq=ReportSeq(2)),
        do.ReportError(**ON, **of_a_job, seq=ReportSeq(3), error="no"),
        do.ReportProgress(**ON, **of_a_job, status_message="processing"),
        do.ReportProgress(**ON, **of_a_job, progress=0.5),
    )
    about_a = {"job_id": "a", "fence_token": 7}
    assert [ends.queue.next() for _ in range(9)] == [
        {"type": "register", "worker_id": "w", "config_id": "c", "capacity": 4},
        {"type": "pause"},
        {"type": "resume"},
        {"type": "drain"},
        {"type": "job_result", **about_a, "result": {"x": 1}},
        {"type": "job_result_ref", **about_a},
        {"type": "job_error", **about_a, "error": "no"},
        {"type": "job_progress", **about_a, "status_message": "processing"},
        {"type": "job_progress", **about_a, "progress": 0.5},
    ]
    assert ends.counts.reports_written == 3


def test_register_is_first_whatever_was_sent_before_it(ends: Ends) -> None:
    ends.write(do.Pause(**ON), ends.result(1))
    assert not ends.link.wants_write
    ends.write(REGISTER)
    assert [ends.queue.next()["type"] for _ in range(3)] == ["register", "pause", "job_result"]


def test_a_second_register_keeps_its_place(ends: Ends) -> None:
    ends.write(REGISTER, do.Pause(**ON), do.Register(**ON, capacity=2))
    assert [ends.queue.next()["type"] for _ in range(3)] == ["register", "pause", "register"]


def test_a_result_is_spliced_in_as_it_came(ends: Ends) -> None:
    ends.write(REGISTER, ends.result(1, b'{ "x" : 1.0 }'))
    ends.queue.next()
    assert b'"result":{ "x" : 1.0 },' in ends.queue.next_bytes()


def test_a_result_is_streamed_from_its_file(ends: Ends) -> None:
    result = json.dumps({"x": "y" * 700_000}).encode()
    path = ends.bodies.new_spool_path()
    path.write_bytes(result)
    body = ends.bodies.put_file(path, len(result))
    ends.write(REGISTER)
    ends.link.send(do.ReportResult(**ON, seq=ReportSeq(1), job_id=JobId("a"), fence=Fence(7), body=body))
    ends.bodies.forget(body)
    while ends.link.wants_write:
        ends.link.write(ends.clock(), hurry=False)
    ends.queue.next()
    assert (
        ends.queue.next_bytes() == b'{"type":"job_result","job_id":"a","result":%b,"fence_token":7}' % result
    )


def test_a_result_that_cannot_be_read_back_is_reported_as_an_error(ends: Ends, tmp_path: Path) -> None:
    body = ends.bodies.put_file(tmp_path / "gone", 5)
    report = do.ReportResult(**ON, seq=ReportSeq(1), job_id=JobId("a"), fence=Fence(7), body=body)
    ends.write(REGISTER, report)
    ends.queue.next()
    message = ends.queue.next()
    assert (message["type"], message["job_id"], message["fence_token"]) == ("job_error", "a", 7)


def test_a_result_that_was_forgotten_meanwhile_is_dropped(ends: Ends) -> None:
    report = ends.result(1)
    ends.bodies.forget(report.body)
    ends.write(REGISTER, report, do.Pause(**ON))
    assert [ends.queue.next()["type"] for _ in range(2)] == ["register", "pause"]
    assert (ends.counts.reports_written, ends.counts.commands_dropped) == (0, 1)


def test_behind_a_backlog_commands_wait_as_commands_and_keep_their_order(ends: Ends) -> None:
    ends.queue.stop_reading()
    ends.write(REGISTER)
    large = b'"' + b"y" * 900_000 + b'"'
    for seq in range(1, 12):
        ends.link.send(ends.result(seq, large, job_id=str(seq)))
    ends.link.send(do.Pause(**ON))
    assert ends.link.unwritten_bytes < UNWRITTEN_MAX_BYTES + 1_000_000
    ends.queue.go_on_reading()
    while ends.link.wants_write:
        assert select.select([], [ends.link.descriptor], [], PATIENCE_S)[1]
        ends.link.write(ends.clock(), hurry=False)
    found = [ends.queue.next() for _ in range(13)]
    assert [m.get("job_id", m["type"]) for m in found] == ["register", *map(str, range(1, 12)), "pause"]


def test_a_socket_that_takes_everything_leaves_nothing_held(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(casola_link, "UNWRITTEN_MAX_BYTES", 100)
    ends.write(*[ends.result(seq, job_id=str(seq)) for seq in range(1, 20)], REGISTER)
    assert not ends.link.wants_write
    assert [ends.queue.next().get("job_id") for _ in range(20)] == [None, *map(str, range(1, 20))]


def test_nothing_is_written_on_a_lost_link(ends: Ends) -> None:
    ends.link.drop("gone")
    ends.write(REGISTER, ends.result(1))
    assert ends.counts.commands_dropped == 2
    assert not ends.link.wants_write


# ---------------------------------------------------------------- delivery barrier


def test_a_pong_proves_that_reports_were_read(ends: Ends) -> None:
    ends.write(REGISTER, ends.result(4), ends.result(5))
    assert not ends.link.delivered
    assert ends.events() == [ReportsDelivered(**ON, seq=ReportSeq(5))]
    assert ends.link.delivered
    assert ends.queue.pings == [b"b5"]


def test_a_pong_of_another_ping_proves_nothing(ends: Ends) -> None:
    """The keep-alive's, or one that nobody asked for: the report may be unread."""
    ends.queue.answers_pings = False
    ends.write(REGISTER, ends.result(1), hurry=True)
    assert ends.link.pong(Pong(b"k7")) == []
    assert ends.link.pong(Pong(b"b2")) == []
    assert not ends.link.delivered
    assert [type(event) for event in ends.link.pong(Pong(b"b1"))] == [ReportsDelivered]


def test_there_is_no_barrier_without_a_report(ends: Ends) -> None:
    progress = do.ReportProgress(**ON, job_id=JobId("a"), fence=Fence(7))
    ends.write(REGISTER, progress, do.Pause(**ON))
    for _ in range(3):
        ends.queue.next()
    assert ends.queue.pings == []


def test_barriers_keep_their_distance_and_one_is_enough_for_many_reports(ends: Ends) -> None:
    ends.write(REGISTER, ends.result(1))
    ends.events()
    ends.write(ends.result(2))
    ends.write(ends.result(3))
    for _ in range(4):
        ends.queue.next()
    assert ends.queue.pings == [b"b1"]
    assert ends.link.next_deadline() == ends.clock() + SETTINGS.barrier_interval_s
    ends.clock.pass_s(SETTINGS.barrier_interval_s)
    ends.write()
    assert ends.events() == [ReportsDelivered(**ON, seq=ReportSeq(3))]


def test_only_one_barrier_is_under_way(ends: Ends) -> None:
    ends.queue.answers_pings = False
    ends.write(REGISTER, ends.result(1))
    ends.clock.pass_s(100)
    ends.write(ends.result(2))
    for _ in range(3):
        ends.queue.next()
    assert ends.queue.pings == [b"b1"]
    ends.queue.pong(b"b1")
    assert ends.events() == [ReportsDelivered(**ON, seq=ReportSeq(1))]
    ends.queue.answers_pings = True
    ends.write()
    assert ends.events() == [ReportsDelivered(**ON, seq=ReportSeq(2))]


def test_a_barrier_can_be_hurried(ends: Ends) -> None:
    ends.write(REGISTER, ends.result(1))
    ends.events()
    ends.write(ends.result(2), hurry=True)
    assert ends.events() == [ReportsDelivered(**ON, seq=ReportSeq(2))]


# ---------------------------------------------------------------- closing


def test_closing_waits_for_the_last_report_to_be_read(ends: Ends) -> None:
    ends.queue.answers_pings = False
    ends.write(REGISTER, ends.result(1))
    by_s = ends.clock() + 5
    assert ends.link.close_when_delivered(ends.clock(), by_s) == by_s
    for _ in range(2):
        ends.queue.next()
    ends.queue.pong(b"b1")
    ends.events()
    assert ends.link.close_when_delivered(ends.clock(), by_s) == ends.clock() + SETTINGS.close_timeout_s
    ends.write()
    ends.read_until_lost()
    ends.queue.wait_ended()
    assert ends.queue.close_payload == b"\x03\xe8"


def test_closing_waits_no_longer_than_it_may(ends: Ends) -> None:
    ends.queue.answers_pings = False
    ends.write(REGISTER, ends.result(1))
    by_s = ends.clock() + 5
    ends.clock.pass_s(5)
    by_s = ends.link.close_when_delivered(ends.clock(), by_s)
    ends.write()
    ends.read_until_lost()
    ends.queue.wait_ended()
    assert ends.queue.close_payload == b"\x03\xe8"
    assert by_s == ends.clock() + SETTINGS.close_timeout_s


def test_a_queue_that_does_not_answer_a_close_frame_is_left(ends: Ends) -> None:
    ends.queue.stop_reading()
    by_s = ends.link.close_when_delivered(ends.clock(), ends.clock() + 5)
    ends.write()
    assert not ends.link.lost
    ends.link.close_when_delivered(ends.clock.pass_s(SETTINGS.close_timeout_s), by_s)
    assert "did not answer our close frame" in ends.link.lost
