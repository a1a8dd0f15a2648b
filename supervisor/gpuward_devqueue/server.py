"""The queue as an HTTP and WebSocket server on one port: start it, use its broker, stop it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from aiohttp import web

from gpuward_devqueue.broker import Broker
from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.connection import serve_worker
from gpuward_devqueue.errors import NotRunning, PortTaken
from gpuward_devqueue.rest import RestRoutes, errors_as_json
from gpuward_devqueue.transfer import TransferRoutes

#: How long open requests may go on after ``stop``; long polls and scripted stalls are cut off then.
SHUTDOWN_S = 0.5
#: Bounds of the pause between two looks at leases and callers.
SWEEP_S_MIN, SWEEP_S_MAX = 0.02, 0.25
GOING_AWAY = 1001


class DevQueue:
    """A development queue; an async context manager.

    Args:
        config: see ``DevQueueConfig``.
    """

    def __init__(self, config: DevQueueConfig | None = None) -> None:
        self.config = config or DevQueueConfig()
        #: The queue proper: submit, wait, look things up. Only on the loop that called ``start``.
        self.broker = Broker(self.config)
        self._runner: web.AppRunner | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The port it listens on.

        Raises:
            NotRunning: not started yet.
        """
        if self._port == 0:
            raise NotRunning("the queue has no port before start()")
        return self._port

    @property
    def http_url(self) -> str:
        """Where callers go: ``http://host:port``."""
        return f"http://{self._reachable_host()}:{self.port}"

    @property
    def ws_url(self) -> str:
        """Where workers go, as ``CASOLA_WS_URL`` wants it: without the ``/ws`` they append themselves."""
        return f"ws://{self._reachable_host()}:{self.port}"

    async def start(self) -> None:
        """Bind and serve.

        Raises:
            PortTaken: the address cannot be bound.
        """
        app = web.Application(client_max_size=self.config.max_body_bytes + 1, middlewares=[errors_as_json])
        app.add_routes(RestRoutes(self.broker).routes())
        app.add_routes(TransferRoutes(self.broker).routes())
        app.add_routes([web.get("/ws", self._serve_worker)])
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=SHUTDOWN_S, handler_cancellation=False)
        await runner.setup()
        site = web.TCPSite(runner, self.config.host, self.config.port, backlog=1024)
        try:
            await site.start()
        except OSError as refusal:
            await runner.cleanup()
            raise PortTaken(
                f"cannot listen on {self.config.host}:{self.config.port}: {refusal.strerror or refusal}; "
                "stop what uses the port, or choose another (0 = any free one)"
            ) from refusal
        self._runner = runner
        self._port = int(runner.addresses[0][1])
        self._sweeper = asyncio.create_task(self._sweep(), name="devqueue-sweep")

    async def stop(self) -> None:
        """Close all connections (1001) and free the port; a second call does nothing."""
        runner, sweeper = self._runner, self._sweeper
        self._runner = self._sweeper = None
        if runner is None or sweeper is None:
            return
        sweeper.cancel()
        (swept,) = await asyncio.gather(sweeper, return_exceptions=True)
        await self.broker.close_all(GOING_AWAY, within_s=SHUTDOWN_S)
        await runner.cleanup()
        if isinstance(swept, Exception):
            raise swept  # our own bug: leases stood still since then

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _serve_worker(self, request: web.Request) -> web.StreamResponse:
        return await serve_worker(self.broker, request)

    async def _sweep(self) -> None:
        shortest_s = min(self.config.lease_s, self.config.timeout_s)
        pause_s = min(max(shortest_s / 10, SWEEP_S_MIN), SWEEP_S_MAX)
        while True:
            await asyncio.sleep(pause_s)
            self.broker.sweep()

    def _reachable_host(self) -> str:
        host = self.config.host
        if host in {"0.0.0.0", "::", ""}:
            return "127.0.0.1"
        return f"[{host}]" if ":" in host else host
