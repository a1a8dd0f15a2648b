"""The environment and the folders of an engine: the executor's own, less what would mislead it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from gpuward_ipc.endpoints import ENV_EXECUTOR, ENV_NODE

_OUR_PREFIX = "GPUWARD_"
#: All processes of an incarnation are found by these.
_TAGS = frozenset({ENV_EXECUTOR, ENV_NODE})
#: To vLLM this is the base of its *internal* ports, to a container's owner the port of the server: passed
#: on, the executors of a node would fight over the same internal ports.
_MISLEADING = frozenset({"VLLM_PORT"})
#: An engine puts sockets named by a UUID into its temporary directory; with a longer directory they pass
#: the 107 bytes of a unix socket's path.
TEMPORARY_PATH_MAX_BYTES = 107 - len("/00000000-0000-0000-0000-000000000000")


def engine_environment(environ: Mapping[str, str], temporary: Path) -> dict[str, str]:
    """Environment of an engine.

    Args:
        environ: the executor's own environment, already free of the supervisor's secrets.
        temporary: the engine's own temporary directory.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _MISLEADING and (name in _TAGS or not name.startswith(_OUR_PREFIX))
    }
    kept["TMPDIR"] = str(temporary)
    # Python holds back output to a pipe: the last words of a crash would never be written.
    kept["PYTHONUNBUFFERED"] = "1"
    return kept


def make_temporary(work_dir: Path) -> Path:
    """Make the engine's temporary directory inside the incarnation's folder, for the owner alone.

    Raises:
        OSError: it cannot be made.
    """
    temporary = work_dir / "tmp"
    temporary.mkdir(mode=0o700, parents=True, exist_ok=True)
    return temporary
