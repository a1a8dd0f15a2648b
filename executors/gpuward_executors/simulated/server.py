"""Knows the API process: its routes, when it starts to listen, and its ways to end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus

import msgspec
from aiohttp import web

from gpuward_executors.simulated.chat import chat_completions
from gpuward_executors.simulated.completions import completions
from gpuward_executors.simulated.context import Context
from gpuward_executors.simulated.embeddings import embeddings
from gpuward_executors.simulated.engine_link import EngineDead, EngineLink
from gpuward_executors.simulated.engine_process import VERSION
from gpuward_executors.simulated.faults import PROCESS_FAULTS, parse_fault
from gpuward_executors.simulated.http_errors import ApiError, bad_request, engine_dead, malformed
from gpuward_executors.simulated.logs import STDERR, log, write_line
from gpuward_executors.simulated.metrics import Metrics
from gpuward_executors.simulated.misbehaviour import strike_process
from gpuward_executors.simulated.options import Options, TermBehaviour

_BODY_BYTES_MAX = 256 * 1024 * 1024
#: uvicorn's default, which vLLM keeps: clients that reuse older connections meet a closed one.
_KEEP_ALIVE_S = 5.0
_HANDLERS_TIMEOUT_S = 1.0
_STATS_PERIOD_S = 10.0
#: How long an engine child may take to leave before it counts as frozen; an idle one is killed sooner.
_LEAVE_BUSY_S = 2.0
_LEAVE_IDLE_S = 0.3

#: How often a busy real server was seen to end each way, of 14 tries.
_TERM_ODDS = {TermBehaviour.CLEAN: 4, TermBehaviour.ABORT: 4, TermBehaviour.HANG: 6}

Route = Callable[[Context, web.Request], Awaitable[web.StreamResponse]]


class FaultOrder(msgspec.Struct):
    """Body of `POST /fault`."""

    kind: str
    #: None: now. N: the request that follows N others.
    after_requests: int | None = None


def run(options: Options, listener: socket.socket, engine_pid: int, engine_socket: socket.socket) -> int:
    """Serve until the engine dies or a signal asks to stop.

    Args:
        options: The command line.
        listener: Bound, not yet listening.
        engine_pid: The engine child, already started.
        engine_socket: The socket to it.

    Returns:
        The exit code: 0 also after the engine's death, as vLLM; 1 when it died before it was ready.
    """
    return asyncio.run(_Server(options, listener, engine_pid).run(engine_socket))


class _Server:
    def __init__(self, options: Options, listener: socket.socket, engine_pid: int) -> None:
        self._options = options
        self._listener = listener
        self._metrics = Metrics(options.served_names[0], options.max_num_seqs)
        self._engine = EngineLink(engine_pid, self._metrics)
        self._context = Context(options, self._engine, self._metrics)
        self._stop = asyncio.Event()
        self._created = int(time.time())
        self._logged_tokens = (0, 0)

    async def run(self, engine_socket: socket.socket) -> int:
        engine = self._engine
        await engine.connect(engine_socket)
        await engine.ready.wait()
        if engine.dead:
            return self._failed_to_start()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        runner = await self._listen()
        loop.call_later(_STATS_PERIOD_S, self._log_stats)
        for armed in self._options.faults:
            if armed.after_s is not None:
                loop.call_later(armed.after_s, strike_process, self._context, armed.fault)
        await _first(self._stop.wait(), engine.gone.wait())
        if engine.gone.is_set():
            await self._engine_died()
        else:
            await self._terminate(runner)
        write_line("INFO:     Shutting down", STDERR)
        write_line("INFO:     Waiting for application shutdown.", STDERR)
        await runner.cleanup()
        write_line("INFO:     Application shutdown complete.", STDERR)
        write_line(f"INFO:     Finished server process [{os.getpid()}]", STDERR)
        return 0

    def _failed_to_start(self) -> int:
        status = os.waitstatus_to_exitcode(self._engine.wait_status)
        failed = {"EngineCore": status} if status else {}
        text = f"Engine core initialization failed. See root cause above. Failed core proc(s): {failed}"
        log("APIServer", "ERROR", "api_server.py:77", f"RuntimeError: {text}")
        write_line(f"RuntimeError: {text}", STDERR)
        return 1

    async def _listen(self) -> web.AppRunner:
        runner = web.AppRunner(
            self._application(),
            access_log=None,
            # A caller that leaves takes its request out of the engine.
            handler_cancellation=True,
            keepalive_timeout=_KEEP_ALIVE_S,
            shutdown_timeout=_HANDLERS_TIMEOUT_S,
        )
        await runner.setup()
        await web.SockSite(runner, self._listener, backlog=2048).start()
        host, port = self._listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        url = f"http://{shown}:{port}"
        log("APIServer", "INFO", "api_server.py:1346", f"Starting vLLM API server 0 on {url}")
        write_line(f"INFO:     Started server process [{os.getpid()}]", STDERR)
        write_line("INFO:     Waiting for application startup.", STDERR)
        write_line("INFO:     Application startup complete.", STDERR)
        return runner

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=_BODY_BYTES_MAX)
        for path, route in (
            ("/v1/chat/completions", chat_completions),
            ("/v1/completions", completions),
            ("/v1/embeddings", embeddings),
        ):
            app.router.add_post(path, self._guarded(partial(route, self._context)))
        for path, answer in (
            ("/health", self._health),
            ("/ping", self._health),
            ("/v1/models", self._models),
            ("/version", self._version),
            ("/load", self._load),
            ("/metrics", self._metrics_text),
        ):
            app.router.add_get(path, self._guarded(answer))
        if self._options.allow_faults:
            app.router.add_post("/fault", self._guarded(self._fault))
        app.router.add_route("*", "/{path:.*}", self._guarded(_not_found))
        return app

    def _guarded(
        self, route: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def answer(request: web.Request) -> web.StreamResponse:
            try:
                response = await route(request)
            except ApiError as error:
                response = error.response()
            except EngineDead:
                log("APIServer", "ERROR", "serving.py:500", "Error in completion stream generator.")
                response = engine_dead().response()
            if self._options.access_log:
                _log_access(request, response.status)
            return response

        return answer

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self._engine.dead else 200)

    async def _models(self, _: web.Request) -> web.Response:
        return _json(
            {
                "object": "list",
                "data": [
                    {
                        "id": name,
                        "object": "model",
                        "created": self._created,
                        "owned_by": "vllm",
                        "root": self._options.model,
                        "parent": None,
                        "max_model_len": self._options.max_model_len,
                        "permission": [],
                    }
                    for name in self._options.served_names
                ],
            }
        )

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": VERSION})

    async def _load(self, _: web.Request) -> web.Response:
        return _json({"server_load": self._engine.in_flight})

    async def _metrics_text(self, _: web.Request) -> web.Response:
        text = self._metrics.render()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _fault(self, request: web.Request) -> web.Response:
        try:
            order = msgspec.json.decode(await request.read(), type=FaultOrder)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise malformed(error) from error
        try:
            fault = parse_fault(order.kind)
        except ValueError as error:
            raise bad_request(str(error), "kind") from error
        if order.after_requests is None and fault.kind in PROCESS_FAULTS:
            # The answer is out before the process it comes from may die.
            asyncio.get_running_loop().call_later(0.01, strike_process, self._context, fault)
        else:
            self._context.faults.arm(fault, max(0, order.after_requests or 0))
        return _json({"armed": order.kind, "after_requests": order.after_requests})

    async def _engine_died(self) -> None:
        if os.environ.get("VLLM_KEEP_ALIVE_ON_ENGINE_DEATH") == "1":
            await self._stop.wait()
            return
        # For a moment the port still answers, and /health says 503.
        await _first(self._stop.wait(), asyncio.sleep(self._options.death_linger_s))

    async def _terminate(self, runner: web.AppRunner) -> None:
        engine = self._engine
        busy = engine.in_flight > 0
        for site in list(runner.sites):
            await site.stop()
        behaviour = self._options.term_behaviour
        if behaviour is TermBehaviour.RANDOM:
            choices, odds = zip(*_TERM_ODDS.items(), strict=True)
            behaviour = self._context.random.choices(choices, odds)[0]
        if busy and behaviour is TermBehaviour.HANG:
            await self._hang()
        elif busy and behaviour is TermBehaviour.ABORT:
            self._context.cut_streams = True
            self._kill_engine()
            await engine.gone.wait()
        else:
            engine.leave()
            patience = asyncio.sleep(_LEAVE_BUSY_S if busy else _LEAVE_IDLE_S)
            await _first(engine.gone.wait(), patience)
            if not engine.dead and busy:
                # A frozen engine: the requests are never answered, and only SIGKILL ends this process.
                await self._hang()
            if not engine.dead:
                self._kill_engine()
                await engine.gone.wait()

    async def _hang(self) -> None:
        self._engine.mute()
        self._kill_engine()
        write_line("INFO:     Shutting down", STDERR)
        write_line("INFO:     Waiting for connections to close. (CTRL+C to force quit)", STDERR)
        await asyncio.Event().wait()

    def _kill_engine(self) -> None:
        text = f"force killing remaining process EngineCore pid {self._engine.pid}"
        log("APIServer", "WARNING", "utils.py:640", text)
        self._engine.kill()

    def _log_stats(self) -> None:
        asyncio.get_running_loop().call_later(_STATS_PERIOD_S, self._log_stats)
        metrics = self._metrics
        tokens = (metrics.prompt_tokens, metrics.generation_tokens)
        read, made = (now - before for now, before in zip(tokens, self._logged_tokens, strict=True))
        self._logged_tokens = tokens
        if self._options.log_stats and (read or made or metrics.running):
            text = (
                f"Engine 000: Avg prompt throughput: {read / _STATS_PERIOD_S:.1f} tokens/s, "
                f"Avg generation throughput: {made / _STATS_PERIOD_S:.1f} tokens/s, "
                f"Running: {metrics.running} reqs, Waiting: {metrics.waiting} reqs"
            )
            log("APIServer", "INFO", "loggers.py:271", text)


async def _first(*waits: Awaitable[object]) -> None:
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


async def _not_found(_: web.Request) -> web.Response:
    return _json({"detail": "Not Found"}, status=404)


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(value), content_type="application/json")


def _log_access(request: web.Request, status: int) -> None:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    shown = f"{peer[0]}:{peer[1]}" if peer else "-"
    line = f'{shown} - "{request.method} {request.path_qs} HTTP/1.1" {status} {HTTPStatus(status).phrase}'
    write_line(f"INFO:     {line}")
