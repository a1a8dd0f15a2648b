"""Where a source's events land in a test: taken one by one, in order, each of an expected kind."""

from __future__ import annotations

import queue
from collections.abc import Iterable
from typing import TypeVar

from gpuward_supervisor.core.events import SupervisorEvent

PATIENCE_S = 20.0

E = TypeVar("E")


class EventInbox:
    """Takes events from any thread."""

    def __init__(self) -> None:
        self._events: queue.Queue[SupervisorEvent] = queue.Queue()

    def post(self, event: SupervisorEvent) -> None:
        self._events.put(event)

    def post_all(self, events: Iterable[SupervisorEvent]) -> None:
        for event in events:
            self._events.put(event)

    def next(self, kind: type[E]) -> E:
        """The next event, which must be of this kind."""
        event = self._events.get(timeout=PATIENCE_S)
        assert isinstance(event, kind), f"expected {kind.__name__}, got {event}"
        return event

    def until(self, kind: type[E]) -> E:
        """The next event of this kind; others before it are dropped."""
        while True:
            event = self._events.get(timeout=PATIENCE_S)
            if isinstance(event, kind):
                return event

    def empty(self) -> bool:
        return self._events.empty()
