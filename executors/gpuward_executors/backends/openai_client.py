"""HTTP to the executor's own engine: one try, a deadline, no proxy; what an answer's status means.

aiohttp is imported when the client is opened, not before: an executor says hello first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpuward_executors.backends.error_text import engine_message, presentable
from gpuward_executors.errors import EngineFailed, JobRefused

if TYPE_CHECKING:
    import aiohttp

#: Answers larger than this are refused: they would not fit into this machine's other plans either.
ANSWER_MAX_BYTES = 512 * 1024 * 1024
#: Servers on uvicorn (vLLM) close an idle connection after 5 s; a request sent at that moment would be
#: lost, so connections are given up before.
_KEEPALIVE_S = 3.0
_CONNECT_TIMEOUT_S = 5.0
#: Statuses that say "not now" or "not here" rather than "not this": the job is fine.
_NOT_THE_JOBS_FAULT = frozenset({408, 425, 429})
_JSON = {"Content-Type": "application/json"}
#: Names for "every interface", at which nothing can be reached on some systems.
_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}


class EngineClient:
    """Asks one engine; owned by the event loop."""

    def __init__(self, host: str, port: int, *, request_timeout_s: float, api_key: str) -> None:
        """Prepare.

        Args:
            host: where the engine listens.
            port: its port.
            request_timeout_s: deadline of one request, connecting included.
            api_key: sent as bearer token; servers without keys ignore it.
        """
        host = _ANY_ADDRESS.get(host, host)
        self._base = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._request_timeout_s = request_timeout_s
        self._authorization = {"Authorization": f"Bearer {api_key}"}
        self._session: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make the session; the event loop must run."""
        import aiohttp

        if self._session is not None:
            return
        self._session = aiohttp.ClientSession(
            base_url=self._base,
            headers=self._authorization,
            # Slots bound the requests; the health check must not queue behind them.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=self._request_timeout_s, sock_connect=_CONNECT_TIMEOUT_S),
        )

    async def close(self) -> None:
        """Close all connections; requests under way are aborted."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        """Status and body of a GET.

        Raises:
            EngineFailed: the connection was refused or lost.
            TimeoutError: no answer in time.
        """
        import aiohttp

        session = self._opened()
        timeout = aiohttp.ClientTimeout(total=timeout_s)
        try:
            async with session.get(path, timeout=timeout, allow_redirects=False) as answer:
                return answer.status, await _body(answer)
        except aiohttp.ClientError as error:
            raise EngineFailed(_connection_trouble(error)) from error

    async def post(self, path: str, body: bytes) -> bytes:
        """Body of a successful answer; cancelling the call closes the connection.

        Raises:
            JobRefused: the engine refused the request (4xx).
            EngineFailed: anything else that is not a success.
        """
        import aiohttp

        session = self._opened()
        try:
            async with session.post(path, data=body, headers=_JSON, allow_redirects=False) as answer:
                status, content = answer.status, await _body(answer)
        except TimeoutError as error:
            raise EngineFailed(f"the engine did not answer within {self._request_timeout_s:g} s") from error
        except aiohttp.ClientError as error:
            raise EngineFailed(_connection_trouble(error)) from error
        if 200 <= status < 300:
            return content
        text = presentable(f"Error code: {status} - {engine_message(content)}")
        if 400 <= status < 500 and status not in _NOT_THE_JOBS_FAULT:
            raise JobRefused(text)
        raise EngineFailed(text)

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            raise EngineFailed("the engine is not running")
        return self._session


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    if (answer.content_length or 0) <= ANSWER_MAX_BYTES and "Content-Length" in answer.headers:
        return await answer.read()
    whole = bytearray()
    async for chunk in answer.content.iter_any():
        whole += chunk
        if len(whole) > ANSWER_MAX_BYTES:
            raise EngineFailed(f"the engine's answer is larger than {ANSWER_MAX_BYTES} bytes")
    return bytes(whole)


def _connection_trouble(error: aiohttp.ClientError) -> str:
    # aiohttp's own texts name host and port, which are nobody's business outside.
    import aiohttp

    if isinstance(error, aiohttp.ClientConnectorError):
        return "the engine cannot be reached"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the engine broke its answer off"
    if isinstance(error, aiohttp.ClientConnectionError):
        return "the engine closed the connection without an answer"
    return f"the engine's answer is no valid HTTP ({type(error).__name__})"
