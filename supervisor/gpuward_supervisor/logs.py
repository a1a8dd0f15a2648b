"""How log lines look and where they go: one line per event on standard output, JSON or for a person's eyes.

Every line is safe to show: known secrets are taken out, control characters are escaped, long values are cut.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, assert_never

import msgspec
import structlog

from gpuward_supervisor.config.schema import LogFormat, LogLevel
from gpuward_supervisor.secrets import MASK, Secret

#: Longest value of one key, in characters.
VALUE_MAX = 2048
#: The same for tracebacks, of which the end is kept.
TRACEBACK_MAX = 8192
#: A shorter secret is not searched for: it would be found everywhere.
SECRET_MIN = 4

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_COLOURS = {
    "debug": "\x1b[2m",
    "info": "\x1b[32m",
    "warning": "\x1b[33m",
    "error": "\x1b[31m",
    "critical": "\x1b[31m",
}
_DIM, _BOLD, _PLAIN = "\x1b[2m", "\x1b[1m", "\x1b[0m"
#: JSON escapes C0 by itself; what is left can still move a terminal's cursor or turn text around.
_UNSAFE_BYTES = re.compile(rb"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_BARE = re.compile(r"[^\s\"=]+\Z")
_FIRST = frozenset({"ts", "level", "event", "node"})


class LogLines:
    """Makes log lines and writes them, from any thread.

    A reader that has gone, or a full pipe that is set non-blocking, costs lines and nothing else.
    """

    def __init__(
        self,
        *,
        node: str,
        fd: int = 1,
        pretty: bool = False,
        colours: bool = False,
        secrets: Iterable[Secret] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Prepare.

        Args:
            node: value of the key ``node`` of every JSON line.
            fd: descriptor that is written to.
            pretty: lines for a person instead of JSON.
            colours: with ``pretty``, ANSI colours.
            secrets: values that must not appear.
            clock: seconds since 1970.
        """
        self._node = node
        self._fd = fd
        self._pretty = pretty
        self._colours = colours
        self._secrets = _forms(secrets)
        self._clock = clock
        self._encode = msgspec.json.Encoder(enc_hook=_plain).encode
        self._lock = threading.Lock()
        self._second = -1
        self._second_text = ""
        #: Lines that could not be written.
        self.lost = 0

    def write(self, level: str, event: str, facts: Mapping[str, Any]) -> None:
        """Write one line; the short way for callers that log often, past structlog.

        Args:
            level: ``debug``, ``info``, ``warning`` or ``error``; it is not filtered here.
            event: what happened, as ``executor.exited``.
            facts: what there is to say about it.
        """
        self.put(self.line(level, event, facts))

    def line(self, level: str, event: str, facts: Mapping[str, Any]) -> bytes:
        """One line, with its end."""
        now_s = self._clock()
        if self._pretty:
            return self._pretty_line(now_s, level, event, facts)
        fields: dict[str, Any] = {
            "ts": self._timestamp(now_s),
            "level": level,
            "event": event,
            "node": self._node,
        }
        for key, value in facts.items():
            fields[f"{key}_" if key in _FIRST else key] = self._bounded(key, value)
        try:
            line = self._encode(fields)
        except (TypeError, ValueError, OverflowError, RecursionError):
            # Numbers beyond 64 bits, half a surrogate pair: said as text rather than not at all.
            line = self._encode({_sound(str(key)): _sound(str(value)) for key, value in fields.items()})
        line = _UNSAFE_BYTES.sub(_escaped_bytes, line)
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, MASK.encode())
        return line + b"\n"

    def put(self, line: bytes) -> None:
        """Write bytes that are whole lines."""
        with self._lock:
            try:
                written = os.write(self._fd, line)
                while written < len(line):
                    written += os.write(self._fd, line[written:])
            except OSError:
                self.lost += 1

    # ------------------------------------------------------------ parts of a line

    def _timestamp(self, now_s: float) -> str:
        second = int(now_s)
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
            self._second = second
        return f"{self._second_text}.{int((now_s - second) * 1000):03d}Z"

    def _bounded(self, key: str, value: Any) -> Any:
        kind = type(value)
        if kind is str:
            limit = TRACEBACK_MAX if key == "exception" else VALUE_MAX
            return value if len(value) <= limit else self._cut(value, limit, keep_end=key == "exception")
        if kind is int or kind is float or kind is bool or value is None:
            return value
        try:
            encoded = self._encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return self._bounded(key, _sound(str(value)))
        return value if len(encoded) <= VALUE_MAX else self._cut(encoded.decode(), VALUE_MAX)

    def _cut(self, text: str, limit: int, *, keep_end: bool = False) -> str:
        # Before the cut: half a secret is still half a secret, and would not be found any more.
        for secret in self._secrets:
            text = text.replace(secret.decode(), MASK)
        more = f"… ({len(text)} characters)"
        return f"{more} {text[-limit:]}" if keep_end else f"{text[:limit]}{more}"

    def _pretty_line(self, now_s: float, level: str, event: str, facts: Mapping[str, Any]) -> bytes:
        paint = self._paint if self._colours else _unpainted
        clock = time.strftime("%H:%M:%S", time.localtime(now_s)) + f".{int(now_s % 1 * 1000):03d}"
        below = ""
        words = []
        for key, value in facts.items():
            text = self._text(self._bounded(key, value))
            if key == "exception":
                below = "".join(f"\n    {_CONTROL.sub(_escaped, row)}" for row in text.splitlines())
            else:
                shown = text if _BARE.match(text) else f'"{text}"'
                words.append(f"{paint(_CONTROL.sub(_escaped, key), _DIM)}={_CONTROL.sub(_escaped, shown)}")
        head = f"{paint(clock, _DIM)} {paint(f'{level:<7}', _COLOURS.get(level, ''))} "
        line = head + " ".join([paint(_CONTROL.sub(_escaped, event), _BOLD), *words]) + below
        for secret in self._secrets:
            line = line.replace(secret.decode(), MASK)
        return _sound(line).encode() + b"\n"

    def _text(self, value: Any) -> str:
        return value if isinstance(value, str) else self._encode(value).decode()

    @staticmethod
    def _paint(text: str, colour: str) -> str:
        return f"{colour}{text}{_PLAIN}"


def configure(
    *, node: str, level: LogLevel, form: LogFormat, secrets: Iterable[Secret] = (), fd: int = 1
) -> LogLines:
    """Make structlog write such lines, in this process and once.

    Args:
        node: name of the node.
        level: least level that is written.
        form: JSON or pretty; ``auto`` is pretty on a terminal.
        secrets: values that must not appear.
        fd: descriptor that is written to.
    """
    terminal = os.isatty(fd)
    match form:
        case LogFormat.AUTO:
            pretty = terminal
        case LogFormat.PRETTY:
            pretty = True
        case LogFormat.JSON:
            pretty = False
        case _:
            assert_never(form)
    lines = LogLines(
        node=node, fd=fd, pretty=pretty, colours=terminal and colours_wanted(os.environ), secrets=secrets
    )

    def render(_logger: object, method: str, event_dict: MutableMapping[str, Any]) -> bytes:
        event = event_dict.pop("event", "")
        if "exc_info" in event_dict:
            _spell_out_exception(event_dict)
        return lines.line("error" if method == "exception" else method, str(event), event_dict)

    structlog.configure(
        processors=[render],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level.value]),
        logger_factory=lambda *_: _Outlet(lines),
        cache_logger_on_first_use=True,
    )
    return lines


def colours_wanted(environ: Mapping[str, str]) -> bool:
    """Whether the environment lets a terminal have colours (``NO_COLOR``, ``TERM=dumb``)."""
    return not environ.get("NO_COLOR") and environ.get("TERM", "") != "dumb"


class _Outlet:
    """The end of structlog's chain: takes finished lines."""

    __slots__ = ("critical", "debug", "error", "exception", "info", "msg", "warning")

    def __init__(self, lines: LogLines) -> None:
        self.msg = self.debug = self.info = self.warning = self.error = self.critical = self.exception = (
            lines.put
        )


def _spell_out_exception(event_dict: MutableMapping[str, Any]) -> None:
    import traceback  # only errors pay for it

    given = event_dict.pop("exc_info")
    if not given:
        return
    error = (
        given
        if isinstance(given, BaseException)
        else given[1]
        if isinstance(given, tuple)
        else sys.exception()
    )
    if error is not None:
        event_dict["exception"] = "".join(traceback.format_exception(error))


def _forms(secrets: Iterable[Secret]) -> tuple[bytes, ...]:
    found: set[bytes] = set()
    for secret in secrets:
        value = secret.reveal()
        if len(value) >= SECRET_MIN:
            # As it is, and as it looks inside JSON.
            found |= {value.encode(), msgspec.json.encode(value)[1:-1]}
    return tuple(sorted(found, key=len, reverse=True))


def _plain(value: Any) -> Any:
    if isinstance(value, BaseException):
        return f"{type(value).__name__}: {value}"
    return str(value)


def _sound(text: str) -> str:
    """A text that can be encoded, whatever was in it."""
    return text.encode("utf-8", "backslashreplace").decode()


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}" if ord(found[0]) < 256 else f"\\u{ord(found[0]):04x}"


def _escaped_bytes(found: re.Match[bytes]) -> bytes:
    return f"\\u{ord(found[0].decode()):04x}".encode()


def _unpainted(text: str, _colour: str) -> str:
    return text
