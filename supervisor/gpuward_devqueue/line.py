"""The line of jobs that wait for a worker, one lane per wanted config, each in the order of submission."""

from __future__ import annotations

import heapq
from collections.abc import Callable

from gpuward_devqueue.records import JobId


class Line:
    """Waiting jobs by place in line.

    A job that ends while it waits is not searched for: it is skipped when it comes to the front.

    Args:
        waits: whether the job of this id still waits.
    """

    def __init__(self, waits: Callable[[JobId], bool]) -> None:
        self._waits = waits
        self._lanes: dict[str | None, list[tuple[int, JobId]]] = {}

    def add(self, config_id: str | None, place: int, job_id: JobId) -> None:
        """Put a job into the lane of its config (None = any worker), at its place."""
        heapq.heappush(self._lanes.setdefault(config_id, []), (place, job_id))

    def take(self, servable: Callable[[str | None], bool]) -> JobId | None:
        """Take out the earliest job of all lanes that can be served now, or return None.

        Args:
            servable: whether some worker has a free slot for this config.
        """
        first: tuple[int, str | None] | None = None
        for config_id in list(self._lanes):
            lane = self._lanes[config_id]
            while lane and not self._waits(lane[0][1]):
                heapq.heappop(lane)
            if not lane:
                del self._lanes[config_id]
            elif (first is None or lane[0][0] < first[0]) and servable(config_id):
                first = (lane[0][0], config_id)
        if first is None:
            return None
        return heapq.heappop(self._lanes[first[1]])[1]
