"""The guardian: waits for the supervisor's death and then kills everything that carries the node's tag.

A program of its own, started as ``python -I -S guardian.py <tag> <runtime folder> <start of the supervisor>``
with the read end of a pipe as standard input. End-of-file there means that the supervisor is gone, however it
went; a byte means that it has cleaned up by itself. It needs the standard library alone, carries no tag, and
inherits the lock of the state directory, so that a new supervisor starts only once it is done.
"""

from __future__ import annotations

import os
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # as in sweep.py

if __name__ == "__main__":  # -I and -S leave nothing of ours on the path
    sys.path.append(os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..")))

from gpuward_supervisor.processes import sweep  # noqa: E402 - found by the line above

#: The file that marks a runtime folder as ours; its content is the tag of the supervisor's life.
MARKER = ".gpuward"
#: Longest time for the kill, in seconds; what lives then hangs in the kernel and dies when that lets go.
KILL_WITHIN_S = 30.0


def clean_up(entry: str, runtime_dir: str, since_s: float) -> tuple[int, int]:
    """Kill every process with this tag, then remove shared memory and the runtime folder it left.

    Args:
        entry: ``GPUWARD_NODE=<life of the supervisor>``.
        runtime_dir: removed if its marker names the same life; empty for none.
        since_s: wall-clock time of the supervisor's start.

    Returns:
        How many processes were killed, and how many would not die.
    """
    tag = entry.encode()
    held: set[str] = set()

    def belongs(proc: sweep.Proc) -> bool:
        if not proc.carries(tag):
            return False
        held.update(sweep.shm_names_of((proc,)))
        return True

    ending = sweep.exterminate(belongs, KILL_WITHIN_S)
    if runtime_dir and reads(os.path.join(runtime_dir, MARKER)) == entry:
        for _ in sweep.remove_tree(runtime_dir):
            pass
    young = True
    while young:
        candidates, young = sweep.stale_shm(held, since_s, time.time())
        sweep.remove_shm(sweep.unheld_shm(sweep.unheld_shm(candidates)))
        if young:  # of unknown origin: an old age is part of the evidence
            time.sleep(sweep.SHM_AGE_S / 4)
    return len(ending.killed), 0 if ending.done else len(ending.survivors)


def reads(path: str) -> str:
    """Content of a small file; empty when it cannot be read."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(4096)
    except (OSError, ValueError):
        return ""


def main(argv: list[str]) -> int:
    """Wait, then clean up or not; the exit code is 0 unless something would not die."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    entry, runtime_dir, since_s = argv[1], argv[2], float(argv[3])
    if os.read(0, 1):
        return 0
    killed, left = clean_up(entry, runtime_dir, since_s)
    if killed or left:
        text = f"gpuward guardian: the supervisor is gone; killed {killed} processes, {left} would not die\n"
        try:
            os.write(2, text.encode())
        except OSError:
            pass
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
