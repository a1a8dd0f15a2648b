"""One attempt to open a WebSocket, on a thread of its own.

The websocket-client library does what is easy to get wrong: address search, proxies from the environment,
TLS, the upgrade and its checks. It blocks while it does so, name lookup included, and a source must be able
to close at any moment: hence the thread, which is simply left behind when nobody wants its outcome any more.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

import msgspec
import websocket

#: Said to the peer; some front doors refuse clients without a name.
USER_AGENT = "gpuward"
_ERROR_MAX_CHARS = 300


class DialFailed(msgspec.Struct, frozen=True):
    """Why there is no connection."""

    error: str
    #: HTTP status of a refused upgrade, 0 when it did not come to an answer.
    status: int = 0


class Dial:
    """One attempt; ``outcome`` is set before ``done`` is called, on the attempt's own thread."""

    def __init__(self, url: str, token: str, timeout_s: float, done: Callable[[Dial], None]) -> None:
        """Prepare an attempt; ``start`` begins it.

        Args:
            url: ``ws://`` or ``wss://`` address.
            token: sent as ``Authorization: Bearer``, not at all when empty.
            timeout_s: bound of each step (connecting, TLS, each read of the answer).
            done: called once, unless the attempt was abandoned before.
        """
        self._url = url
        self._token = token
        self._timeout_s = timeout_s
        self._done = done
        self._lock = threading.Lock()
        self._abandoned = False
        self._websocket = websocket.WebSocket(enable_multithread=False)
        #: The open socket, past its upgrade and still blocking, or why there is none.
        self.outcome: socket.socket | DialFailed = DialFailed("not finished")

    def start(self) -> None:
        """Begin."""
        threading.Thread(target=self._run, name="websocket-dial", daemon=True).start()

    def abandon(self) -> None:
        """Stop caring: ``done`` is not called any more, and what was opened is closed."""
        with self._lock:
            self._abandoned = True
            opened = self._websocket.sock
        if opened is not None:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        outcome = self._connect()
        with self._lock:
            if not self._abandoned:
                self.outcome = outcome
                self._done(self)
                return
        if isinstance(outcome, socket.socket):
            outcome.close()

    def _connect(self) -> socket.socket | DialFailed:
        try:
            self._websocket.connect(  # type: ignore[no-untyped-call]
                self._url,
                timeout=self._timeout_s,
                header=[
                    f"User-Agent: {USER_AGENT}",
                    *([f"Authorization: Bearer {self._token}"] if self._token else []),
                ],
                # A browser's affair; the queue's other workers do not send it.
                suppress_origin=True,
                # The token must not follow a redirect to somebody else.
                redirect_limit=0,
            )
        except websocket.WebSocketBadStatusException as error:
            # Its text quotes headers and body of the answer: the status says enough.
            return DialFailed(
                f"the upgrade was refused with HTTP {error.status_code}", int(error.status_code)
            )
        except Exception as error:  # noqa: BLE001 - the thread's border; what a library raises is not a closed set
            return DialFailed(f"{type(error).__name__}: {error}"[:_ERROR_MAX_CHARS])
        opened: socket.socket | None = self._websocket.sock
        if opened is None:
            return DialFailed("the library opened no socket")
        return opened
