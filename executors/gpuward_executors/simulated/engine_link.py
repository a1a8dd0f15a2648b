"""Knows the API process's end of the engine: requests in flight, their outputs, and the engine's death.

Commands of one turn of the event loop travel in one write, outputs of one engine step in one read.
"""

import asyncio
import os
import signal
import socket
import time
from typing import Any

from gpuward_executors.simulated.engine_process import (
    ABORT,
    ADD,
    FAULT,
    LEAVE,
    READY,
    SLOW,
    Command,
    pack,
    unpack,
)
from gpuward_executors.simulated.faults import Fault, FaultKind
from gpuward_executors.simulated.logs import log
from gpuward_executors.simulated.metrics import Metrics

_UNEXPECTED_END = "[shutdown] MPClient: engine core exited unexpectedly; starting cleanup"
_ENGINE_DEAD = (
    "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. "
    "See stack trace (above) for the root cause."
)


class EngineDead(Exception):
    """The engine child is gone; the request it served has no answer."""


class Ticket:
    """One request inside the engine.

    Attributes:
        request_id: The engine's number for it.
        prompt_tokens: Tokens read.
        produced: Tokens made so far.
        finish_reason: Empty while the request runs.
        arrived_s: Monotonic time of arrival.
        first_s: Monotonic time of the first output.
        last_s: Monotonic time of the last output.
    """

    __slots__ = (
        "_streamed",
        "_waiter",
        "arrived_s",
        "dead",
        "finish_reason",
        "first_s",
        "last_s",
        "produced",
        "prompt_tokens",
        "request_id",
    )

    def __init__(self, request_id: int, prompt_tokens: int, *, streamed: bool) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self.produced = 0
        self.finish_reason = ""
        self.arrived_s = time.monotonic()
        self.first_s = 0.0
        self.last_s = 0.0
        self.dead = False
        self._streamed = streamed
        self._waiter: asyncio.Future[None] | None = None

    async def progress(self, seen: int = 0) -> None:
        """Wait for the end, or, for a streamed request, for more than the tokens seen.

        Raises:
            EngineDead: The engine died before the request ended.
        """
        while not self.finish_reason and not self.dead and not (self._streamed and self.produced > seen):
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self.dead and not self.finish_reason:
            raise EngineDead

    def advance(self, tokens: int, finish_reason: str, now_s: float) -> None:
        """Take one output of the engine."""
        if not self.first_s:
            self.first_s = now_s
        self.produced += tokens
        self.last_s = now_s
        self.finish_reason = finish_reason
        if finish_reason or self._streamed:
            self.wake()

    def wake(self) -> None:
        """Let whoever waits look again."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class EngineLink(asyncio.Protocol):
    """The connection to the engine child and the requests behind it.

    Args:
        pid: Process id of the engine child, a child of this process.
        metrics: Fed with every output.
    """

    def __init__(self, pid: int, metrics: Metrics) -> None:
        self.pid = pid
        self._metrics = metrics
        self._buffer = bytearray()
        self._tickets: dict[int, Ticket] = {}
        self._next_id = 0
        self._commands: list[Command] = []
        self._transport: asyncio.WriteTransport | None = None
        self._end_expected = False
        self.ready = asyncio.Event()
        self.gone = asyncio.Event()
        #: Wait status of the child, once it is gone.
        self.wait_status = 0

    async def connect(self, link: socket.socket) -> None:
        """Take over the socket to the child."""
        await asyncio.get_running_loop().create_connection(lambda: self, sock=link)

    @property
    def in_flight(self) -> int:
        """Requests without an end."""
        return len(self._tickets)

    @property
    def dead(self) -> bool:
        """Whether the child is gone."""
        return self.gone.is_set()

    def submit(
        self,
        prompt_tokens: int,
        tokens: int,
        finish_reason: str,
        *,
        streamed: bool = False,
        fault: Fault | None = None,
    ) -> Ticket:
        """Hand a request to the engine.

        Args:
            prompt_tokens: Tokens read.
            tokens: Tokens to make; 0 for a request without text.
            finish_reason: What to report at the end.
            streamed: Wake the caller on every output rather than only at the end.
            fault: What the engine child shall suffer when this request runs.

        Raises:
            EngineDead: The child is gone.
        """
        if self.dead:
            raise EngineDead
        self._next_id += 1
        ticket = Ticket(self._next_id, prompt_tokens, streamed=streamed)
        self._tickets[ticket.request_id] = ticket
        factor = 1.0 if fault is None else fault.slow_factor
        # A request that asks for slowness is slow itself; only an armed fault slows the whole engine down.
        kind = fault.kind.value if fault is not None and fault.kind is not FaultKind.SLOW else ""
        self._send((ADD, ticket.request_id, tokens, finish_reason, factor, kind))
        return ticket

    def abort(self, ticket: Ticket) -> None:
        """Take a request back, since nobody waits for it any more."""
        if self._tickets.pop(ticket.request_id, None) is not None and not self.dead:
            self._send((ABORT, ticket.request_id))

    def inflict(self, fault: Fault) -> None:
        """Let the engine child suffer a fault now."""
        if fault.kind is FaultKind.SLOW:
            self._send((SLOW, fault.slow_factor))
        else:
            self._send((FAULT, fault.kind.value))

    def leave(self) -> None:
        """Ask the child to end all requests with `abort` and to exit 0."""
        self._end_expected = True
        self._send((LEAVE,))

    def kill(self) -> None:
        """SIGKILL the child, if it is still there."""
        self._end_expected = True
        if not self.dead:
            os.kill(self.pid, signal.SIGKILL)

    def mute(self) -> None:
        """Leave every request in flight without an end, whatever happens to the child."""
        self._tickets.clear()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (called by asyncio)."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take outputs (called by asyncio)."""
        self._buffer += data
        for frame in unpack(self._buffer):
            if frame == READY:
                self.ready.set()
            else:
                self._take(*frame)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the child's death (called by asyncio): the socket closes after its last output was read."""
        loop = asyncio.get_running_loop()
        pidfd = os.pidfd_open(self.pid)

        def reap() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            _, self.wait_status = os.waitpid(self.pid, 0)
            if self.ready.is_set() and not self._end_expected:
                log("APIServer", "WARNING", "core_client.py:817", _UNEXPECTED_END)
                log(
                    "APIServer",
                    "ERROR",
                    "async_llm.py:906",
                    f"AsyncLLM output_handler failed.\n{_ENGINE_DEAD}",
                )
            self.gone.set()
            self.ready.set()
            for ticket in self._tickets.values():
                ticket.dead = True
                ticket.wake()
            self._tickets.clear()

        # The socket closes a moment before the process is a zombie.
        loop.add_reader(pidfd, reap)

    def _take(self, outputs: list[tuple[int, int, str]], running: int, waiting: int) -> None:
        now_s = time.monotonic()
        prompt_tokens = 0
        generation_tokens = 0
        for request_id, tokens, finish_reason in outputs:
            ticket = self._tickets.get(request_id)
            if ticket is None:
                continue
            generation_tokens += tokens
            if ticket.first_s:
                self._metrics.inter_token(now_s - ticket.last_s)
            else:
                prompt_tokens += ticket.prompt_tokens
            ticket.advance(tokens, finish_reason, now_s)
            if finish_reason:
                del self._tickets[request_id]
                self._metrics.finished(ticket)
        self._metrics.step(running, waiting, prompt_tokens, generation_tokens)

    def _send(self, command: Command) -> None:
        if not self._commands:
            asyncio.get_running_loop().call_soon(self._flush)
        self._commands.append(command)

    def _flush(self) -> None:
        commands: list[Any] = self._commands
        self._commands = []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack(commands))
