"""One try of one HTTP transfer through a presigned URL: GET into a sink, PUT from chunks.

The URL is a secret: it never appears in an error but without its query. No proxy is used and no header that
proves who we are is sent; the only schemes are http and https, also after a redirect.
"""

from __future__ import annotations

import functools
import http.client
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import SplitResult, urljoin, urlsplit

from gpuward_supervisor.secrets import without_credentials

REDIRECTS_MAX = 3
CONNECT_TIMEOUT_S = 10.0
CHUNK_BYTES = 256 * 1024

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WORTH_A_RETRY = frozenset({408, 425, 429})
#: Object stores name the reason in a short XML answer; the rest of it may quote the signature.
_STORE_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_ANSWER_PEEK_BYTES = 4096


class TransferFailed(Exception):
    """A try failed; the text is fit for the job's caller."""

    def __init__(self, text: str, *, retry: bool) -> None:
        super().__init__(text)
        #: Whether another try may do better.
        self.retry = retry


class Wire:
    """The connection of one try, so that another thread can cut it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._opened: socket.socket | None = None
        self._cut = False

    @property
    def is_cut(self) -> bool:
        """Somebody cut it."""
        return self._cut

    def cut(self) -> None:
        """End the transfer now: every wait in it fails."""
        with self._lock:
            self._cut = True
            if self._opened is not None:
                with suppress(OSError):
                    self._opened.shutdown(socket.SHUT_RDWR)

    def lay(self, opened: socket.socket) -> None:
        """Note the socket in use.

        Raises:
            ConnectionAbortedError: it was cut already.
        """
        with self._lock:
            self._opened = opened
            if self._cut:
                raise ConnectionAbortedError("cut")

    def lift(self) -> None:
        """Forget the socket: it is closed, and its descriptor may soon be somebody else's."""
        with self._lock:
            self._opened = None


def download(
    url: str, sink: Callable[[bytes], None], *, max_bytes: int, timeout_s: float, wire: Wire
) -> None:
    """GET a URL into ``sink``, chunk by chunk.

    Args:
        url: http or https; up to three redirects are followed, none of them from https to http.
        sink: takes each chunk; what it raises goes through.
        max_bytes: a longer body is refused.
        timeout_s: longest silence of the server.
        wire: cut it from another thread to end the transfer.

    Raises:
        TransferFailed: it did not work.
    """
    for _ in range(REDIRECTS_MAX + 1):
        onward = _get(url, sink, max_bytes, timeout_s, wire)
        if not onward:
            return
        if urlsplit(url).scheme == "https" and urlsplit(onward).scheme != "https":
            raise TransferFailed(f"GET {_shown(url)} redirects away from https: refused", retry=False)
        url = onward
    raise TransferFailed(f"GET {_shown(url)}: more than {REDIRECTS_MAX} redirects", retry=False)


def upload(url: str, chunks: Iterable[bytes], size_bytes: int, *, timeout_s: float, wire: Wire) -> None:
    """PUT a JSON body to a URL; redirects are not followed.

    Args:
        url: http or https.
        chunks: the body.
        size_bytes: length of the body.
        timeout_s: longest silence of the server.
        wire: cut it from another thread to end the transfer.

    Raises:
        TransferFailed: it did not work.
    """
    what = f"PUT {_shown(url)}"
    connection, target = _connection(what, url, timeout_s)
    try:
        _open(connection, timeout_s, wire)
        connection.putrequest("PUT", target, skip_accept_encoding=True)
        # Exactly these, for a presigned URL may sign them.
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(size_bytes))
        connection.endheaders()
        # A server that refuses may close before it has read everything; its answer says why.
        with suppress(BrokenPipeError, ConnectionResetError):
            for chunk in chunks:
                connection.send(chunk)
        with connection.getresponse() as answer:
            if not 200 <= answer.status < 300:
                raise _refused(what, answer)
    except (OSError, http.client.HTTPException) as error:
        raise _broken(what, error) from error
    except ValueError as error:
        # A host that cannot be looked up (``a..b``) shows only here.
        raise TransferFailed(f"{what}: not a URL ({error})", retry=False) from error
    finally:
        wire.lift()
        connection.close()


def _get(url: str, sink: Callable[[bytes], None], max_bytes: int, timeout_s: float, wire: Wire) -> str:
    """One request; the address to go on to when the answer is a redirect, else empty."""
    what = f"GET {_shown(url)}"
    connection, target = _connection(what, url, timeout_s)
    try:
        _open(connection, timeout_s, wire)
        connection.request("GET", target, headers={"Accept-Encoding": "identity", "Connection": "close"})
        with connection.getresponse() as answer:
            if answer.status in _REDIRECTS and (location := answer.getheader("Location")):
                return urljoin(url, location)
            if answer.status != 200:
                raise _refused(what, answer)
            coding = answer.getheader("Content-Encoding", "identity")
            if coding.lower() != "identity":
                text = f"{what} came with Content-Encoding {coding[:32]!r}: expected plain bytes"
                raise TransferFailed(text, retry=False)
            _read_body(what, answer, sink, max_bytes)
            return ""
    except (OSError, http.client.HTTPException) as error:
        raise _broken(what, error) from error
    except ValueError as error:
        # A host that cannot be looked up (``a..b``) or a Location that is none shows only here.
        raise TransferFailed(f"{what}: not a URL, or redirected to none ({error})", retry=False) from error
    finally:
        wire.lift()
        connection.close()


def _read_body(
    what: str, answer: http.client.HTTPResponse, sink: Callable[[bytes], None], max_bytes: int
) -> None:
    expected = answer.length
    if expected is not None and expected > max_bytes:
        raise TransferFailed(f"{what} has {expected} bytes: the limit is {max_bytes}", retry=False)
    received = 0
    # read1, not read: a full chunk of a slow server may take longer than its silence is allowed to. It must
    # not be asked once more at the end: some versions wait there for bytes that will never come.
    while expected is None or received < expected:
        chunk = answer.read1(CHUNK_BYTES)
        if not chunk:
            break
        received += len(chunk)
        if received > max_bytes:
            raise TransferFailed(f"{what} has more bytes than the limit of {max_bytes}", retry=False)
        sink(chunk)
    if expected is not None and received < expected:
        # http.client does not complain about this by itself.
        raise TransferFailed(f"{what} ended after {received} of {expected} bytes", retry=True)


def _connection(what: str, url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise TransferFailed(f"{what}: not a URL ({error})", retry=False) from error
    if parts.scheme not in {"http", "https"} or not host:
        raise TransferFailed(f"{what}: expected an http or https URL with a host", retry=False)
    target = _target(parts)
    if not target.isascii() or not target.isprintable() or " " in target:
        raise TransferFailed(f"{what}: the URL holds characters that must be percent-encoded", retry=False)
    connect_s = min(CONNECT_TIMEOUT_S, timeout_s)
    try:
        if parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=connect_s, context=_tls_context()), target
        return http.client.HTTPConnection(host, port, timeout=connect_s), target
    except (http.client.HTTPException, ValueError) as error:
        raise TransferFailed(f"{what}: not a URL ({error})", retry=False) from error


def _open(connection: http.client.HTTPConnection, timeout_s: float, wire: Wire) -> None:
    connection.connect()
    wire.lay(connection.sock)
    connection.sock.settimeout(timeout_s)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    # Made at the first need: reading the certificate authorities costs time and memory.
    return ssl.create_default_context()


def _target(parts: SplitResult) -> str:
    path = parts.path or "/"
    return f"{path}?{parts.query}" if parts.query else path


def _refused(what: str, answer: http.client.HTTPResponse) -> TransferFailed:
    status = answer.status
    code = b""
    with suppress(OSError, http.client.HTTPException):
        if found := _STORE_CODE.search(answer.read(_ANSWER_PEEK_BYTES)):
            code = found.group(1)
    reason = f" ({code.decode()})" if code else ""
    return TransferFailed(
        f"{what} was answered with HTTP {status}{reason}", retry=status >= 500 or status in _WORTH_A_RETRY
    )


def _broken(what: str, error: OSError | http.client.HTTPException) -> TransferFailed:
    detail = "timed out" if isinstance(error, TimeoutError) else f"{type(error).__name__}: {error}"[:200]
    # A certificate does not become valid by asking again.
    return TransferFailed(f"{what}: {detail}", retry=not isinstance(error, ssl.SSLCertVerificationError))


def _shown(url: str) -> str:
    # Cut here, too: only in a URL as it should be is the query sure to be found in a text.
    return without_credentials(re.split("[?#]", url, maxsplit=1)[0])[:300]
