"""Knows how the simulated engine starts: bind the port, start the engine child, then load the API server."""

import os
import signal
import socket
from collections.abc import Sequence
from types import FrameType

from gpuward_executors.simulated.engine_process import Settings, pack, spawn
from gpuward_executors.simulated.logs import STDERR, log, set_process_name, write_line
from gpuward_executors.simulated.options import Options, parse_options


def main(arguments: Sequence[str]) -> int:
    """Run the simulated engine.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0 for an end on request and after the engine child's death, 1 for a failed start.
    """
    options = parse_options(arguments)
    set_process_name("SIM::APIServer")
    if options.ignored:
        text = f"flags without a meaning in the simulated engine are ignored: {' '.join(options.ignored)}"
        log("APIServer", "WARNING", "cli.py:1", text)
    try:
        listener = _bind(options.host, options.port)
    except OSError as error:
        write_line(f"OSError: [Errno {error.errno}] {error.strerror}: {options.host}:{options.port}", STDERR)
        return 1
    segments = [f"/dev/shm/psm_sim_{os.getpid()}_{index}" for index in range(options.shm_segments)]  # noqa: S108
    pid, link = _start_engine(options, segments)
    _leave_nothing_on_signal(pid, segments)
    try:
        # The engine child starts up while this process is still loading its HTTP server.
        from gpuward_executors.simulated.server import run

        return run(options, listener, pid, link)
    finally:
        _end_engine(pid)
        _unlink(segments)


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _start_engine(options: Options, segments: list[str]) -> tuple[int, socket.socket]:
    ours, theirs = socket.socketpair()
    theirs.set_inheritable(True)
    pid = spawn("engine", theirs.fileno())
    theirs.close()
    start_faults = [armed.fault.kind.value for armed in options.faults if armed.at_start]
    settings = Settings(
        model=options.model,
        slots=options.max_num_seqs,
        token_s=options.token_s,
        prefill_s=options.prefill_s,
        startup_s=options.startup_s,
        startup_log=options.startup_log,
        startup_fault=start_faults[0] if start_faults else "",
        workers=options.workers,
        setsid_grandchild=options.setsid_grandchild,
        shm_segments=segments,
    )
    try:
        ours.sendall(pack(settings))
    except OSError:
        # It is dead already; the event loop will see the closed socket.
        pass
    return pid, ours


def _leave_nothing_on_signal(pid: int, segments: list[str]) -> None:
    """Until the server is up, a signal ends this process at once, as it ends vLLM while it imports."""

    def end(number: int, _: FrameType | None) -> None:
        _end_engine(pid)
        _unlink(segments)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)


def _end_engine(pid: int) -> None:
    try:
        # Only a child that was not reaped yet still owns its process id.
        if os.waitpid(pid, os.WNOHANG) == (0, 0):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    except ChildProcessError:
        # The server has reaped it.
        pass


def _unlink(segments: list[str]) -> None:
    for path in segments:
        try:
            os.unlink(path)
        except OSError:
            # Never made, or gone with /dev/shm.
            pass
