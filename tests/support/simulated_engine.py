"""A simulated engine for tests: the real program as a child process, its log, and plain HTTP calls to it."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

#: Bound of every wait in seconds; far above what a healthy machine needs.
PATIENCE_S = 30.0

_READY = re.compile(r"Starting vLLM API server 0 on http://127\.0\.0\.1:(\d+)")


class SimulatedEngine:
    """Starts, watches and ends one simulated engine in a session of its own."""

    def __init__(self, *flags: str, environment: dict[str, str] | None = None, ready: bool = True) -> None:
        """Start the program.

        Args:
            flags: Added to the command line.
            environment: Added to this process's environment.
            ready: Wait until it serves.
        """
        self.lines: list[str] = []
        self.port = 0
        self._changed = threading.Condition()
        self._ended = False
        command = [sys.executable, "-m", "gpuward_executors.simulated", "serve", "tiny-model"]
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", "0", "--served-model-name", "default", *flags],
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._pump = threading.Thread(target=self._read_log, daemon=True)
        self._pump.start()
        if ready:
            self.port = int(self.wait_for_line(_READY.pattern)[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Process id of the API process."""
        return self.process.pid

    def child(self, name: str = "SIM::EngineCore") -> int:
        """Wait for the only process of this session with that name, and return its process id."""
        wait_until(lambda: len(self.processes(name)) == 1, f"one process {name}")
        return self.processes(name)[0]

    def processes(self, name: str = "") -> list[int]:
        """Return the living processes of this engine's session, all or those of one name."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                comm, fields = _stat(entry.name)
            except OSError:
                continue
            # state, parent, process group, session
            if fields[0] != "Z" and int(fields[3]) == self.pid and name in {"", comm}:
                found.append(int(entry.name))
        return found

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait until a line of the log matches, and return the match."""
        deadline_s = time.monotonic() + PATIENCE_S
        seen = 0
        with self._changed:
            while True:
                for line in self.lines[seen:]:
                    if match := re.search(pattern, line):
                        return match
                seen = len(self.lines)
                left_s = deadline_s - time.monotonic()
                log = "\n".join(self.lines)
                assert not self._ended and left_s > 0, f"no line like {pattern!r} in:\n{log}"
                self._changed.wait(left_s)

    def wait(self) -> int:
        """Wait for the end of the API process and return its exit code."""
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Kill what is left of the session."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            # Nobody is left.
            pass
        self.process.wait(PATIENCE_S)
        self._pump.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def request(self, method: str, path: str, body: object = None) -> tuple[int, bytes]:
        """Make one call on a connection of its own.

        Args:
            method: HTTP method.
            path: Path with its query.
            body: Bytes as they are, anything else as JSON.

        Returns:
            Status and body.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)
        try:
            connection.request(method, path, _encode(body))
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def get(self, path: str) -> tuple[int, bytes]:
        """GET a path."""
        return self.request("GET", path)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        """POST a body and return the status and the decoded answer."""
        status, answer = self.request("POST", path, body)
        return status, msgspec.json.decode(answer)

    def chat(self, text: str, **fields: object) -> tuple[int, Any]:
        """Ask one question."""
        return self.post("/v1/chat/completions", chat_body(text, **fields))

    def in_background(self, call: Callable[..., Any], *arguments: object, **fields: object) -> Future[Any]:
        """Make a call on a thread of its own, so that it is in flight while the test goes on."""
        future: Future[Any] = Future()

        def run() -> None:
            try:
                future.set_result(call(*arguments, **fields))
            except Exception as error:  # noqa: BLE001 - the test looks at it
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def metric(self, name: str) -> float:
        """Return the value of a metric, its labels left aside."""
        _, text = self.get("/metrics")
        match = re.search(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)$", text.decode(), re.MULTILINE)
        assert match, f"no metric {name}"
        return float(match[1])

    @contextmanager
    def open_request(self, path: str, body: object) -> Iterator[socket.socket]:
        """Send a request and leave the answer to the test; the connection is cut at the end."""
        encoded = _encode(body) or b""
        with socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S) as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: {len(encoded)}\r\n\r\n"
            connection.sendall(head.encode() + encoded)
            yield connection

    def _read_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended = True
            self._changed.notify_all()


def chat_body(text: str, **fields: object) -> dict[str, object]:
    """Return a chat request with one message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def events(body: bytes) -> list[str]:
    """Return the data of each event of a stream."""
    return [line.removeprefix("data: ") for line in body.decode().split("\n\n") if line]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again until the condition holds.

    Args:
        condition: Cheap, free of side effects.
        what: Named when it never holds.
    """
    deadline_s = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline_s, f"never: {what}"
        time.sleep(0.005)


def is_alive(pid: int) -> bool:
    """Return whether the process exists and is no zombie."""
    try:
        _, fields = _stat(str(pid))
    except OSError:
        return False
    return fields[0] != "Z"


def _stat(pid: str) -> tuple[str, list[str]]:
    text = Path("/proc", pid, "stat").read_text(errors="replace")
    return text[text.index("(") + 1 : text.rindex(")")], text[text.rindex(")") + 2 :].split()


def _encode(body: object) -> bytes | None:
    if body is None or isinstance(body, bytes):
        return body
    return msgspec.json.encode(body)
