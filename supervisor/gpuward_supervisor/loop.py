"""The single writer: poll, stamp the time, decide, commit, perform. One thread, one state, no locks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import zmq

from gpuward_supervisor.core.commands import SupervisorCommand
from gpuward_supervisor.core.decide import decide, next_deadline
from gpuward_supervisor.core.events import SupervisorEvent, Ticked
from gpuward_supervisor.core.state import State

#: Longest sleep, in seconds; a bound for the damage of a deadline that was forgotten, nothing more.
SLEEP_MAX_S = 5.0


class Inlet(Protocol):
    """Something that the loop listens to."""

    @property
    def pollable(self) -> zmq.Socket[bytes] | int | None:
        """Polls readable when there is something to take; None when there is only a deadline."""

    def take(self, now_s: float) -> Sequence[SupervisorEvent]:
        """Take what is there, a bounded amount; called when it is readable or its deadline has come."""

    def next_deadline(self) -> float | None:
        """When ``take`` wants to be called even if nothing is readable, on the loop's clock."""


class Performer(Protocol):
    """What the loop does with decisions."""

    #: Exit code and reason once the core said ``Exit``.
    exit: tuple[int, str] | None

    def perform(self, decided: Iterable[SupervisorCommand]) -> list[SupervisorEvent]:
        """Perform the commands of one turn; returns the events that came of it at once."""


class Loop:
    """Runs the supervisor until the core says ``Exit``."""

    def __init__(
        self,
        state: State,
        effects: Performer,
        inlets: Sequence[Inlet],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Wire it up.

        Args:
            state: the core's state; the loop is its only writer.
            effects: performs commands.
            inlets: everything that is listened to, in the order in which it is asked.
            clock: monotonic seconds.
        """
        self._state = state
        self._effects = effects
        self._clock = clock
        self._poller = zmq.Poller()
        self._inlets = list(inlets)
        self._by_pollable: dict[object, Inlet] = {}
        for inlet in inlets:
            if inlet.pollable is not None:
                self._poller.register(inlet.pollable, zmq.POLLIN)
                self._by_pollable[inlet.pollable] = inlet
        #: Turns so far.
        self.turns = 0

    def run(self, first: Iterable[SupervisorEvent]) -> tuple[int, str]:
        """Run until the core says ``Exit``; returns its exit code and reason.

        Args:
            first: events that happened before the loop started, for example recovered results.
        """
        waiting = self._turn([*first, Ticked()], self._clock())
        while self._effects.exit is None:
            ready = self._sleep(bool(waiting))
            now_s = self._clock()
            happened = waiting
            for inlet in self._inlets:
                due_s = inlet.next_deadline()
                if inlet in ready or (due_s is not None and due_s <= now_s):
                    happened = [*happened, *inlet.take(now_s)]
            waiting = self._turn(happened, now_s)
        return self._effects.exit

    def _turn(self, happened: Iterable[SupervisorEvent], now_s: float) -> list[SupervisorEvent]:
        """Decide on everything that happened, then commit and perform once."""
        self.turns += 1
        state = self._state
        decided: list[SupervisorCommand] = []
        for event in happened:
            decided += decide(state, event, now_s)
        deadline_s = next_deadline(state)
        if deadline_s is not None and deadline_s <= now_s:
            decided += decide(state, Ticked(), now_s)
        return self._effects.perform(decided) if decided else []

    def _sleep(self, no_wait: bool) -> list[Inlet]:
        """Wait for the next input or deadline; returns the inlets that are readable."""
        timeout_ms = 0
        if not no_wait:
            now_s = self._clock()
            due_s = now_s + SLEEP_MAX_S
            for deadline_s in (next_deadline(self._state), *(i.next_deadline() for i in self._inlets)):
                if deadline_s is not None and deadline_s < due_s:
                    due_s = deadline_s
            # Rounded up: waking a fraction early would spin until the deadline.
            timeout_ms = int((due_s - now_s) * 1000) + 1 if due_s > now_s else 0
        return [self._by_pollable[pollable] for pollable, _ in self._poller.poll(timeout_ms)]
