from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import structlog

from gpuward_devqueue.config import DevQueueConfig
from gpuward_devqueue.thread import DevQueueThread

StartQueue = Callable[..., DevQueueThread]


@pytest.fixture
def start_queue() -> Iterator[StartQueue]:
    """Start queues with the given options; all are stopped afterwards."""
    started: list[DevQueueThread] = []

    def start(**options: object) -> DevQueueThread:
        queue = DevQueueThread(DevQueueConfig(**options)).start()  # type: ignore[arg-type]
        started.append(queue)
        return queue

    with structlog.testing.capture_logs():
        yield start
        for queue in started:
            queue.stop()


@pytest.fixture
def queue(start_queue: StartQueue) -> DevQueueThread:
    return start_queue()
