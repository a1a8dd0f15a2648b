from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator

import pytest

from gpuward_supervisor.sources import presigned
from gpuward_supervisor.sources.presigned import TransferFailed, Wire, download, upload
from support.scripted_queue import TLS_FILE
from support.scripted_store import Answer, ScriptedStore

MAX_BYTES = 1_000_000


@pytest.fixture
def store() -> Iterator[ScriptedStore]:
    with ScriptedStore() as running:
        yield running


def get(url: str, *, max_bytes: int = MAX_BYTES, timeout_s: float = 10, wire: Wire | None = None) -> bytes:
    received = bytearray()
    download(url, received.extend, max_bytes=max_bytes, timeout_s=timeout_s, wire=wire or Wire())
    return bytes(received)


def put(url: str, body: bytes, *, timeout_s: float = 10) -> None:
    upload(url, [body], len(body), timeout_s=timeout_s, wire=Wire())


def failure(url: str, **options: object) -> TransferFailed:
    with pytest.raises(TransferFailed) as caught:
        get(url, **options)  # type: ignore[arg-type]
    return caught.value


# ---------------------------------------------------------------- GET


def test_a_body_is_read_whole(store: ScriptedStore) -> None:
    body = b"[" + b"1," * 400_000 + b"1]"
    store.answers.append(Answer(body=body))
    assert get(f"{store.url}/p/x?sig=abc") == body


def test_a_get_says_nothing_about_who_we_are(store: ScriptedStore) -> None:
    get(f"{store.url}/p/x?sig=abc")
    request = store.request()
    assert (request.method, request.path) == ("GET", "/p/x?sig=abc")
    assert set(request.headers) == {"Host", "Accept-Encoding", "Connection"}
    assert request.headers["Accept-Encoding"] == "identity"


def test_a_chunked_body_is_read_whole(store: ScriptedStore) -> None:
    store.answers.append(
        Answer(body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", headers=(("Transfer-Encoding", "chunked"),))
    )
    assert get(store.url) == b"abcde"


@pytest.mark.parametrize(
    ("status", "retry"),
    [
        (404, False),
        (403, False),
        (410, False),
        (204, False),
        (408, True),
        (429, True),
        (500, True),
        (503, True),
    ],
)
def test_only_some_answers_are_worth_a_retry(store: ScriptedStore, status: int, retry: bool) -> None:
    store.answers.append(Answer(status=status))
    failed = failure(f"{store.url}/p?sig=abc")
    assert failed.retry is retry
    assert f"HTTP {status}" in str(failed)


def test_the_stores_reason_is_quoted_but_nothing_else_of_its_answer(store: ScriptedStore) -> None:
    body = b"<Error><Code>SignatureDoesNotMatch</Code><Sig>abc-secret</Sig></Error>"
    store.answers.append(Answer(status=403, body=body))
    text = str(failure(f"{store.url}/p"))
    assert "(SignatureDoesNotMatch)" in text
    assert "secret" not in text


def test_an_error_never_shows_the_query_of_a_url(store: ScriptedStore) -> None:
    store.answers.append(Answer(status=404))
    text = str(failure(f"{store.url}/bucket/key?X-Amz-Signature=abcdef"))
    assert "/bucket/key" in text
    assert "abcdef" not in text


@pytest.mark.parametrize(
    "url",
    ["/key", "key", "http:key", "http://localhost/a b", "http://localhost/a\r\nb", "http://localhost\n/b"],
)
def test_an_error_never_shows_the_query_of_what_is_no_url_either(url: str) -> None:
    assert "abcdef" not in str(failure(f"{url}?X-Amz-Signature=abcdef"))


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://localhost/x",
        "/relative",
        "http://",
        "http://localhost:99999/x",
        "http://[::1/x",
        "http://localhost/a b",
        "http://localhost/ä",
        "http://localhost/a\r\nX-Injected: 1",
        "",
    ],
)
def test_only_whole_http_urls_are_fetched(url: str) -> None:
    failed = failure(url)
    assert not failed.retry


@pytest.mark.parametrize("host", ["a..b", ".a", "a" * 64 + ".b"])
def test_a_host_that_no_lookup_takes_is_a_failure(host: str) -> None:
    assert not failure(f"http://{host}/x").retry
    with pytest.raises(TransferFailed, match="not a URL"):
        put(f"http://{host}/x", b"{}")


@pytest.mark.parametrize("location", ["http://[::1/x", "//[", "http://a..b/"])
def test_a_redirect_to_no_url_is_a_failure(store: ScriptedStore, location: str) -> None:
    store.answers.append(Answer(status=302, headers=(("Location", location),)))
    assert not failure(store.url).retry


def test_redirects_are_followed(store: ScriptedStore) -> None:
    store.answers.append(Answer(status=302, headers=(("Location", "/second?sig=2"),)))
    store.answers.append(Answer(status=307, headers=(("Location", f"{store.url}/third"),)))
    store.answers.append(Answer(body=b"{}"))
    assert get(f"{store.url}/first") == b"{}"
    assert [request.path for request in store.requests()] == ["/first", "/second?sig=2", "/third"]


def test_redirects_are_not_followed_for_ever(store: ScriptedStore) -> None:
    store.answers.extend([Answer(status=302, headers=(("Location", "/again"),))] * 10)
    failed = failure(store.url)
    assert not failed.retry
    assert len(store.requests()) == 4


def test_a_redirect_to_another_scheme_is_refused(store: ScriptedStore) -> None:
    store.answers.append(Answer(status=302, headers=(("Location", "file:///etc/passwd"),)))
    assert "http or https" in str(failure(store.url))


def test_an_announced_body_beyond_the_limit_is_not_read(store: ScriptedStore) -> None:
    store.answers.append(Answer(body=b"x" * 11))
    failed = failure(store.url, max_bytes=10)
    assert "11 bytes: the limit is 10" in str(failed)
    assert not failed.retry


def test_a_body_that_outgrows_the_limit_is_cut_off(store: ScriptedStore) -> None:
    store.answers.append(
        Answer(body=b"b\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n", headers=(("Transfer-Encoding", "chunked"),))
    )
    failed = failure(store.url, max_bytes=10)
    assert "limit of 10" in str(failed)
    assert not failed.retry


def test_a_body_of_exactly_the_limit_is_read(store: ScriptedStore) -> None:
    store.answers.append(Answer(body=b"x" * 10))
    assert get(store.url, max_bytes=10) == b"x" * 10


def test_a_body_that_ends_early_is_worth_a_retry(store: ScriptedStore) -> None:
    store.answers.append(Answer(body=b"x" * 100, cut_after=30))
    failed = failure(store.url)
    assert "30 of 100 bytes" in str(failed)
    assert failed.retry


def test_a_chunked_body_that_ends_early_is_worth_a_retry(store: ScriptedStore) -> None:
    store.answers.append(
        Answer(body=b"64\r\n" + b"x" * 100, cut_after=30, headers=(("Transfer-Encoding", "chunked"),))
    )
    assert failure(store.url).retry


def test_compressed_bytes_are_refused(store: ScriptedStore) -> None:
    store.answers.append(Answer(body=b"x", headers=(("Content-Encoding", "gzip"),)))
    assert "gzip" in str(failure(store.url))


def test_a_server_that_falls_silent_is_given_up(store: ScriptedStore) -> None:
    store.answers.append(Answer(body=b"x" * 100, stall_after=10))
    failed = failure(store.url, timeout_s=0.05)
    assert "timed out" in str(failed)
    assert failed.retry


def test_nobody_listening_is_worth_a_retry() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert failure(f"http://127.0.0.1:{port}/x").retry


def test_cutting_the_wire_ends_a_transfer_that_waits(store: ScriptedStore) -> None:
    wire = Wire()
    store.answers.append(Answer(body=b"x" * 100, stall_after=10))
    cutter = threading.Thread(target=lambda: (store.request(), wire.cut()))
    cutter.start()
    assert failure(store.url, wire=wire)
    cutter.join()
    assert wire.is_cut


def test_a_wire_that_was_cut_before_carries_nothing(store: ScriptedStore) -> None:
    wire = Wire()
    wire.cut()
    assert "cut" in str(failure(store.url, wire=wire))


def test_a_certificate_that_is_not_trusted_is_not_asked_for_twice() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(TLS_FILE)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            opened, _ = listener.accept()
            with (
                opened,
                pytest.raises(ssl.SSLError),
                context.wrap_socket(opened, server_side=True) as tls,
            ):
                tls.recv(1)

        thread = threading.Thread(target=answer)
        thread.start()
        failed = failure(f"https://localhost:{listener.getsockname()[1]}/x")
        thread.join()
    assert "Cert" in str(failed)
    assert not failed.retry


# ---------------------------------------------------------------- PUT


def test_a_put_sends_exactly_what_a_presigned_url_may_sign(store: ScriptedStore) -> None:
    put(f"{store.url}/r?sig=1", b'{"a": 1}')
    request = store.request()
    assert (request.method, request.path, request.body) == ("PUT", "/r?sig=1", b'{"a": 1}')
    assert set(request.headers) == {"Host", "Content-Type", "Content-Length"}
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["Content-Length"] == "8"


@pytest.mark.parametrize("status", [200, 201, 204])
def test_any_2xx_is_fine(store: ScriptedStore, status: int) -> None:
    store.answers.append(Answer(status=status))
    put(store.url, b"{}")


@pytest.mark.parametrize(
    ("status", "retry"), [(403, False), (302, False), (500, True), (503, True), (429, True)]
)
def test_other_answers_are_failures(store: ScriptedStore, status: int, retry: bool) -> None:
    store.answers.append(Answer(status=status, headers=(("Location", "/elsewhere"),)))
    with pytest.raises(TransferFailed, match=f"HTTP {status}") as caught:
        put(f"{store.url}/r?sig=secret", b"{}")
    assert caught.value.retry is retry
    assert "secret" not in str(caught.value)
    assert len(store.requests()) == 1


def test_a_refusal_is_understood_although_the_body_was_not_read(store: ScriptedStore) -> None:
    store.answers.append(Answer(status=403, unread=True))
    with pytest.raises(TransferFailed) as caught:
        put(store.url, b"x" * 8_000_000)
    # The answer may be lost to the reset that follows it; what must not happen is waiting or success.
    assert "HTTP 403" in str(caught.value) or caught.value.retry


def test_a_store_that_does_not_answer_is_given_up(store: ScriptedStore) -> None:
    gone = threading.Event()
    store.answers.append(Answer(before=lambda: gone.wait(20)))
    with pytest.raises(TransferFailed, match="timed out") as caught:
        put(store.url, b"{}", timeout_s=0.05)
    gone.set()
    assert caught.value.retry


def test_the_connect_has_a_bound_of_its_own() -> None:
    connection, _ = presigned._connection("GET x", "http://localhost/x", 3600)
    assert connection.timeout == presigned.CONNECT_TIMEOUT_S
