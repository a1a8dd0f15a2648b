"""How many open files a node needs, and the limit on them: raised where that is allowed, else refused."""

from __future__ import annotations

import errno
import resource

#: The supervisor's own, with room for transfers, in open files.
OWN = 48
#: What the supervisor holds for each executor, and once more while that is replaced, in open files.
PER_EXECUTOR = 10
#: What an executor holds for itself, in open files; each run has a connection to the engine besides.
OF_EXECUTOR = 48


def needed(executors: int, slots_max: int) -> int:
    """Open files that the supervisor, or the widest of its executors, may need; children inherit the limit.

    Args:
        executors: executors of the node.
        slots_max: most slots of one executor.
    """
    return max(OWN + PER_EXECUTOR * executors, OF_EXECUTOR + 2 * slots_max)


def ensure(count: int) -> None:
    """Raise the soft limit on open files when it is lower than this.

    Libraries below us abort the process when they run out of descriptors, without a word in our log.

    Args:
        count: open files that are needed.

    Raises:
        OSError: the hard limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= count:
        return
    if hard != resource.RLIM_INFINITY and hard < count:
        raise OSError(
            errno.EMFILE,
            f"the limit on open files is {hard}, this node needs {count}: raise it (`ulimit -n`, "
            "LimitNOFILE= of a systemd unit, --ulimit nofile= of a container)",
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
