from __future__ import annotations

import itertools

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websocket import ABNF

from gpuward_supervisor.sources import websocket_frames as ws
from gpuward_supervisor.sources.websocket_frames import (
    Binary,
    CloseFrame,
    FrameReader,
    Oversized,
    Ping,
    Pong,
    Violation,
)
from support.scripted_queue import frame

LIMIT = 100_000
#: A busy machine is no reason to fail.
UNTIMED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def read(*pieces: bytes, limit: int = LIMIT, skip_max: int = ws.SKIP_MAX_BYTES) -> list[ws.Inbound]:
    reader = FrameReader(limit, skip_max)
    return [item for piece in pieces for item in reader.feed(piece)]


def test_many_frames_come_out_of_one_read() -> None:
    data = frame(1, b"a") + frame(1, b"") + frame(9, b"p") + frame(10, b"q") + frame(1, b"b" * 300)
    assert read(data) == [b"a", b"", Ping(b"p"), Pong(b"q"), b"b" * 300]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, LIMIT])
def test_every_length_form(size: int) -> None:
    assert read(frame(1, b"x" * size)) == [b"x" * size]


@given(
    st.lists(st.integers(0, 200) | st.integers(65530, 65540), max_size=3),
    st.lists(st.integers(0, 400) | st.integers(0, 140_000), max_size=10),
)
@UNTIMED
@pytest.mark.slow
def test_the_cut_into_reads_does_not_matter(sizes: list[int], cuts: list[int]) -> None:
    messages = [bytes([65 + number]) * size for number, size in enumerate(sizes)]
    data = b"".join(frame(1, message) for message in messages)
    reader = FrameReader(LIMIT)
    bounds = [0, *sorted(cuts), len(data)]
    pieces = [data[start:stop] for start, stop in itertools.pairwise(bounds)]
    assert [item for piece in pieces for item in reader.feed(piece)] == messages
    assert not reader.inside_message


def test_one_byte_at_a_time() -> None:
    data = frame(1, b"x" * 130) + frame(9, b"p") + frame(1, b"y" * 70_000) + frame(8, b"\x03\xe8bye")
    assert read(*(data[i : i + 1] for i in range(len(data)))) == [
        b"x" * 130,
        Ping(b"p"),
        b"y" * 70_000,
        CloseFrame(1000, "bye"),
    ]


def test_fragments_are_joined_and_control_frames_may_come_between() -> None:
    data = frame(1, b"ab", final=False) + frame(9, b"p") + frame(0, b"", final=False) + frame(0, b"cd")
    assert read(data + frame(1, b"e")) == [Ping(b"p"), b"abcd", b"e"]


def test_an_empty_last_fragment_ends_a_message() -> None:
    assert read(frame(1, b"ab", final=False) + frame(0, b"")) == [b"ab"]


def test_inside_a_message_is_told() -> None:
    reader = FrameReader(LIMIT)
    reader.feed(frame(1, b"ab", final=False))
    assert reader.inside_message
    reader.feed(frame(0, b"cd"))
    assert not reader.inside_message
    reader.feed(frame(1, b"x" * 70_000)[:100])
    assert reader.inside_message


def test_binary_messages_are_counted_not_kept() -> None:
    assert read(frame(2, b"ab", final=False) + frame(0, b"cde") + frame(1, b"x")) == [Binary(5), b"x"]


@pytest.mark.parametrize("piece", [7, 1000, 1 << 20])
def test_an_oversized_message_leaves_its_ends_and_the_connection(piece: int) -> None:
    message = b"H" * 90_000 + b"." * 50_000 + b"T" * 9_000
    data = frame(1, message) + frame(1, b"next")
    out = read(*(data[i : i + piece] for i in range(0, len(data), piece)))
    head, tail = message[: ws.HEAD_BYTES], message[-ws.TAIL_BYTES :]
    assert out == [Oversized(head, tail, len(message)), b"next"]


def test_an_oversized_message_in_fragments_is_recognised_when_it_gets_too_long() -> None:
    parts = [b"a" * 60_000, b"b" * 60_000, b"c" * 10]
    data = frame(1, parts[0], final=False) + frame(0, parts[1], final=False) + frame(0, parts[2])
    whole = b"".join(parts)
    assert read(data) == [Oversized(whole[: ws.HEAD_BYTES], whole[-ws.TAIL_BYTES :], len(whole))]


def test_a_message_just_beyond_the_limit_keeps_overlapping_ends() -> None:
    assert read(frame(1, b"x" * 11), limit=10) == [Oversized(b"x" * 11, b"x" * 11, 11)]


def test_what_is_kept_of_an_oversized_message_is_bounded() -> None:
    reader = FrameReader(10)
    reader.feed(frame(1, b"x" * 3_000_000)[:10])
    for _ in range(20):
        reader.feed(b"x" * 100_000)
        assert len(reader._text) + len(reader._tail or b"") <= ws.HEAD_BYTES + ws.TAIL_BYTES


def test_a_message_beyond_all_measure_is_a_violation_before_its_bytes_come() -> None:
    (out,) = read(frame(1, b"x" * 2000)[:4], limit=10, skip_max=1000)
    assert isinstance(out, Violation)
    assert out.code == ws.MESSAGE_TOO_BIG


def test_fragments_add_up_to_the_measure() -> None:
    data = frame(2, b"x" * 600, final=False) + frame(0, b"x" * 600)
    (out,) = read(data, skip_max=1000)
    assert isinstance(out, Violation)


def test_a_length_of_64_bits_is_a_violation() -> None:
    (out,) = read(b"\x81\x7f" + b"\xff" * 8)
    assert isinstance(out, Violation)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\x81\x81abcdx", id="masked by the server"),
        pytest.param(b"\xc1\x01x", id="reserved bit"),
        pytest.param(b"\x83\x00", id="unknown data opcode"),
        pytest.param(b"\x8b\x00", id="unknown control opcode"),
        pytest.param(b"\x09\x00", id="ping in pieces"),
        pytest.param(b"\x89\x7e\x00\x7e" + b"x" * 126, id="long ping"),
        pytest.param(b"\x80\x00", id="continuation of nothing"),
        pytest.param(frame(1, b"a", final=False) + frame(1, b"b"), id="message inside a message"),
        pytest.param(b"\x88\x01\x03", id="half a close code"),
    ],
)
def test_a_broken_rule_is_a_violation_and_the_end(data: bytes) -> None:
    reader = FrameReader(LIMIT)
    out = reader.feed(frame(1, b"before") + data + frame(1, b"after"))
    assert out[0] == b"before"
    assert isinstance(out[-1], Violation)
    assert out[-1].code == ws.PROTOCOL_ERROR
    assert len(out) == 2
    assert reader.feed(frame(1, b"later")) == []


def test_a_close_frame_is_the_end() -> None:
    reader = FrameReader(LIMIT)
    assert reader.feed(frame(8, b"") + frame(1, b"x")) == [CloseFrame(ws.NO_STATUS, "")]
    assert reader.feed(frame(1, b"later")) == []


def test_a_close_reason_in_bad_utf8_is_read_all_the_same() -> None:
    assert read(frame(8, b"\x03\xf3\xff")) == [CloseFrame(1011, "\ufffd")]


@given(st.binary(max_size=400))
@UNTIMED
def test_no_bytes_make_it_raise(data: bytes) -> None:
    read(data, limit=50)


# ---------------------------------------------------------------- outbound


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 125, 126, 65535, 65536])
def test_a_frame_is_what_the_library_would_send(size: int) -> None:
    payload = bytes(i % 251 for i in range(size))
    key = b"\x01\x80\xff\x10"
    theirs = ABNF.create_frame(payload, ABNF.OPCODE_BINARY)
    theirs.get_mask_key = lambda length: key
    assert ws.frame_header(ws.BINARY, size) + key + ws.mask(key, payload) == theirs.format()


def test_masking_twice_is_nothing() -> None:
    assert ws.mask(b"abcd", ws.mask(b"abcd", b"hello")) == b"hello"


def test_a_close_reason_is_cut_between_characters() -> None:
    payload = ws.close_payload(1000, "ä" * 100)
    assert len(payload) <= 125
    assert payload[2:].decode() == "ä" * 61
