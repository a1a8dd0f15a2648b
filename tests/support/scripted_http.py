"""A tiny HTTP server whose answers a test scripts byte by byte; real sockets, no framework."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager


class Request:
    """What the server got."""

    def __init__(self, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


def answer(status: int, body: bytes | object = b"", content_type: str = "application/json") -> Script:
    """A whole answer."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def write(_request: Request, writer: asyncio.StreamWriter) -> None:
        head = (
            f"HTTP/1.1 {status} X\r\nContent-Type: {content_type}\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        writer.write(head.encode() + content)
        await writer.drain()

    return write


def raw_answer(content: bytes) -> Script:
    """These bytes, then the end of the connection."""

    async def write(_request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(content)
        await writer.drain()
        writer.close()

    return write


class ScriptedServer:
    """Answers each path with its script; 404 for others."""

    def __init__(self) -> None:
        self.scripts: dict[str, Script] = {}
        self.requests: list[Request] = []
        self.port = 0
        #: Set when a client has closed a connection while its request was unanswered.
        self.gave_up = asyncio.Event()
        #: Set by ``hang`` when a request hangs.
        self.hanging = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()

    async def hang(self, _request: Request, _writer: asyncio.StreamWriter) -> None:
        """Never answer."""
        self.hanging.set()
        await asyncio.Event().wait()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while (request := await _read(reader)) is not None:
                self.requests.append(request)
                script = self.scripts.get(request.path, answer(404, {"detail": "Not Found"}))
                answering = asyncio.ensure_future(script(request, writer))
                closing = asyncio.ensure_future(reader.read(1))
                await asyncio.wait({answering, closing}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    self.gave_up.set()
                    answering.cancel()
                    return
                closing.cancel()
                await asyncio.gather(closing, return_exceptions=True)
                if writer.is_closing():
                    return
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def end(self) -> None:
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)


async def _read(reader: asyncio.StreamReader) -> Request | None:
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, path, _ = first.split(" ")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Request(method, path, headers, body)


@asynccontextmanager
async def scripted_server() -> AsyncIterator[ScriptedServer]:
    scripted = ScriptedServer()
    server = await asyncio.start_server(scripted.serve, "127.0.0.1", 0)
    scripted.port = server.sockets[0].getsockname()[1]
    try:
        yield scripted
    finally:
        server.close()
        await scripted.end()
        await server.wait_closed()
