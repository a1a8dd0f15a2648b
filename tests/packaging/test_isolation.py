"""A test run stays on this machine: the guard in tests/conftest.py."""

from __future__ import annotations

import os
import socket

import pytest


def test_a_connection_that_would_leave_the_machine_is_refused() -> None:
    with socket.socket() as out, pytest.raises(RuntimeError, match="expected loopback only"):
        out.connect(("192.0.2.1", 80))  # TEST-NET-1: even without the guard it reaches nobody


def test_a_datagram_that_would_leave_the_machine_is_refused() -> None:
    with (
        socket.socket(type=socket.SOCK_DGRAM) as out,
        pytest.raises(RuntimeError, match="expected loopback only"),
    ):
        out.sendto(b"", ("192.0.2.1", 53))


def test_loopback_is_let_through() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as client,
    ):
        assert client.getpeername() == server.getsockname()


def test_no_setting_of_the_machine_reaches_a_test() -> None:
    assert [name for name in os.environ if name.startswith(("CASOLA_", "VLLM_"))] == []
