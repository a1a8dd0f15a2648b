"""The API process's end of the engine, on a real engine child."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from gpuward_executors.simulated.engine_link import EngineDead, EngineLink, Ticket
from gpuward_executors.simulated.faults import parse_fault
from gpuward_executors.simulated.metrics import Metrics
from support.engine_child import PATIENCE_S, EngineChild

FOREVER = 10**9


@asynccontextmanager
async def linked(**changes: Any) -> AsyncIterator[tuple[EngineLink, Metrics]]:
    with EngineChild(**changes) as child:
        metrics = Metrics("m", slots=2)
        link = EngineLink(child.pid, metrics)
        child.socket.setblocking(False)
        async with asyncio.timeout(PATIENCE_S):
            await link.connect(child.socket)
            await link.ready.wait()
            yield link, metrics
            link.kill()
            await link.gone.wait()


def test_a_request_ends_with_its_tokens_and_reason() -> None:
    async def story() -> None:
        async with linked() as (link, metrics):
            ticket = link.submit(10, 4, "length")
            assert link.in_flight == 1
            await ticket.progress()
            assert (ticket.produced, ticket.finish_reason) == (4, "length")
            assert link.in_flight == 0
            assert (metrics.prompt_tokens, metrics.generation_tokens) == (10, 4)

    asyncio.run(story())


def test_a_stream_sees_tokens_as_they_come() -> None:
    async def story() -> None:
        async with linked(token_s=0.005) as (link, _):
            ticket = link.submit(1, 3, "stop", streamed=True)
            seen = []
            while not ticket.finish_reason:
                await ticket.progress(ticket.produced)
                seen.append(ticket.produced)
            assert len(seen) > 1
            assert seen[-1] == 3

    asyncio.run(story())


def test_many_requests_get_each_their_own_answer() -> None:
    async def story() -> None:
        async with linked() as (link, _):
            tickets = [link.submit(1, number, "stop") for number in range(1, 200)]
            await asyncio.gather(*(ticket.progress() for ticket in tickets))
            assert [ticket.produced for ticket in tickets] == list(range(1, 200))

    asyncio.run(story())


def test_an_aborted_request_frees_its_slot() -> None:
    async def story() -> None:
        async with linked(token_s=3600.0, slots=1) as (link, metrics):
            first = link.submit(1, FOREVER, "stop")
            second = link.submit(1, 0, "stop")
            link.abort(first)
            await second.progress()
            assert metrics.waiting == 0
            assert link.in_flight == 0

    asyncio.run(story())


def test_the_childs_death_reaches_every_request(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with linked(token_s=3600.0) as (link, _):
            tickets = [link.submit(1, FOREVER, "stop") for _ in range(3)]
            os.kill(link.pid, signal.SIGSEGV)
            for ticket in tickets:
                with pytest.raises(EngineDead):
                    await ticket.progress()
            await link.gone.wait()
            assert os.waitstatus_to_exitcode(link.wait_status) == -signal.SIGSEGV
            with pytest.raises(EngineDead):
                link.submit(1, 1, "stop")

    asyncio.run(story())
    assert "engine core exited unexpectedly" in capfd.readouterr().out


def test_a_wanted_end_is_not_reported_as_a_death(capfd: pytest.CaptureFixture[str]) -> None:
    async def story() -> None:
        async with linked(token_s=3600.0) as (link, _):
            ticket = link.submit(1, FOREVER, "stop")
            link.leave()
            await ticket.progress()
            assert ticket.finish_reason == "abort"
            await link.gone.wait()
            assert link.wait_status == 0

    asyncio.run(story())
    assert "unexpectedly" not in capfd.readouterr().out


def test_a_muted_link_leaves_requests_without_an_end() -> None:
    async def story() -> None:
        async with linked(token_s=3600.0) as (link, _):
            ticket = link.submit(1, FOREVER, "stop")
            link.mute()
            link.kill()
            await link.gone.wait()
            assert not ticket.dead
            assert not ticket.finish_reason

    asyncio.run(story())


def test_inflicted_slowness_slows_the_engine_and_a_wished_one_only_its_request() -> None:
    async def story() -> None:
        async with linked() as (link, _):
            slow = link.submit(1, FOREVER, "stop", streamed=True, fault=parse_fault("slow:0.5"))
            quick = link.submit(1, FOREVER, "stop")
            await quick.progress()
            await slow.progress()
            assert not slow.finish_reason
            link.inflict(parse_fault("slow:0.5"))
            late = link.submit(1, FOREVER, "stop", streamed=True)
            link.abort(slow)
            await late.progress()
            assert not late.finish_reason

    asyncio.run(story())


def test_an_end_that_came_before_the_death_counts() -> None:
    async def story() -> None:
        ticket = Ticket(1, 1, streamed=False)
        ticket.advance(3, "stop", 1.0)
        ticket.dead = True
        await ticket.progress()

    asyncio.run(story())
