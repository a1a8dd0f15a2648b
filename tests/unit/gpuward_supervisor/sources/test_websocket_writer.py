from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import pytest

from gpuward_supervisor.sources.websocket_frames import PING, TEXT, mask
from gpuward_supervisor.sources.websocket_writer import PIECE_BYTES, FrameWriter


class Wire:
    """Takes at most ``step`` bytes at a time; refuses while ``full``."""

    def __init__(self, step: int = 1 << 30) -> None:
        self.step = step
        self.taken = bytearray()
        self.full = False

    def send(self, data: memoryview) -> int:
        if self.full:
            raise BlockingIOError
        self.taken += data[: self.step]
        return min(self.step, len(data))

    def payloads(self) -> list[tuple[int, bytes]]:
        found = []
        data = bytes(self.taken)
        while data:
            opcode, length, start = data[0] & 15, data[1] & 0x7F, 2
            if length == 126:
                length, start = int.from_bytes(data[2:4], "big"), 4
            elif length == 127:
                length, start = int.from_bytes(data[2:10], "big"), 10
            key = data[start : start + 4]
            assert len(data) >= start + 4 + length
            found.append((opcode, mask(key, data[start + 4 : start + 4 + length])))
            data = data[start + 4 + length :]
        return found


class Pieces(Iterator[bytes]):
    def __init__(self, *pieces: bytes) -> None:
        self._pieces = iter(pieces)
        self.asked = 0
        self.closed = False

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        self.asked += 1
        return next(self._pieces)

    def close(self) -> None:
        self.closed = True


def test_frames_go_out_in_order() -> None:
    writer, wire = FrameWriter(), Wire()
    writer.add(TEXT, b"a")
    writer.add(PING, b"p")
    assert writer.size_bytes > 0
    writer.write_to(wire.send)
    assert wire.payloads() == [(TEXT, b"a"), (PING, b"p")]
    assert writer.size_bytes == 0
    assert writer.taken_bytes == len(wire.taken)


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_socket_that_takes_little_gets_everything(step: int) -> None:
    writer, wire = FrameWriter(), Wire(step)
    writer.add(TEXT, b"a" * 3000)
    writer.add(TEXT, b"b")
    writer.write_to(wire.send)
    assert wire.payloads() == [(TEXT, b"a" * 3000), (TEXT, b"b")]


def test_nothing_is_lost_when_the_socket_is_full() -> None:
    writer, wire = FrameWriter(), Wire()
    writer.add(TEXT, b"a")
    wire.full = True
    with pytest.raises(BlockingIOError):
        writer.write_to(wire.send)
    writer.add(TEXT, b"b")
    wire.full = False
    writer.write_to(wire.send)
    assert wire.payloads() == [(TEXT, b"a"), (TEXT, b"b")]


def test_every_frame_has_a_key_of_its_own() -> None:
    writer, wire = FrameWriter(), Wire()
    for _ in range(600):
        writer.add(TEXT, b"")
    writer.write_to(wire.send)
    assert len({bytes(wire.taken[i + 2 : i + 6]) for i in range(0, len(wire.taken), 6)}) > 590


def test_pieces_handed_to_the_socket_are_bounded() -> None:
    sizes = []

    def send(data: memoryview) -> int:
        sizes.append(len(data))
        return len(data)

    writer = FrameWriter()
    writer.add(TEXT, b"x" * (3 * PIECE_BYTES))
    writer.write_to(send)
    assert max(sizes) == PIECE_BYTES


@pytest.mark.parametrize("step", [1 << 30, 999])
def test_a_long_message_is_made_of_its_pieces(step: int) -> None:
    writer, wire = FrameWriter(), Wire(step)
    pieces = Pieces(b"1" * 1001, b"2" * 70_003, b"3")
    writer.add(TEXT, b"first")
    writer.add_long_text(b"<", pieces, 71_005, b">")
    writer.add(PING, b"behind")
    writer.write_to(wire.send)
    middle = b"1" * 1001 + b"2" * 70_003 + b"3"
    assert wire.payloads() == [(TEXT, b"first"), (TEXT, b"<" + middle + b">"), (PING, b"behind")]
    assert pieces.closed
    assert writer.size_bytes == 0


def test_a_long_message_is_read_no_faster_than_it_is_taken() -> None:
    writer, wire = FrameWriter(), Wire()
    pieces = Pieces(*[b"x" * PIECE_BYTES] * 10)
    writer.add_long_text(b"<", pieces, 10 * PIECE_BYTES, b">")
    wire.full = True
    with pytest.raises(BlockingIOError):
        writer.write_to(wire.send)
    assert pieces.asked <= 2
    assert writer.size_bytes > 10 * PIECE_BYTES


@pytest.mark.parametrize("said", [2, 4])
def test_a_long_message_of_another_length_than_said_breaks_the_connection(said: int) -> None:
    writer, wire = FrameWriter(), Wire()
    writer.add_long_text(b"<", Pieces(b"xxx"), said, b">")
    with pytest.raises(OSError, match="message in pieces"):
        writer.write_to(wire.send)


def test_clearing_closes_what_was_to_be_read() -> None:
    writer = FrameWriter()
    pieces = Pieces(b"xxx")
    writer.add(TEXT, b"a")
    writer.add_long_text(b"<", pieces, 3, b">")
    writer.clear()
    assert pieces.closed
    assert writer.size_bytes == 0
