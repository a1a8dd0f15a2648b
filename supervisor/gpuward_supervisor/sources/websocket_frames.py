"""RFC 6455 frames as the client sees them: bytes in, messages out; no socket, no clock.

The frame reader of the websocket-client library can only raise when a message is too long, which costs the
connection and every other job on it. This one skips such a message while it streams past, keeping its first
and last bytes so that the job inside can still be answered; and it takes many frames out of one read.
"""

from __future__ import annotations

import msgspec

TEXT = 0x1
BINARY = 0x2
CLOSE = 0x8
PING = 0x9
PONG = 0xA

NORMAL_CLOSURE = 1000
PROTOCOL_ERROR = 1002
#: Stands for a close frame without a code; never sent.
NO_STATUS = 1005
MESSAGE_TOO_BIG = 1009

#: What is kept of a message that is too long: its first and its last bytes.
HEAD_BYTES = 64 * 1024
TAIL_BYTES = 8 * 1024
#: A message longer than this is not even skipped: reading it would block the connection for too long.
SKIP_MAX_BYTES = 1024 * 1024 * 1024

_CONTROL_MAX_BYTES = 125
_FINAL_TEXT = 0x80 | TEXT


class Ping(msgspec.Struct, frozen=True, gc=False):
    """The peer wants to know whether we are there: answer with the same payload."""

    payload: bytes


class Pong(msgspec.Struct, frozen=True, gc=False):
    """The peer has read the ping with this payload, and everything before it."""

    payload: bytes


class CloseFrame(msgspec.Struct, frozen=True, gc=False):
    """The peer ends the connection; nothing follows."""

    code: int
    reason: str


class Binary(msgspec.Struct, frozen=True, gc=False):
    """A binary message; its content is not kept, for nothing here speaks binary."""

    size_bytes: int


class Oversized(msgspec.Struct, frozen=True, gc=False):
    """A text message longer than the limit; only its two ends are kept."""

    head: bytes
    tail: bytes
    size_bytes: int


class Violation(msgspec.Struct, frozen=True, gc=False):
    """The peer broke the protocol: close with this code; nothing that follows is read."""

    code: int
    reason: str


#: A text message is its bytes, not checked for being UTF-8: whoever decodes it finds out.
Inbound = bytes | bytearray | Ping | Pong | CloseFrame | Binary | Oversized | Violation


class FrameReader:
    """Cuts the peer's bytes into messages."""

    def __init__(self, message_max_bytes: int, skip_max_bytes: int = SKIP_MAX_BYTES) -> None:
        """Start at the beginning of a connection.

        Args:
            message_max_bytes: a longer text message is skipped and comes out as ``Oversized``.
            skip_max_bytes: a longer message of any kind is a violation.
        """
        self._message_max_bytes = message_max_bytes
        self._skip_max_bytes = skip_max_bytes
        #: Bytes of a header or of a control frame that is not complete yet.
        self._rest = b""
        #: Payload bytes that the current data frame still lacks.
        self._left = 0
        self._final = True
        #: Kind of the message being read, 0 between messages.
        self._kind = 0
        self._size_bytes = 0
        self._text = bytearray()
        self._tail: bytearray | None = None
        self._ended = False

    @property
    def inside_message(self) -> bool:
        """A message has begun and its end has not come yet."""
        return self._kind != 0

    def feed(self, data: bytes) -> list[Inbound]:
        """Take the next bytes; returns what they complete, in order.

        A ``CloseFrame`` or a ``Violation`` is always the last item ever returned.
        """
        out: list[Inbound] = []
        if self._ended:
            return out
        buffer = self._rest + data if self._rest else data
        size = len(buffer)
        position = 0
        while True:
            if self._left:
                stop = min(position + self._left, size)
                self._absorb(buffer[position:stop])
                self._left -= stop - position
                position = stop
                if self._left:
                    break
                self._end_frame(out)
            if size - position < 2:
                break
            first = buffer[position]
            length = buffer[position + 1]
            start = position + 2
            if length >= 126:
                if length == 126:
                    if size < position + 4:
                        break
                    length = buffer[position + 2] << 8 | buffer[position + 3]
                    start = position + 4
                elif length == 127:
                    if size < position + 10:
                        break
                    length = int.from_bytes(buffer[position + 2 : position + 10], "big")
                    start = position + 10
                else:
                    return self._violate(out, PROTOCOL_ERROR, "a masked frame, which only a client may send")
            stop = start + length
            if first == _FINAL_TEXT and stop <= size and not self._kind and length <= self._message_max_bytes:
                # The common case, kept short: one whole text message.
                out.append(buffer[start:stop])
                position = stop
                continue
            opcode = first & 0x0F
            if reason := self._broken_rule(first, opcode, length):
                return self._violate(out, PROTOCOL_ERROR, reason)
            if opcode >= CLOSE:
                if stop > size:
                    break
                if not self._control(opcode, buffer[start:stop], out):
                    return out
                position = stop
                continue
            self._begin_frame(opcode, final=bool(first & 0x80), length=length)
            if self._size_bytes > self._skip_max_bytes:
                reason = f"a message of more than {self._skip_max_bytes} bytes"
                return self._violate(out, MESSAGE_TOO_BIG, reason)
            self._left = length
            position = start
            if not length:
                self._end_frame(out)
        self._rest = buffer[position:]
        return out

    def _broken_rule(self, first: int, opcode: int, length: int) -> str:
        if first & 0x70:
            return "reserved bits are set, although no extension was agreed on"
        if opcode >= CLOSE:
            if opcode > PONG:
                return f"unknown opcode {opcode}"
            if length > _CONTROL_MAX_BYTES or not first & 0x80:
                return "a control frame that is too long or in pieces"
            return ""
        if opcode > BINARY:
            return f"unknown opcode {opcode}"
        if opcode and self._kind:
            return "a new message inside an unfinished one"
        if not opcode and not self._kind:
            return "a continuation of nothing"
        return ""

    def _control(self, opcode: int, payload: bytes, out: list[Inbound]) -> bool:
        """Take a control frame; whether anything may follow it."""
        if opcode == PING:
            out.append(Ping(payload))
            return True
        if opcode == PONG:
            out.append(Pong(payload))
            return True
        if len(payload) == 1:
            self._violate(out, PROTOCOL_ERROR, "a close frame with half a code")
            return False
        self._ended = True
        code = int.from_bytes(payload[:2], "big") if payload else NO_STATUS
        out.append(CloseFrame(code, payload[2:].decode("utf-8", "replace")))
        return False

    def _begin_frame(self, opcode: int, *, final: bool, length: int) -> None:
        if opcode:
            self._kind = opcode
        self._final = final
        self._size_bytes += length
        if self._size_bytes > self._message_max_bytes and self._kind == TEXT and self._tail is None:
            self._tail = self._text[-TAIL_BYTES:]
            del self._text[HEAD_BYTES:]

    def _absorb(self, chunk: bytes) -> None:
        if self._kind == BINARY:
            return
        if self._tail is None:
            self._text += chunk
            return
        if len(self._text) < HEAD_BYTES:
            self._text += chunk[: HEAD_BYTES - len(self._text)]
        self._tail += chunk[-TAIL_BYTES:]
        del self._tail[:-TAIL_BYTES]

    def _end_frame(self, out: list[Inbound]) -> None:
        if not self._final:
            return
        if self._kind == BINARY:
            out.append(Binary(self._size_bytes))
        elif self._tail is not None:
            out.append(Oversized(bytes(self._text), bytes(self._tail), self._size_bytes))
        else:
            out.append(self._text)
        self._kind = 0
        self._size_bytes = 0
        self._text = bytearray()
        self._tail = None

    def _violate(self, out: list[Inbound], code: int, reason: str) -> list[Inbound]:
        self._ended = True
        out.append(Violation(code, reason))
        return out


def frame_header(opcode: int, length: int) -> bytes:
    """The header of a whole masked frame, without its key; ``length`` is that of the payload in bytes."""
    if length < 126:
        return bytes((0x80 | opcode, 0x80 | length))
    if length < 65536:
        return bytes((0x80 | opcode, 0x80 | 126, length >> 8, length & 0xFF))
    return bytes((0x80 | opcode, 0x80 | 127)) + length.to_bytes(8, "big")


def mask(key: bytes, payload: bytes) -> bytes:
    """Payload xor key, which is 4 bytes; the same once more takes it back.

    Five times faster on small frames than the library's ``ABNF.mask``, for it makes no arrays.
    """
    size = len(payload)
    stream = (key * (size // 4 + 1))[:size]
    return (int.from_bytes(payload, "little") ^ int.from_bytes(stream, "little")).to_bytes(size, "little")


def close_payload(code: int, reason: str) -> bytes:
    """The payload of a close frame; a reason that is too long is cut."""
    return (
        code.to_bytes(2, "big") + reason.encode()[: _CONTROL_MAX_BYTES - 2].decode(errors="ignore").encode()
    )
