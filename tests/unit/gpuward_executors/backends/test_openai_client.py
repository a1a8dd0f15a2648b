from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from gpuward_executors.backends.openai_client import EngineClient
from gpuward_executors.errors import EngineFailed, JobRefused
from support.executor_process import free_port
from support.scripted_http import Script, ScriptedServer, answer, raw_answer, scripted_server

T = TypeVar("T")
PATH = "/v1/x"


def ask(
    use: Callable[[EngineClient, ScriptedServer], Awaitable[T]],
    script: Script | None = None,
    *,
    request_timeout_s: float = 10.0,
    host: str = "127.0.0.1",
) -> T:
    """Open a client to a server that answers ``PATH`` by the script, and use both."""

    async def run() -> T:
        async with scripted_server() as server:
            if script is not None:
                server.scripts[PATH] = script
            client = EngineClient(host, server.port, request_timeout_s=request_timeout_s, api_key="EMPTY")
            client.open()
            try:
                return await use(client, server)
            finally:
                await client.close()

    return asyncio.run(run())


async def post(client: EngineClient, _server: ScriptedServer) -> bytes:
    return await client.post(PATH, b'{"a":1}')


def test_a_success_is_the_body_as_it_came() -> None:
    assert ask(post, answer(200, b'{ "x" : 1 }')) == b'{ "x" : 1 }'


def test_a_request_is_json_with_the_key_as_the_reference_sends_it() -> None:
    async def use(client: EngineClient, server: ScriptedServer) -> None:
        await client.post(PATH, b'{"a":1}')
        [request] = server.requests
        assert (request.method, request.body) == ("POST", b'{"a":1}')
        assert request.headers["content-type"] == "application/json"
        assert request.headers["authorization"] == "Bearer EMPTY"

    ask(use, answer(200, b"{}"))


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_refusal_of_the_engine_is_the_jobs_fault(status: int) -> None:
    with pytest.raises(JobRefused, match=f"^Error code: {status} - too long$"):
        ask(post, answer(status, {"error": {"message": "too long", "type": "BadRequestError"}}))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 302])
def test_anything_else_is_the_engines_fault_and_is_not_tried_again_here(status: int) -> None:
    async def use(client: EngineClient, server: ScriptedServer) -> None:
        with pytest.raises(EngineFailed, match=f"^Error code: {status} - busy$"):
            await client.post(PATH, b"{}")
        assert len(server.requests) == 1

    ask(use, answer(status, {"error": {"message": "busy"}}))


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (raw_answer(b""), "closed the connection without an answer"),
        (raw_answer(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort"), "broke its answer off"),
        (raw_answer(b"what?\r\n\r\n"), "no valid HTTP"),
    ],
)
def test_a_broken_connection_is_the_engines_fault(script: Script, text: str) -> None:
    with pytest.raises(EngineFailed, match=text):
        ask(post, script)


def test_an_answer_in_pieces_is_put_together() -> None:
    pieces = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    assert ask(post, raw_answer(pieces)) == b"abc"


def test_an_answer_beyond_all_measure_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpuward_executors.backends.openai_client.ANSWER_MAX_BYTES", 3)
    with pytest.raises(EngineFailed, match="larger than 3 bytes"):
        ask(post, answer(200, b"abcd"))


def test_an_engine_that_is_not_there_is_named_without_its_address() -> None:
    async def run() -> None:
        client = EngineClient("127.0.0.1", free_port(), request_timeout_s=5, api_key="")
        client.open()
        try:
            with pytest.raises(EngineFailed, match=r"^the engine cannot be reached$"):
                await client.post(PATH, b"{}")
            with pytest.raises(EngineFailed, match=r"^the engine cannot be reached$"):
                await client.get(PATH, 2.0)
        finally:
            await client.close()

    asyncio.run(run())


def test_a_request_has_a_deadline() -> None:
    async def use(client: EngineClient, server: ScriptedServer) -> None:
        server.scripts[PATH] = server.hang
        with pytest.raises(EngineFailed, match=r"did not answer within 0\.05 s"):
            await client.post(PATH, b"{}")
        with pytest.raises(TimeoutError):
            await client.get(PATH, 0.05)

    ask(use, request_timeout_s=0.05)


def test_cancelling_a_request_closes_its_connection() -> None:
    async def use(client: EngineClient, server: ScriptedServer) -> None:
        server.scripts[PATH] = server.hang
        request = asyncio.ensure_future(client.post(PATH, b"{}"))
        await asyncio.wait_for(server.hanging.wait(), 10)
        request.cancel()
        await asyncio.wait_for(server.gave_up.wait(), 10)
        with pytest.raises(asyncio.CancelledError):
            await request

    ask(use)


def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
    assert ask(post, answer(200, b"{}")) == b"{}"


@pytest.mark.parametrize("host", ["0.0.0.0", ""])
def test_an_engine_that_listens_everywhere_is_asked_on_loopback(host: str) -> None:
    assert ask(post, answer(200, b"{}"), host=host) == b"{}"


def test_a_get_tells_status_and_body_whatever_they_are() -> None:
    async def use(client: EngineClient, _server: ScriptedServer) -> tuple[int, bytes]:
        return await client.get(PATH, 5.0)

    assert ask(use, answer(503, b"dead")) == (503, b"dead")


def test_a_client_that_is_not_open_says_so() -> None:
    client = EngineClient("127.0.0.1", 1, request_timeout_s=1, api_key="")
    with pytest.raises(EngineFailed, match="not running"):
        asyncio.run(client.post(PATH, b"{}"))
