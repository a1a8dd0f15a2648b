"""Knows the engine child: its link to the API process, its workers, and the ways in which it can die.

The child is a bare interpreter (`-I -S`) with the standard library only, about 10 MiB. As in vLLM it lives
in its parent's process group and session, and it outlives a parent that was killed: whoever owns the
group has to sweep it.

Link: a stream socket; each frame is a little-endian 32-bit length and a marshalled value (both ends are the
same interpreter and of one trust).
To the child, first the settings, then lists of commands. From the child READY, then
`([(request id, new tokens, finish reason), …], running, waiting)`.
"""

import marshal
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn, TypedDict

from gpuward_executors.simulated.engine_core import Output, Scheduler
from gpuward_executors.simulated.logs import STDERR, log, set_process_name, write_line

#: The vLLM whose behaviour is imitated, marked so that nobody takes one for the other.
VERSION = "0.32.0+simulated"

READY = "ready"

#: (ADD, request id, tokens, finish reason, slowness factor, fault kind or "")
ADD = 0
#: (ABORT, request id)
ABORT = 1
#: (FAULT, kind)
FAULT = 2
#: (SLOW, factor): from now on, for every request.
SLOW = 3
#: (LEAVE,): end all requests with `abort`, then exit 0.
LEAVE = 4

Command = tuple[Any, ...]

_WORKER_LINGER_S = 2.0

_OOM_SERVING = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of "
    "79.19 GiB of which 1.31 GiB is free. Process 4242 has 77.87 GiB memory in use."
)
_OOM_LOADING = (
    "Failed to load model - not enough GPU memory. Try lowering --gpu-memory-utilization to free memory for "
    "weights, increasing --tensor-parallel-size, or using --quantization."
)
_SEGFAULT = "!!!!!!! Segfault encountered !!!!!!!"


class Settings(TypedDict):
    """What the child must know; sent as the first frame."""

    model: str
    slots: int
    token_s: float
    prefill_s: float
    startup_s: float
    startup_log: bool
    startup_fault: str
    workers: int
    setsid_grandchild: bool
    shm_segments: list[str]


def pack(value: Any) -> bytes:
    """Return one frame holding the value."""
    body = marshal.dumps(value)
    return len(body).to_bytes(4, "little") + body


def unpack(buffer: bytearray) -> list[Any]:
    """Take all whole frames off the front of the buffer and return their values."""
    values = []
    start = 0
    while len(buffer) - start >= 4:
        end = start + 4 + int.from_bytes(buffer[start : start + 4], "little")
        if len(buffer) < end:
            break
        values.append(marshal.loads(memoryview(buffer)[start + 4 : end]))  # noqa: S302 - our own other half
        start = end
    del buffer[:start]
    return values


def spawn(entry: str, *arguments: int, stdin: int | None = None, setsid: bool = False) -> int:
    """Start a bare interpreter on one of this module's entry functions.

    Args:
        entry: Name of a function in this module.
        arguments: Its arguments.
        stdin: File descriptor to become its standard input.
        setsid: Leave the session and the process group.

    Returns:
        The child's process id.
    """
    # The folder that holds the package, put last so that it can shadow nothing of the standard library.
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    numbers = ", ".join(str(argument) for argument in arguments)
    code = f"import sys; sys.path.append({root!r}); from {__name__} import {entry}; {entry}({numbers})"
    actions = [] if stdin is None else [(os.POSIX_SPAWN_DUP2, stdin, 0)]
    command = [sys.executable, "-I", "-S", "-c", code]
    return os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=setsid)


def engine(link: int) -> NoReturn:
    """Be the engine child.

    Args:
        link: File descriptor of the socket to the API process.
    """
    set_process_name("SIM::EngineCore")
    os.set_inheritable(link, False)
    # Ctrl-C reaches the whole group; the API process decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    EngineProcess(link).run()


def worker(index: int) -> NoReturn:
    """Be a worker of the engine: hold still until the engine at the other end of standard input is gone."""
    set_process_name("SIM::Worker" if index == 0 else f"SIM::Worker_TP{index}")
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.read(0, 1)
    log("Worker", "INFO", "multiproc_executor.py:843", "Parent process exited, terminating worker queues")
    time.sleep(_WORKER_LINGER_S)
    os._exit(0)


def stray() -> NoReturn:
    """Be a process that left its session and ignores polite requests: what a sweep must find."""
    set_process_name("SIM::Stray")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    while True:
        signal.pause()


class EngineProcess:
    """The engine child around its scheduler.

    Args:
        link: File descriptor of the socket to the API process.
    """

    def __init__(self, link: int) -> None:
        self._link = link
        self._buffer = bytearray()
        self._orphan = False
        self._terminated = False
        self._poll = select.poll()
        self._poll.register(link, select.POLLIN)
        self._settings: Settings = self._first_frame()
        self._scheduler = Scheduler(
            self._settings["slots"], self._settings["token_s"], self._settings["prefill_s"]
        )
        self._workers: dict[int, int] = {}
        self._last_counts = (0, 0)
        self._pending_fault = ""

    def run(self) -> NoReturn:
        """Start up, then serve for ever."""
        # A signal that comes between the check of the flag and the poll still ends the poll.
        waker, wake = os.pipe()
        os.set_blocking(wake, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        self._poll.register(waker, select.POLLIN)
        self._spawn_workers()
        if self._settings["setsid_grandchild"]:
            spawn("stray", setsid=True)
        for path in self._settings["shm_segments"]:
            with open(path, "wb") as segment:
                segment.write(bytes(4096))
        self._start_up()
        signal.signal(signal.SIGTERM, self._terminate)
        self._send(READY)
        while True:
            due_s = self._scheduler.next_due_s()
            timeout_ms = None if due_s is None else max(0, int((due_s - time.monotonic()) * 1000 + 0.999))
            for fd, _ in self._poll.poll(timeout_ms):
                if fd == self._link:
                    self._receive()
                elif fd == waker:
                    os.read(waker, 64)
                else:
                    self._lose_worker(fd)
            if self._terminated:
                self._leave()
            self._report(self._scheduler.step(time.monotonic()))
            if self._orphan and not self._scheduler.running:
                self._idle_for_ever()

    def _first_frame(self) -> Settings:
        while True:
            data = os.read(self._link, 65536)
            if not data:
                os._exit(1)
            self._buffer += data
            for settings in unpack(self._buffer):
                return settings  # type: ignore[no-any-return]

    def _spawn_workers(self) -> None:
        for index in range(self._settings["workers"]):
            # The write end stays open here and closes with this process, however it ends.
            reader, _ = os.pipe()
            pid = spawn("worker", index, stdin=reader)
            os.close(reader)
            pidfd = os.pidfd_open(pid)
            self._poll.register(pidfd, select.POLLIN)
            self._workers[pidfd] = index

    def _start_up(self) -> None:
        startup_s = self._settings["startup_s"]
        model = self._settings["model"]
        loading = f"Model loading took 0.01 GiB memory and {startup_s * 0.5:.2f} seconds"
        total = f"init engine (profile, create kv cache, warmup model) took {startup_s * 0.5:.2f} s"
        # Share of the start-up time that passes before the line, its source, its text.
        steps: tuple[tuple[float, str, str], ...] = (
            (0.1, "core.py:115", f"Initializing a V1 LLM engine (v{VERSION}) with config: model={model!r}"),
            (0.5, "default_loader.py:392", f"Loading weights took {startup_s * 0.4:.2f} seconds"),
            (0.0, "gpu_model_runner.py:5091", loading),
            (0.3, "monitor.py:48", f"torch.compile takes {startup_s * 0.3:.2f} s in total"),
            (0.0, "kv_cache_utils.py:1652", "GPU KV cache size: 1,048,576 tokens"),
            (0.1, "core.py:308", total),
        )
        for number, (share, source, text) in enumerate(steps):
            if share and startup_s:
                time.sleep(share * startup_s)
            if self._settings["startup_log"]:
                log("EngineCore", "INFO", source, text)
            if number == 1 and self._settings["startup_fault"]:
                self._fail(self._settings["startup_fault"], starting=True)

    def _terminate(self, *_: object) -> None:
        self._terminated = True

    def _receive(self) -> None:
        data = os.read(self._link, 262144)
        if not data:
            self._become_orphan()
            return
        self._buffer += data
        for commands in unpack(self._buffer):
            for command in commands:
                self._obey(command)
        if self._pending_fault:
            fault, self._pending_fault = self._pending_fault, ""
            # The request that brings the trouble is running when it happens, and the gauges say so.
            self._scheduler.admit(time.monotonic())
            self._report([])
            self._fail(fault)

    def _obey(self, command: Command) -> None:
        if command[0] == ADD:
            _, request_id, tokens, reason, factor, fault = command
            self._scheduler.add(request_id, tokens, reason, factor)
            self._pending_fault = fault or self._pending_fault
        elif command[0] == ABORT:
            self._scheduler.abort(command[1])
        elif command[0] == FAULT:
            self._pending_fault = command[1]
        elif command[0] == SLOW:
            self._scheduler.slow_down(command[1])
        elif command[0] == LEAVE:
            self._leave()

    def _report(self, outputs: list[Output]) -> None:
        counts = (self._scheduler.running, self._scheduler.waiting)
        if outputs or counts != self._last_counts:
            self._last_counts = counts
            self._send((outputs, *counts))

    def _send(self, value: object) -> None:
        if self._orphan:
            return
        view = memoryview(pack(value))
        try:
            while view:
                view = view[os.write(self._link, view) :]
        except OSError:
            self._become_orphan()

    def _become_orphan(self) -> None:
        if self._orphan:
            return
        self._orphan = True
        for fd in (self._link, *self._workers):
            self._poll.unregister(fd)
        # As the real one: it goes on with what it has, and a polite request no longer ends it.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _idle_for_ever(self) -> NoReturn:
        while True:
            signal.pause()

    def _leave(self) -> NoReturn:
        self._send((self._scheduler.abort_all(), 0, 0))
        os._exit(0)

    def _lose_worker(self, pidfd: int) -> None:
        if self._orphan or self._terminated:
            return
        name = f"VllmWorker-{self._workers[pidfd]}"
        text = f"Worker proc {name} died unexpectedly (exit code: None), shutting down executor."
        log("EngineCore", "ERROR", "multiproc_executor.py:315", text)
        text = "EngineCore encountered a fatal error.\nRuntimeError: Executor failed."
        log("EngineCore", "ERROR", "core.py:1512", text)
        os._exit(1)

    def _fail(self, kind: str, *, starting: bool = False) -> None:
        endings: dict[str, Callable[[], object]] = {
            "segv": lambda: _die_by_signal(signal.SIGSEGV),
            "abort": lambda: _die_by_signal(signal.SIGABRT),
            "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
            "exit0": lambda: os._exit(0),
            "oom": lambda: _die_of_memory(starting=starting),
            "hang": _hang,
            "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
        }
        endings[kind]()


def _die_by_signal(number: signal.Signals) -> None:
    if number == signal.SIGSEGV:
        write_line(_SEGFAULT, STDERR)
        write_line('  File "<unknown>", line 0, in simulated_kernel', STDERR)
    else:
        write_line("terminate called after throwing an instance of 'std::runtime_error'", STDERR)
    import resource

    # A pretended crash leaves no core file behind.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _die_of_memory(*, starting: bool) -> NoReturn:
    if starting:
        log("EngineCore", "ERROR", "gpu_model_runner.py:5077", _OOM_LOADING)
        log("EngineCore", "ERROR", "core.py:1512", f"EngineCore failed to start.\n{_OOM_SERVING}")
    else:
        log("EngineCore", "ERROR", "core.py:1512", f"EngineCore encountered a fatal error.\n{_OOM_SERVING}")
    os._exit(1)


def _hang() -> NoReturn:
    # Like a thread stuck in a kernel launch: alive, silent, and deaf to SIGTERM.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        signal.pause()
