from __future__ import annotations

import asyncio

import pytest

from gpuward_devqueue.errors import StillWaiting
from gpuward_devqueue.records import JobId
from gpuward_devqueue.waiting import Waits

A, B = JobId("a"), JobId("b")


def test_a_wait_ends_with_the_last_of_its_jobs() -> None:
    async def story() -> None:
        waits = Waits()
        waiting = asyncio.create_task(waits.until_ended([A, B]))
        await asyncio.sleep(0)
        waits.ended(A)
        await asyncio.sleep(0)
        assert not waiting.done()
        waits.ended(B)
        await waiting

    asyncio.run(story())


def test_waiting_for_nothing_ends_at_once() -> None:
    asyncio.run(Waits().until_ended([]))


def test_a_cancelled_wait_leaves_the_others_alone() -> None:
    async def story() -> None:
        waits = Waits()
        gone = asyncio.create_task(waits.until_ended([A, B]))
        stays = asyncio.create_task(waits.until_ended([A]))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        waits.ended(A)
        waits.ended(B)
        await stays

    asyncio.run(story())


def test_a_statement_is_asked_again_after_every_change() -> None:
    async def story() -> None:
        waits, facts = Waits(), list[str]()
        waiting = asyncio.create_task(waits.until(lambda: len(facts) == 2, 5, "two facts"))
        await asyncio.sleep(0)
        for fact in ("one", "two"):
            assert not waiting.done()
            facts.append(fact)
            waits.changed()
        await waiting

    asyncio.run(story())


def test_a_statement_that_never_holds_is_named_in_the_error() -> None:
    with pytest.raises(StillWaiting, match=r"waited 0\.01 s for: pigs to fly"):
        asyncio.run(Waits().until(lambda: False, 0.01, "pigs to fly"))


def test_a_statement_that_raises_fails_its_own_wait_only() -> None:
    async def story() -> None:
        waits, facts = Waits(), list[str]()
        waiting = asyncio.create_task(waits.until(lambda: bool(facts) and facts[1] == "", 5, "luck"))
        await asyncio.sleep(0)
        facts.append("one")
        waits.changed()
        with pytest.raises(IndexError):
            await waiting

    asyncio.run(story())
