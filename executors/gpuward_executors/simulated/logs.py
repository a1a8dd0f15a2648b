"""Knows the shape of the engine's log lines; standard library only, because the engine child imports it."""

import os
import time

STDOUT = 1
STDERR = 2


def write_line(text: str, fd: int = STDOUT) -> None:
    """Write one whole line with one system call, so that lines of several processes do not mix.

    Args:
        text: The line without its newline.
        fd: File descriptor, 1 or 2.
    """
    try:
        os.write(fd, f"{text}\n".encode(errors="replace"))
    except OSError:
        # The reader is gone or the disk is full: an engine does not die of its log.
        pass


def log(process: str, level: str, source: str, text: str, fd: int = STDOUT) -> None:
    """Write one log record; a text of several lines becomes several records, as vLLM's formatter does.

    Args:
        process: Name in the prefix, such as `APIServer` or `EngineCore`.
        level: `INFO`, `WARNING` or `ERROR`.
        source: `file.py:LINE` shown in brackets.
        text: The message.
        fd: File descriptor, 1 or 2.
    """
    stamp = time.strftime("%m-%d %H:%M:%S")
    for line in text.split("\n"):
        write_line(f"({process} pid={os.getpid()}) {level} {stamp} [{source}] {line}", fd)


def set_process_name(name: str) -> None:
    """Set what `ps` shows for this process.

    Args:
        name: At most 15 bytes are kept by the kernel.
    """
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as comm:
            comm.write(name[:15])
    except OSError:
        # Only cosmetics: /proc may be read-only or missing.
        pass
