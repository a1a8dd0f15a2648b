from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Iterator
from typing import Self

import pytest

from gpuward_supervisor.sources.websocket_connection import READ_BYTES, Received, WebSocketConnection
from gpuward_supervisor.sources.websocket_frames import Binary, Oversized, Pong, mask
from support.clock import Clock
from support.scripted_queue import BINARY, CLOSE, PING, PONG, TEXT, TLS_FILE, frame

PATIENCE_S = 20


class Peer:
    """The other end: a plain socket and a reader of masked frames."""

    def __init__(self, opened: socket.socket) -> None:
        opened.settimeout(PATIENCE_S)
        self.socket = opened

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(frames))

    def take(self) -> tuple[int, bytes]:
        first, second = self._exactly(2)
        length = second & 0x7F
        if length == 126:
            length = int.from_bytes(self._exactly(2), "big")
        elif length == 127:
            length = int.from_bytes(self._exactly(8), "big")
        key = self._exactly(4)
        return first & 15, mask(key, self._exactly(length))

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            piece = self.socket.recv(size - len(data))
            assert piece, "the connection ended"
            data += piece
        return data


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ends(clock: Clock) -> Iterator[tuple[WebSocketConnection, Peer]]:
    ours, theirs = socket.socketpair()
    connection = WebSocketConnection(
        ours, message_max_bytes=100_000, ping_interval_s=30, pong_timeout_s=10, clock=clock
    )
    yield connection, Peer(theirs)
    connection.drop("test over")
    theirs.close()


def receive(connection: WebSocketConnection, count: int = 1) -> list[Received]:
    """Read until this many items have come."""
    items: list[Received] = []
    while len(items) < count:
        if not connection.unread:
            assert select.select([connection.fileno()], [], [], PATIENCE_S)[0]
        items += connection.receive()
        assert not connection.lost
    return items


def receive_until_lost(connection: WebSocketConnection) -> list[Received]:
    items: list[Received] = []
    while not connection.lost:
        assert select.select([connection.fileno()], [], [], PATIENCE_S)[0]
        items += connection.receive()
    return items


class TestMessages:
    def test_many_frames_come_with_one_read(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        peer.send(*[frame(TEXT, b"%d" % n) for n in range(50)])
        assert select.select([connection.fileno()], [], [], PATIENCE_S)[0]
        assert connection.receive() == [b"%d" % n for n in range(50)]

    def test_reading_nothing_is_nothing(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, _ = ends
        assert connection.receive() == []
        assert not connection.lost

    def test_oddities_come_out_as_such(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        peer.send(frame(BINARY, b"abc"), frame(TEXT, b"x" * 100_001), frame(TEXT, b"next"))
        binary, oversized, text = receive(connection, 3)
        assert binary == Binary(3)
        assert isinstance(oversized, Oversized)
        assert oversized.size_bytes == 100_001
        assert text == b"next"

    def test_a_read_that_fills_the_buffer_says_that_there_may_be_more(
        self, ends: tuple[WebSocketConnection, Peer]
    ) -> None:
        connection, peer = ends
        connection._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * READ_BYTES)
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * READ_BYTES)
        filler = frame(TEXT, b"y" * 60_000)
        count = READ_BYTES // len(filler) + 2
        peer.socket.setblocking(False)
        sent = 0
        data = filler * count
        received = []
        while len(received) < count:
            try:
                sent += peer.socket.send(data[sent:])
            except BlockingIOError:
                pass
            received += connection.receive()
        assert received == [b"y" * 60_000] * count

    def test_what_is_written_arrives_masked_and_in_order(
        self, ends: tuple[WebSocketConnection, Peer]
    ) -> None:
        connection, peer = ends
        connection.write(b"one")
        connection.write(b"two" * 100)
        assert connection.wants_write
        connection.flush()
        assert not connection.wants_write
        assert [peer.take(), peer.take()] == [(TEXT, b"one"), (TEXT, b"two" * 100)]
        assert connection.sent_bytes == 2 + 4 + 3 + 4 + 4 + 300

    def test_a_peer_that_does_not_read_blocks_nobody(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        message = b"x" * 3_000_000
        connection.write(message)
        connection.flush()
        assert connection.wants_write
        assert connection.unwritten_bytes > 0
        taken = b""
        while connection.wants_write:
            taken += peer.socket.recv(1 << 16)
            connection.flush()
        while len(taken) < 14 + len(message):
            taken += peer.socket.recv(1 << 16)
        assert mask(taken[10:14], taken[14:]) == message

    def test_a_long_message_is_written_from_its_pieces(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        class Pieces(Iterator[bytes]):
            left = 3

            def __iter__(self) -> Self:
                return self

            def __next__(self) -> bytes:
                self.left -= 1
                if self.left < 0:
                    raise StopIteration
                return b"abc"

            def close(self) -> None:
                pass

        connection, peer = ends
        connection.write_long(b"<", Pieces(), 9, b">")
        connection.flush()
        assert peer.take() == (TEXT, b"<abcabcabc>")


class TestEnds:
    def test_an_end_without_a_close_frame(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        peer.send(frame(TEXT, b"last"))
        peer.socket.close()
        assert receive_until_lost(connection) == [b"last"]
        assert connection.lost == "closed by the peer without a close frame"
        assert connection.fileno() == -1

    @pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000])
    def test_a_close_frame_is_answered_with_its_code(
        self, ends: tuple[WebSocketConnection, Peer], code: int
    ) -> None:
        connection, peer = ends
        peer.send(frame(TEXT, b"last"), frame(CLOSE, code.to_bytes(2, "big") + b"why"))
        assert receive_until_lost(connection) == [b"last"]
        assert connection.lost == f"closed by the peer with {code} why"
        assert connection.close_code == code
        assert peer.take() == (CLOSE, code.to_bytes(2, "big"))

    def test_a_close_frame_without_a_code_is_answered_with_1000(
        self, ends: tuple[WebSocketConnection, Peer]
    ) -> None:
        connection, peer = ends
        peer.send(frame(CLOSE, b""))
        receive_until_lost(connection)
        assert peer.take() == (CLOSE, b"\x03\xe8")

    def test_a_broken_rule_closes_with_1002(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        peer.send(frame(TEXT, b"before"), b"\xf1\x00")
        assert receive_until_lost(connection) == [b"before"]
        assert "broke the protocol" in connection.lost
        opcode, payload = peer.take()
        assert (opcode, payload[:2]) == (CLOSE, b"\x03\xea")

    def test_writing_to_a_peer_that_is_gone_loses_the_connection(
        self, ends: tuple[WebSocketConnection, Peer]
    ) -> None:
        connection, peer = ends
        peer.socket.close()
        connection.write(b"x")
        connection.flush()
        assert connection.lost.startswith("writing failed")
        assert not connection.wants_write

    def test_everything_is_harmless_on_a_lost_connection(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, _ = ends
        connection.drop("why")
        connection.write(b"x")
        connection.ping(b"b1")
        connection.flush()
        connection.tick(clock.pass_s(100))
        connection.drop("later")
        assert connection.receive() == []
        assert connection.lost == "why"

    def test_our_close_waits_for_the_peers(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        connection.begin_close(1000, "bye")
        connection.flush()
        assert peer.take() == (CLOSE, b"\x03\xe8bye")
        assert not connection.lost
        peer.send(frame(TEXT, b"late"), frame(CLOSE, b"\x03\xe8"))
        assert receive_until_lost(connection) == [b"late"]
        peer.socket.setblocking(True)
        assert peer.socket.recv(10) == b"", "a close frame is not answered twice"


class TestPings:
    def test_the_peers_pings_are_answered(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        peer.send(frame(PING, b"hello"), frame(TEXT, b"x"))
        receive(connection)
        connection.flush()
        assert peer.take() == (PONG, b"hello")

    def test_pongs_do_not_pile_up_for_a_peer_that_does_not_read(
        self, ends: tuple[WebSocketConnection, Peer]
    ) -> None:
        connection, peer = ends
        connection.write(b"x" * 2_000_000)
        before = connection.unwritten_bytes
        peer.send(frame(PING, b"hello"), frame(TEXT, b"x"))
        receive(connection)
        assert connection.unwritten_bytes == before

    def test_the_pong_of_our_ping_comes_out(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        connection.ping(b"b7")
        connection.flush()
        assert peer.take() == (PING, b"b7")
        peer.send(frame(PONG, b"b7"))
        assert receive(connection) == [Pong(b"b7")]

    def test_a_later_pong_answers_earlier_pings_too(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        connection.ping(b"b1")
        connection.ping(b"b2")
        connection.ping(b"b3")
        peer.send(frame(PONG, b"b2"))
        assert receive(connection, 2) == [Pong(b"b1"), Pong(b"b2")]

    def test_pongs_that_nobody_asked_for_mean_nothing(self, ends: tuple[WebSocketConnection, Peer]) -> None:
        connection, peer = ends
        connection.ping(b"b1")
        peer.send(frame(PONG, b""), frame(PONG, b"b2"), frame(TEXT, b"x"))
        assert receive(connection) == [b"x"]

    def test_a_ping_goes_out_every_interval(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        for payload in (b"k1", b"k2"):
            assert connection.next_deadline() == clock() + 30
            connection.tick(clock.pass_s(29.9))
            assert not connection.wants_write
            connection.tick(clock.pass_s(0.1))
            connection.flush()
            assert peer.take() == (PING, payload)
            assert connection.next_deadline() == clock() + 10
            peer.send(frame(PONG, payload), frame(TEXT, b"x"))
            assert receive(connection) == [b"x"], "the pong of a keepalive is nobody else's business"

    def test_a_pong_that_does_not_come_loses_the_connection(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        connection.tick(clock.pass_s(30))
        connection.flush()
        assert peer.take()[0] == PING
        connection.tick(clock.pass_s(9.9))
        assert not connection.lost
        connection.tick(clock.pass_s(0.1))
        assert connection.lost == "no pong within 10 s of a ping"

    def test_a_pong_that_we_did_not_read_is_not_late(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        connection.tick(clock.pass_s(30))
        connection.flush()
        assert peer.take()[0] == PING
        connection.not_reading(clock.pass_s(9))
        connection.tick(clock.pass_s(9))
        assert not connection.lost
        connection.tick(clock.pass_s(1))
        assert connection.lost == "no pong within 10 s of a ping"

    def test_messages_of_a_peer_that_does_not_read_do_not_replace_a_pong(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        connection.tick(clock.pass_s(30))
        connection.flush()
        peer.take()
        clock.pass_s(9)
        peer.send(frame(TEXT, b"x"))
        receive(connection)
        connection.tick(clock.pass_s(1))
        assert connection.lost

    def test_a_long_message_on_its_way_in_gives_the_pong_time(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        connection.tick(clock.pass_s(30))
        connection.flush()
        peer.take()
        clock.pass_s(9)
        long = frame(TEXT, b"x" * 90_000)
        peer.send(long[:1000])
        assert select.select([connection.fileno()], [], [], PATIENCE_S)[0]
        connection.receive()
        connection.tick(clock.pass_s(9))
        assert not connection.lost
        peer.send(long[1000:], frame(PONG, b"k1"))
        receive(connection)
        connection.tick(clock.pass_s(10))
        assert not connection.lost

    def test_bytes_on_their_way_out_before_a_ping_give_it_time(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, peer = ends
        connection.write(b"x" * 3_000_000)
        connection.flush()
        connection.tick(clock.pass_s(30))
        assert connection.unwritten_bytes > 1_000_000
        for _ in range(3):
            clock.pass_s(9)
            peer.socket.recv(100_000)
            connection.flush()
            connection.tick(clock())
            assert not connection.lost
        connection.tick(clock.pass_s(10))
        # The peer may have taken bytes from our kernel since; but after that nothing moves any more.
        connection.tick(clock.pass_s(10))
        assert connection.lost

    def test_a_barrier_that_is_not_answered_is_no_reason_to_give_up(
        self, ends: tuple[WebSocketConnection, Peer], clock: Clock
    ) -> None:
        connection, _ = ends
        connection.ping(b"b1")
        connection.flush()
        connection.tick(clock.pass_s(20))
        assert not connection.lost


def test_over_tls_records_beyond_the_first_are_not_left_behind(clock: Clock) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    raw = socket.create_connection(listener.getsockname())
    accepted, _ = listener.accept()
    listener.close()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(TLS_FILE)
    client_context = ssl.create_default_context(cafile=str(TLS_FILE))
    theirs = server_context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
    ours = client_context.wrap_socket(raw, server_hostname="localhost", do_handshake_on_connect=False)
    for end in (ours, theirs):
        end.setblocking(False)
    done = 0
    while done < 2:
        done = 0
        for end in (ours, theirs):
            try:
                end.do_handshake()
                done += 1
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                pass
    theirs.setblocking(True)
    connection = WebSocketConnection(
        ours, message_max_bytes=1 << 20, ping_interval_s=30, pong_timeout_s=10, clock=clock
    )
    peer = Peer(theirs)
    # Small enough for the socket's buffers, large enough for several TLS records.
    peer.send(*[frame(TEXT, b"x" * 10_000)] * 5)
    assert receive(connection, 5) == [b"x" * 10_000] * 5
    connection.write(b"answer")
    connection.flush()
    assert peer.take() == (TEXT, b"answer")
    connection.drop("test over")
    theirs.close()
