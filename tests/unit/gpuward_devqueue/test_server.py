from __future__ import annotations

import asyncio
import socket

import pytest
import structlog

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.errors import NotRunning, PortTaken
from gpuward_devqueue.server import DevQueue
from support.http_calls import call
from support.worker_client import WorkerClient


def test_it_serves_while_the_block_lasts_and_frees_the_port() -> None:
    async def story() -> int:
        async with DevQueue() as queue:
            answer = await asyncio.to_thread(call, "GET", queue.http_url + "/health")
            assert answer.json["status"] == "ok"
            assert queue.ws_url == f"ws://127.0.0.1:{queue.port}"
            return queue.port

    port = asyncio.run(story())
    with socket.socket() as probe, pytest.raises(ConnectionRefusedError):
        probe.connect(("127.0.0.1", port))


def test_a_port_in_use_is_named_with_a_way_out() -> None:
    async def story() -> None:
        async with DevQueue() as first:
            with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{first.port}.*choose another"):
                await DevQueue(DevQueueConfig(port=first.port)).start()

    asyncio.run(story())


def test_workers_are_told_that_the_queue_goes_away() -> None:
    async def story() -> None:
        queue = DevQueue()
        await queue.start()
        worker = await asyncio.to_thread(WorkerClient.registered, queue.ws_url)
        leaving = asyncio.create_task(asyncio.to_thread(worker.receive_close))
        await queue.stop()
        assert await leaving == 1001
        await queue.stop()

    with structlog.testing.capture_logs():
        asyncio.run(story())


def test_a_worker_that_does_not_answer_the_close_does_not_hold_up_the_stop() -> None:
    async def story() -> None:
        queue = DevQueue()
        await queue.start()
        worker = await asyncio.to_thread(WorkerClient.registered, queue.ws_url)
        async with asyncio.timeout(10):
            await queue.stop()
        worker.abort()

    with structlog.testing.capture_logs():
        asyncio.run(story())


def test_a_request_in_flight_does_not_hold_up_the_stop() -> None:
    async def story() -> None:
        queue = DevQueue(DevQueueConfig(queue_transient=True))
        await queue.start()
        asking = asyncio.create_task(queue.broker.ask(b"{}"))
        async with asyncio.timeout(10):
            await queue.stop()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)

    asyncio.run(story())


def test_before_the_start_there_is_no_address() -> None:
    with pytest.raises(NotRunning):
        _ = DevQueue().http_url


@pytest.mark.parametrize(
    ("host", "shown"), [("0.0.0.0", "127.0.0.1"), ("::1", "[::1]"), ("localhost", "localhost")]
)
def test_addresses_can_be_used_as_they_are_shown(host: str, shown: str) -> None:
    async def story() -> None:
        async with DevQueue(DevQueueConfig(host=host)) as queue:
            assert queue.http_url == f"http://{shown}:{queue.port}"
            answer = await asyncio.to_thread(call, "GET", queue.http_url + "/health")
            assert answer.status == 200

    if host == "::1" and not _has_ipv6():
        pytest.skip("this machine has no IPv6 loopback")
    asyncio.run(story())


def test_leases_lapse_by_themselves() -> None:
    async def story() -> None:
        async with DevQueue(DevQueueConfig(lease_s=0.01)) as queue:
            job_id = queue.broker.submit(b"{}")
            worker = await asyncio.to_thread(WorkerClient.registered, queue.ws_url)
            await queue.broker.wait_until(lambda: queue.broker.job(job_id).fence >= 3, 10, "two lapses")
            await asyncio.to_thread(worker.abort)

    with structlog.testing.capture_logs():
        asyncio.run(story())


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True
