"""Lines that executors and engines print become lines of the node's log: levelled, bounded, counted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from gpuward_ipc.types import ExecutorName, Incarnation
from gpuward_supervisor.processes.base import OutputLine

#: Lines per executor and second that are relayed; a burst beyond is dropped and counted.
LINES_PER_S = 200
#: What a bucket saves up, in seconds of ``LINES_PER_S``: start-up logs and stack traces come in bursts.
BURST_S = 10.0
#: Keys of an executor's own lines that the log has under another meaning, or that its methods take.
_RESERVED = frozenset(
    {"ts", "source", "level", "event", "line", "executor", "incarnation", "node", "self", "method_name"}
)
_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Log(Protocol):
    """Takes a line; structlog's logger does."""

    def log(self, level: int, event: str, **facts: Any) -> Any:
        """Write a line."""


class OutputRelay:
    """Relays lines within a budget; owned by the loop."""

    def __init__(self, log: Log, clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._budgets: dict[ExecutorName, _Budget] = {}

    def relay(self, line: OutputLine) -> None:
        """Write one line of output to the log, or count it as dropped."""
        now_s = self._clock()
        budget = self._budgets.setdefault(line.executor, _Budget(now_s))
        who: dict[str, Any] = {"executor": line.executor, "incarnation": line.incarnation}
        parsed = _parse(line.text)
        level, source = parsed.get("level"), parsed.get("source")
        # What went wrong must not be what is dropped: errors always pass.
        if not budget.take(now_s) and level != "error":
            budget.dropped += 1
            return
        self._say_dropped(budget, who)
        number = _LEVELS.get(level, 20) if isinstance(level, str) else 20
        event, text = parsed.get("event"), parsed.get("line")
        if source == "executor" and isinstance(event, str):
            facts = {key: value for key, value in parsed.items() if key not in _RESERVED}
            self._log.log(number, event, **who, **facts)
        else:
            # JSON that is not an executor's is shown as it came: its keys mean what only its writer knows.
            whole = text if source == "engine" and isinstance(text, str) else line.text
            self._log.log(number, "engine.output", **who, line=whole)

    def finish(self, executor: ExecutorName, incarnation: Incarnation) -> None:
        """Say what was dropped last of an incarnation that prints no more."""
        budget = self._budgets.get(executor)
        if budget is not None:
            self._say_dropped(budget, {"executor": executor, "incarnation": incarnation})

    def _say_dropped(self, budget: _Budget, who: Mapping[str, Any]) -> None:
        if budget.dropped:
            self._log.log(30, "output.dropped", lines=budget.dropped, **who)
            budget.dropped = 0


def _parse(text: str) -> Mapping[str, Any]:
    if not text.startswith("{"):
        return {}
    try:
        return _decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return {}


class _Budget:
    """A token bucket; of an executor rather than of an incarnation, so that a crash loop shares one."""

    def __init__(self, now_s: float) -> None:
        self._left = LINES_PER_S * BURST_S
        self._at_s = now_s
        #: Lines left out and not yet told of.
        self.dropped = 0

    def take(self, now_s: float) -> bool:
        self._left = min(LINES_PER_S * BURST_S, self._left + (now_s - self._at_s) * LINES_PER_S)
        self._at_s = now_s
        if self._left < 1:
            return False
        self._left -= 1
        return True
