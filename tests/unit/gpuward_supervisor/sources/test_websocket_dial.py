from __future__ import annotations

import queue
import socket

import pytest

from gpuward_supervisor.sources.websocket_dial import Dial, DialFailed
from support.scripted_queue import TLS_FILE, ScriptedQueue

PATIENCE_S = 20


def dial(url: str, token: str = "", timeout_s: float = 10) -> tuple[Dial, queue.Queue[Dial]]:
    finished: queue.Queue[Dial] = queue.Queue()
    attempt = Dial(url, token, timeout_s, finished.put)
    attempt.start()
    return attempt, finished


def outcome_of(url: str, token: str = "", timeout_s: float = 10) -> socket.socket | DialFailed:
    _, finished = dial(url, token, timeout_s)
    return finished.get(timeout=PATIENCE_S).outcome


def test_an_upgrade_as_the_queue_expects_it() -> None:
    with ScriptedQueue() as server:
        opened = outcome_of(f"{server.url}/ws", "tok-abc")
        assert isinstance(opened, socket.socket)
        connection = server.accept()
        assert connection.path == "/ws"
        assert connection.headers["authorization"] == "Bearer tok-abc"
        assert "origin" not in connection.headers
        assert "sec-websocket-extensions" not in connection.headers
        opened.close()


def test_an_empty_token_is_not_sent() -> None:
    with ScriptedQueue() as server:
        opened = outcome_of(f"{server.url}/ws")
        assert isinstance(opened, socket.socket)
        assert "authorization" not in server.accept().headers
        opened.close()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 500, 503])
def test_a_refusal_carries_its_status_and_not_its_text(status: int) -> None:
    with ScriptedQueue() as server:
        server.refuse.append(status)
        failed = outcome_of(f"{server.url}/ws", "tok-abc")
        assert isinstance(failed, DialFailed)
        assert failed.status == status
        assert str(status) in failed.error
        assert "secret" not in failed.error


def test_a_redirect_is_not_followed() -> None:
    with ScriptedQueue() as server:
        server.refuse.append(302)
        failed = outcome_of(f"{server.url}/ws", "tok-abc")
        assert isinstance(failed, DialFailed)
        server.refused()
        assert server._arrived.empty()


def test_nobody_listening() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    failed = outcome_of(f"ws://127.0.0.1:{port}/ws", "tok-abc")
    assert isinstance(failed, DialFailed)
    assert failed.status == 0
    assert "refused" in failed.error.lower()


@pytest.mark.parametrize("url", ["http://localhost/ws", "ws://", "nonsense"])
def test_a_url_that_is_none(url: str) -> None:
    assert isinstance(outcome_of(url, "tok-abc"), DialFailed)


def test_a_server_that_never_answers_is_given_up() -> None:
    with ScriptedQueue() as server:
        server.silent = True
        failed = outcome_of(f"{server.url}/ws", timeout_s=0.05)
        assert isinstance(failed, DialFailed)
        assert "timed out" in failed.error


def test_an_abandoned_attempt_hangs_up_and_says_nothing() -> None:
    with ScriptedQueue() as server:
        server.silent = True
        attempt, finished = dial(f"{server.url}/ws")
        server.refused()
        attempt.abandon()
        server._held[0].settimeout(PATIENCE_S)
        assert server._held[0].recv(1) == b""
        assert finished.empty()


def test_tls_with_a_trusted_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(TLS_FILE))
    with ScriptedQueue(tls=True) as server:
        opened = outcome_of(f"{server.url}/ws")
        assert isinstance(opened, socket.socket)
        server.accept()
        opened.close()


def test_tls_with_a_certificate_that_is_not_trusted() -> None:
    with ScriptedQueue(tls=True) as server:
        failed = outcome_of(f"{server.url}/ws", "tok-abc")
        assert isinstance(failed, DialFailed)
        assert "CERTIFICATE_VERIFY_FAILED" in failed.error
