"""An object store that answers as a test tells it: one scripted answer per request, each request recorded."""

from __future__ import annotations

import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

PATIENCE_S = 20.0


class Request(NamedTuple):
    """What came."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What goes back."""

    status: int = 200
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    #: Send the header only, and this much of the body, then wait until the client goes away.
    stall_after: int | None = None
    #: Close after this much of the body.
    cut_after: int | None = None
    #: Do not read the request's body.
    unread: bool = False
    #: Called before anything is answered.
    before: Callable[[], Any] | None = None


class ScriptedStore:
    """Listens on a free port. Without a script it answers 200 with an empty body."""

    def __init__(self) -> None:
        #: The next answers, oldest first.
        self.answers: deque[Answer] = deque()
        self._requests: queue.Queue[Request] = queue.Queue()
        store = self

        class _Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                store.answer(self)

            do_PUT = do_GET  # noqa: N815 - its name there

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
                pass

        class _Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that go away are part of the script."""

        self._server = _Server(("127.0.0.1", 0), _Handler)
        self.url = f"http://localhost:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def request(self) -> Request:
        """The next request that came."""
        return self._requests.get(timeout=PATIENCE_S)

    def requests(self) -> list[Request]:
        """All further requests that have come."""
        found = []
        with suppress(queue.Empty):
            while True:
                found.append(self._requests.get_nowait())
        return found

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        """Answer one request by the script."""
        answer = self.answers.popleft() if self.answers else Answer()
        length = 0 if answer.unread else int(handler.headers.get("Content-Length", "0"))
        body = handler.rfile.read(length)
        self._requests.put(Request(handler.command, handler.path, dict(handler.headers.items()), body))
        if answer.before is not None:
            answer.before()
        handler.send_response(answer.status)
        named = {name.lower() for name, _ in answer.headers}
        for name, value in answer.headers:
            handler.send_header(name, value)
        if not {"content-length", "transfer-encoding"} & named:
            handler.send_header("Content-Length", str(len(answer.body)))
        handler.end_headers()
        handler.close_connection = True
        if answer.stall_after is not None:
            handler.wfile.write(answer.body[: answer.stall_after])
            handler.wfile.flush()
            # Ends when the client closes or is cut off.
            with suppress(OSError):
                handler.connection.recv(1)
        elif answer.cut_after is not None:
            handler.wfile.write(answer.body[: answer.cut_after])
            handler.wfile.flush()
            with suppress(OSError):
                handler.connection.shutdown(socket.SHUT_RDWR)
        else:
            handler.wfile.write(answer.body)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(PATIENCE_S)
        self._server.server_close()
