"""One worker's WebSocket on the queue's side: the upgrade, the reader, the single writer.

Frames go out through one task, in order, pongs among them: a pong proves that every frame before its ping has
been acted on, and comes after everything the queue sent because of them.
"""

from __future__ import annotations

import asyncio
import hmac
import struct
from enum import Enum
from http import HTTPStatus

from aiohttp import WSCloseCode, WSMsgType, web

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.ledger import LinkNote
from gpuward_devqueue.misbehaviour import Fault
from gpuward_devqueue.records import ConnectionId

#: How long to wait for the peer's answer to a close frame.
CLOSE_TIMEOUT_S = 2.0
SLOW_FRAGMENTS = 8
_TEXT, _CONTINUATION, _FINAL = 0x1, 0x0, 0x80


class _Kind(Enum):
    TEXT = 1
    BINARY = 2
    PONG = 3
    CLOSE = 4
    ABORT = 5


class WorkerConnection:
    """A connected worker; implements the broker's ``Link``.

    Args:
        broker: the queue.
        request: the upgrade request.
        number: the connection's own number.
    """

    def __init__(self, broker: Broker, request: web.Request, number: ConnectionId) -> None:
        self.base_url = f"{request.scheme}://{request.host}"
        self._broker = broker
        self._number = number
        self._request = request
        ping_interval_s = broker.config.ping_interval_s
        self._ws = web.WebSocketResponse(
            timeout=CLOSE_TIMEOUT_S,
            autoping=False,
            heartbeat=ping_interval_s or None,
            compress=False,
            # aiohttp takes less than this, we promise up to and including it.
            max_msg_size=broker.config.max_frame_bytes + 1,
        )
        self._outgoing: asyncio.Queue[tuple[_Kind, bytes, int]] = asyncio.Queue()

    # ------------------------------------------------------------------ Link

    def send(self, text: bytes) -> None:
        """Send a text message."""
        self._outgoing.put_nowait((_Kind.TEXT, text, 0))

    def send_binary(self, body: bytes) -> None:
        """Send a binary message."""
        self._outgoing.put_nowait((_Kind.BINARY, body, 0))

    def close(self, code: int, reason: str) -> None:
        """Close after everything sent before has been written."""
        self._outgoing.put_nowait((_Kind.CLOSE, reason.encode(), code))

    def abort(self) -> None:
        """Cut the connection after everything sent before has been written; no close frame."""
        self._outgoing.put_nowait((_Kind.ABORT, b"", 0))

    # ------------------------------------------------------------------ life

    async def serve(self) -> web.WebSocketResponse:
        """Run the connection until it is closed by either side."""
        await self._ws.prepare(self._request)
        self._broker.connected(self._number, self)
        writer = asyncio.create_task(self._write(), name=f"worker-{self._number}-writer")
        try:
            await self._read()
        finally:
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)
            self._broker.disconnected(self._number, self._ws.close_code or WSCloseCode.ABNORMAL_CLOSURE)
        return self._ws

    async def _read(self) -> None:
        while True:
            message = await self._ws.receive()
            match message.type:
                case WSMsgType.TEXT:
                    self._broker.received_text(self._number, message.data)
                    if stall := self._broker.strikes(Fault.STALL_READING, self._number):
                        await asyncio.sleep(stall.delay_s)
                case WSMsgType.BINARY:
                    self._broker.received_binary(self._number, len(message.data))
                case WSMsgType.PING:
                    if self._broker.strikes(Fault.WITHHOLD_PONG, self._number) is None:
                        self._outgoing.put_nowait((_Kind.PONG, message.data, 0))
                case WSMsgType.PONG:
                    pass  # aiohttp has taken it as the answer to its own ping
                case _:
                    return

    async def _write(self) -> None:
        while True:
            kind, body, code = await self._outgoing.get()
            try:
                match kind:
                    case _Kind.TEXT:
                        if slow := self._broker.strikes(Fault.SLOW_FRAMES, self._number):
                            await self._write_slowly(body, slow.delay_s)
                        else:
                            await self._ws.send_frame(body, WSMsgType.TEXT)
                    case _Kind.BINARY:
                        await self._ws.send_frame(body, WSMsgType.BINARY)
                    case _Kind.PONG:
                        await self._ws.pong(body)
                    case _Kind.CLOSE:
                        await self._ws.close(code=code, message=body)
                        return
                    case _Kind.ABORT:
                        if self._request.transport is not None:
                            self._request.transport.abort()
                        return
            except ConnectionError:
                return  # the reader sees the end of the connection and cleans up

    async def _write_slowly(self, body: bytes, duration_s: float) -> None:
        """Write a text message as fragments; pings and pongs may lawfully come between them."""
        step = max(1, -(-len(body) // SLOW_FRAGMENTS))
        pieces = [body[start : start + step] for start in range(0, len(body), step)] or [b""]
        for index, piece in enumerate(pieces):
            transport = self._request.transport
            if transport is None or transport.is_closing():
                raise ConnectionResetError("the worker has gone")
            opcode = _TEXT if index == 0 else _CONTINUATION
            final = _FINAL if index == len(pieces) - 1 else 0
            transport.write(_frame_header(final | opcode, len(piece)) + piece)
            if not final:
                await asyncio.sleep(duration_s / len(pieces))


def _frame_header(first_byte: int, size: int) -> bytes:
    if size < 126:
        return struct.pack("!BB", first_byte, size)
    if size < 65536:
        return struct.pack("!BBH", first_byte, 126, size)
    return struct.pack("!BBQ", first_byte, 127, size)


def refusal(broker: Broker, request: web.Request) -> HTTPStatus | int | None:
    """Return the HTTP status an upgrade must be refused with, or None when the worker may come in."""
    if request.headers.get("Upgrade", "").strip().lower() != "websocket":
        return HTTPStatus.UPGRADE_REQUIRED
    token = broker.config.token
    if token is None:
        return None
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not given.strip():
        return HTTPStatus.UNAUTHORIZED
    return None if hmac.compare_digest(given.strip().encode(), token.encode()) else HTTPStatus.FORBIDDEN


async def serve_worker(broker: Broker, request: web.Request) -> web.StreamResponse:
    """Serve ``/ws``: refuse the upgrade, or run the connection to its end."""
    number = broker.next_connection()
    strike = broker.strikes(Fault.REFUSE_UPGRADE, number)
    status = strike.status if strike else refusal(broker, request)
    if status is not None:
        broker.note_link(number, LinkNote.REFUSED, code=int(status))
        headers = {"WWW-Authenticate": "Bearer"} if status == HTTPStatus.UNAUTHORIZED else {}
        return web.Response(status=int(status), text=HTTPStatus(status).phrase + "\n", headers=headers)
    return await WorkerConnection(broker, request, number).serve()
