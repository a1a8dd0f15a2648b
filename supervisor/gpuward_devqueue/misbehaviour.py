"""The faults the queue can be told to commit, and which of them are still due.

A misbehaviour waits for its occasion (a job offered, an upgrade, a ping, a request), lets ``skip`` of them
pass, then strikes ``times`` times. What a strike does is the business of whoever asked ``take``.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final

import msgspec

from gpuward_devqueue.errors import ConfigurationError

FOREVER: Final = 0


class Fault(StrEnum):
    """What the queue does wrong."""

    #: Closes the WebSocket with ``code`` after a job has been sent.
    CLOSE_MID_JOB = "close-mid-job"
    #: Cuts the TCP connection without a close frame after a job has been sent.
    ABORT_MID_JOB = "abort-mid-job"
    #: Closes with ``code`` instead of accepting a registration.
    CLOSE_AFTER_REGISTER = "close-after-register"
    #: Answers the upgrade with HTTP ``status``.
    REFUSE_UPGRADE = "refuse-upgrade"
    #: Sends every kind of junk frame before a job.
    JUNK_FRAMES = "junk-frames"
    #: Spreads one frame over ``delay_s``, as eight fragments.
    SLOW_FRAMES = "slow-frames"
    #: Pads a job's payload with ``size_bytes``, inline.
    OVERSIZED_JOB = "oversized-job"
    #: Sends a job again under a higher fence.
    DUPLICATE_HIGHER_FENCE = "duplicate-higher-fence"
    #: Sends a job's frame twice.
    DUPLICATE_SAME_FENCE = "duplicate-same-fence"
    #: Reads nothing from a worker for ``delay_s`` after one of its frames.
    STALL_READING = "stall-reading"
    #: Answers an upload with HTTP ``status``.
    REFUSE_PUT = "refuse-put"
    #: Answers a payload download with HTTP ``status``.
    REFUSE_PAYLOAD = "refuse-payload"
    #: Starts the body of a payload download only after ``delay_s``.
    SLOW_PAYLOAD = "slow-payload"
    #: Sends a payload body that never ends.
    ENDLESS_PAYLOAD = "endless-payload"
    #: Sends a payload body that is not JSON.
    BROKEN_PAYLOAD = "broken-payload"
    #: Revokes a job ``delay_s`` after it has been sent.
    REVOKE_MID_JOB = "revoke-mid-job"
    #: Leaves a WebSocket ping unanswered.
    WITHHOLD_PONG = "withhold-pong"


class Misbehaviour(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fault and how often it strikes; build with ``misbehaviour`` to get the defaults of its kind."""

    fault: Fault
    #: How often it strikes; 0 = until cleared.
    times: int = 1
    #: How many occasions pass unharmed before the first strike.
    skip: int = 0
    #: WebSocket close code, of the faults that close.
    code: int = 1011
    #: HTTP status, of the faults that refuse.
    status: int = 403
    #: Seconds, of the faults that wait.
    delay_s: float = 0.0
    #: Bytes, of the faults that inflate.
    size_bytes: int = 0

    def __post_init__(self) -> None:
        name = self.fault.value
        if self.times < 0 or self.skip < 0:
            raise ConfigurationError(
                f"misbehaviour {name}: times = {self.times}, skip = {self.skip}: expected 0 or more"
            )
        if not 1000 <= self.code <= 4999:
            raise ConfigurationError(f"misbehaviour {name}: code = {self.code}: expected 1000 to 4999")
        if not 400 <= self.status <= 599:
            raise ConfigurationError(f"misbehaviour {name}: status = {self.status}: expected 400 to 599")
        if self.delay_s < 0 or self.size_bytes < 0:
            raise ConfigurationError(f"misbehaviour {name}: delay_s and size_bytes must be 0 or more")


#: Where a kind of fault needs another default than the struct's.
_DEFAULTS: dict[Fault, dict[str, int | float]] = {
    Fault.REFUSE_UPGRADE: {"status": 401},
    Fault.REFUSE_PAYLOAD: {"status": 404},
    Fault.SLOW_FRAMES: {"delay_s": 2.0},
    Fault.SLOW_PAYLOAD: {"delay_s": 5.0},
    Fault.STALL_READING: {"delay_s": 5.0},
    Fault.OVERSIZED_JOB: {"size_bytes": 2 * 1024 * 1024},
}


def misbehaviour(fault: Fault | str, **given: float) -> Misbehaviour:
    """Build a misbehaviour with the defaults of its kind.

    Args:
        fault: a ``Fault`` or its name.
        **given: fields of ``Misbehaviour`` that differ from the defaults.

    Raises:
        ConfigurationError: no such fault, no such field, or a value out of range.
    """
    return from_fields({"fault": str(fault), **given})


def from_fields(fields: dict[str, object]) -> Misbehaviour:
    """Build a misbehaviour from decoded JSON; see ``misbehaviour``.

    Raises:
        ConfigurationError: as there.
    """
    name = fields.get("fault")
    try:
        fault = Fault(str(name))
    except ValueError:
        known = ", ".join(fault.value for fault in Fault)
        raise ConfigurationError(f"no misbehaviour is called {name!r}; there are: {known}") from None
    try:
        return msgspec.convert({**_DEFAULTS.get(fault, {}), **fields}, Misbehaviour)
    except msgspec.ValidationError as refusal:
        raise ConfigurationError(f"misbehaviour {fault.value}: {refusal}") from None


def parse(text: str) -> Misbehaviour:
    """Read a command line's ``fault[=times][,field=value]…``, e.g. ``close-mid-job=2,code=1012``.

    Raises:
        ConfigurationError: as ``misbehaviour``, or the text has another form.
    """
    head, *rest = text.split(",")
    name, has_times, times = head.partition("=")
    fields: dict[str, object] = {"fault": name.strip()}
    pairs = [("times", has_times, times)] if has_times else []
    pairs += [item.partition("=") for item in rest]
    for key, equals, value in pairs:
        try:
            if not equals:
                raise ValueError
            fields[key.strip()] = float(value) if key.strip() == "delay_s" else int(value)
        except ValueError:
            raise ConfigurationError(
                f"misbehaviour {text!r}: {key + equals + value!r} is not field=number; "
                "expected e.g. close-mid-job=2,code=1012,delay_s=0.5"
            ) from None
    return from_fields(fields)


class _Due(msgspec.Struct):
    what: Misbehaviour
    skip_left: int
    #: None = until cleared.
    times_left: int | None


class Script:
    """Which misbehaviours are still due; those of one kind strike in the order they were added."""

    def __init__(self) -> None:
        self._due: dict[Fault, list[_Due]] = {}

    def add(self, what: Misbehaviour) -> None:
        """Make a misbehaviour due."""
        times_left = None if what.times == FOREVER else what.times
        self._due.setdefault(what.fault, []).append(_Due(what, what.skip, times_left))

    def take(self, fault: Fault) -> Misbehaviour | None:
        """Use up one occasion for this fault; return the misbehaviour if it strikes now."""
        due = self._due.get(fault)
        if not due:
            return None
        first = due[0]
        if first.skip_left > 0:
            first.skip_left -= 1
            return None
        if first.times_left is not None:
            first.times_left -= 1
            if first.times_left == 0:
                due.pop(0)
        return first.what

    def clear(self, fault: Fault | None = None) -> None:
        """Call off one kind of fault, or (None) all."""
        if fault is None:
            self._due.clear()
        else:
            self._due.pop(fault, None)

    def due(self) -> list[Misbehaviour]:
        """Return what is still due, with the strikes and skips that are left."""
        return [
            msgspec.structs.replace(
                item.what, times=FOREVER if item.times_left is None else item.times_left, skip=item.skip_left
            )
            for items in self._due.values()
            for item in items
        ]


#: Frames no queue should send: what a worker must survive without dropping the connection. Text, then binary.
JUNK_TEXTS: tuple[bytes, ...] = (
    b"",
    b"{not json",
    b"[1,2,3]",
    b"42",
    b'"text"',
    b"null",
    b"[" * 5_000 + b"]" * 5_000,
    b'{"no":"type"}',
    b'{"type":7}',
    b'{"type":"mystery","job_id":"x"}',
    b'{"type":"job"}',
    b'{"type":"job","job_id":17,"mode":"transient","config_id":"c","payload":{},"fence_token":1}',
    b'{"type":"job","job_id":"","mode":"transient","config_id":"c","payload":{},"fence_token":1}',
    b'{"type":"job","job_id":"junk","mode":"sideways","config_id":"c","payload":{},"fence_token":"one"}',
    b'{"type":"job_revoked"}',
    b'{"type":"job_revoked","job_id":"never-offered","reason":"junk"}',
    b'{"type":"job_result_ref"}',
    b'{"type":"error","message":"junk"}',
)
JUNK_BINARIES: tuple[bytes, ...] = (b"\x00\xff\xfe", b'{"type":"job"}')
