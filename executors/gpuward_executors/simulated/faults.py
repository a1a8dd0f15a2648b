"""Knows every fault the simulated engine can show, by name, and when an armed one strikes.

How a fault looks from outside is the business of `engine_process` (deaths and hangs) and `misbehaviour`
(answers).
"""

from collections.abc import Iterable
from enum import StrEnum

import msgspec


class FaultKind(StrEnum):
    """What can go wrong."""

    #: The engine child dies by SIGSEGV.
    SEGV = "segv"
    #: The engine child dies by SIGABRT.
    ABORT = "abort"
    #: The engine child dies by SIGKILL.
    KILL = "kill"
    #: The engine child exits 0 without a word; the API process follows with 0.
    EXIT0 = "exit0"
    #: The engine child prints CUDA's out-of-memory text and dies.
    OOM = "oom"
    #: The engine child lives but makes no more tokens; health stays 200.
    HANG = "hang"
    #: The engine child is stopped by SIGSTOP.
    STOP = "stop"
    #: Tokens come `argument` times slower (default 10).
    SLOW = "slow"
    #: The API process dies by SIGSEGV; the engine child is orphaned.
    SEGV_API = "segv-api"
    #: The API process ends with exit code 1 and takes the engine child along.
    EXIT1 = "exit1"
    #: 200 with a body that is no answer; `argument` picks the way (see GARBAGE_SHAPES).
    GARBAGE = "garbage"
    #: 500 while the engine is healthy.
    ERROR500 = "error500"
    #: 503, the engine says it is busy.
    BUSY503 = "busy503"
    #: 200 with finish reason `abort`.
    ABORT_ANSWER = "abort-answer"
    #: The connection is closed without an answer.
    DROP = "drop"
    #: An answer of `argument` bytes.
    BIG = "big"


#: What `garbage` may look like: no JSON; JSON of another shape; JSON cut short; the connection cut mid-body.
GARBAGE_SHAPES = ("text", "shape", "truncated", "cut")

#: Faults that happen inside the engine child.
ENGINE_FAULTS = frozenset(
    {
        FaultKind.SEGV,
        FaultKind.ABORT,
        FaultKind.KILL,
        FaultKind.EXIT0,
        FaultKind.OOM,
        FaultKind.HANG,
        FaultKind.STOP,
        FaultKind.SLOW,
    }
)

#: Faults that need no request to happen.
PROCESS_FAULTS = ENGINE_FAULTS | {FaultKind.SEGV_API, FaultKind.EXIT1}

_START_FAULTS = ENGINE_FAULTS - {FaultKind.SLOW}

_SLOW_FACTOR_DEFAULT = 10.0


class Fault(msgspec.Struct, frozen=True):
    """A fault and its parameter."""

    kind: FaultKind
    #: Factor of `slow`, bytes of `big`, shape of `garbage`; otherwise empty.
    argument: str = ""

    @property
    def slow_factor(self) -> float:
        """Times the usual time per token; 1 for every fault but `slow`."""
        if self.kind is not FaultKind.SLOW:
            return 1.0
        return float(self.argument) if self.argument else _SLOW_FACTOR_DEFAULT


class ArmedFault(msgspec.Struct, frozen=True):
    """A fault with the moment at which it strikes; exactly one of the moments is set."""

    fault: Fault
    at_start: bool = False
    #: Strikes the request that follows this many others.
    after_requests: int | None = None
    #: Strikes this many seconds after the engine became ready.
    after_s: float | None = None


def parse_fault(text: str) -> Fault:
    """Read `KIND[:ARGUMENT]`.

    Raises:
        ValueError: The kind is unknown, or the argument does not fit it.
    """
    name, _, argument = text.partition(":")
    try:
        kind = FaultKind(name)
    except ValueError:
        known = ", ".join(FaultKind)
        raise ValueError(f"fault {text!r}: unknown kind {name!r}; expected one of {known}") from None
    match kind:
        case FaultKind.SLOW:
            _require(not argument or _is_number(argument), text, "a factor above 0, such as slow:10")
        case FaultKind.BIG:
            _require(argument.isdigit() and int(argument) > 0, text, "a size in bytes, such as big:1000000")
        case FaultKind.GARBAGE:
            _require(argument in {"", *GARBAGE_SHAPES}, text, f"one of {', '.join(GARBAGE_SHAPES)}")
        case _:
            _require(not argument, text, f"no argument after {kind.value!r}")
    return Fault(kind, argument)


def parse_armed_fault(text: str) -> ArmedFault:
    """Read `KIND[:ARGUMENT][:WHEN]`, WHEN being `start`, `N` (requests before) or `Ns` (seconds from ready).

    Without WHEN the first request meets the fault. `slow`, `big` and `garbage` take their argument first.

    Raises:
        ValueError: The fault is malformed, or cannot happen at that moment.
    """
    parts = text.split(":")
    takes_argument = parts[0] in {FaultKind.SLOW, FaultKind.BIG, FaultKind.GARBAGE}
    split = 2 if takes_argument else 1
    fault = parse_fault(":".join(parts[:split]))
    when = ":".join(parts[split:]) or "0"
    if when == "start":
        _require(fault.kind in _START_FAULTS, text, f"at start only {', '.join(sorted(_START_FAULTS))}")
        return ArmedFault(fault, at_start=True)
    if when.isdigit():
        return ArmedFault(fault, after_requests=int(when))
    _require(when.endswith("s") and _is_number(when[:-1]), text, "WHEN as 'start', '20' or '1.5s'")
    _require(fault.kind in PROCESS_FAULTS, text, "a fault that needs no request")
    return ArmedFault(fault, after_s=float(when[:-1]))


class FaultPlan:
    """The faults that wait for their request.

    Args:
        armed: Faults from the command line; those without a request count are left aside.
    """

    def __init__(self, armed: Iterable[ArmedFault] = ()) -> None:
        self._countdown: list[tuple[int, Fault]] = [
            (one.after_requests, one.fault) for one in armed if one.after_requests is not None
        ]

    def arm(self, fault: Fault, after_requests: int) -> None:
        """Let the request that follows so many others meet the fault."""
        self._countdown.append((after_requests, fault))

    def next_request(self) -> Fault | None:
        """Count one request and return the fault it meets, if any."""
        if not self._countdown:
            return None
        due: Fault | None = None
        waiting = []
        for left, fault in self._countdown:
            if left or due is not None:
                waiting.append((max(0, left - 1), fault))
            else:
                due = fault
        self._countdown = waiting
        return due


def _is_number(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _require(condition: bool, text: str, expected: str) -> None:
    if not condition:
        raise ValueError(f"fault {text!r}: expected {expected}")
