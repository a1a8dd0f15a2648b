"""Names and places of the executor link: socket path, identities, environment of an executor.

The environment variables are the whole contract between the supervisor that spawns an executor and the
executor that starts: nothing about a start travels on the command line.
"""

from __future__ import annotations

from pathlib import Path

from gpuward_ipc.types import ExecutorName, Incarnation

#: Marks every process of an incarnation, inherited by all descendants: ``<name>.<incarnation>``.
ENV_EXECUTOR = "GPUWARD_EXECUTOR"
#: Marks every process of a node, inherited likewise: an id that belongs to the state directory.
ENV_NODE = "GPUWARD_NODE"
#: ZeroMQ endpoint of the supervisor's executor link.
ENV_LINK = "GPUWARD_LINK"
#: File with the executor's configuration as JSON (mode 0600, in the incarnation's own folder).
ENV_CONFIG = "GPUWARD_EXECUTOR_CONFIG"
#: File descriptor that reaches end-of-file when the supervisor is gone.
ENV_DEATH_FD = "GPUWARD_DEATH_FD"
#: Pid of the supervisor, to notice a parent that died before the parent-death signal was armed.
ENV_PARENT = "GPUWARD_PARENT"

#: Longest path of a unix socket, in bytes, less the NUL (Linux, unix(7)).
SOCKET_PATH_MAX_BYTES = 107


def link_endpoint(runtime_dir: Path) -> str:
    """Endpoint of the executor link inside the (private, mode 0700) runtime directory.

    Raises:
        ValueError: the path is too long for a unix socket.
    """
    path = runtime_dir / "executors.sock"
    if len(str(path).encode()) > SOCKET_PATH_MAX_BYTES:
        raise ValueError(
            f"runtime directory {runtime_dir} is too long: the socket path {path} has "
            f"{len(str(path).encode())} bytes, a unix socket takes at most {SOCKET_PATH_MAX_BYTES}; "
            "set node.runtime_dir to a shorter path"
        )
    return f"ipc://{path}"


def identity(executor: ExecutorName, incarnation: Incarnation) -> bytes:
    """ZeroMQ identity, and value of ``GPUWARD_EXECUTOR``, of an incarnation."""
    return f"{executor}.{incarnation}".encode()


def parse_identity(value: bytes) -> tuple[ExecutorName, Incarnation] | None:
    """Name and incarnation of an identity, or None when it is not one of ours."""
    try:
        name, _, number = value.decode().rpartition(".")
    except UnicodeDecodeError:
        return None
    if not name or not number.isascii() or not number.isdigit():
        return None
    return ExecutorName(name), Incarnation(int(number))
