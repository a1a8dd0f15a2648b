"""What the supervisor tells an executor at its start: one JSON file, readable by its owner only."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import msgspec

from gpuward_ipc.types import ExecutorName, Incarnation


class EngineKind(StrEnum):
    """What an executor fronts."""

    #: ``vllm serve`` or a program with its command line and HTTP interface.
    VLLM = "vllm"
    #: Any OpenAI-compatible server, started by a command of the user's.
    COMMAND = "command"
    #: The simulated engine of this project: no GPU, no model.
    SIMULATED = "simulated"
    #: No engine: the executor answers each job with its own payload (benchmarks, dry runs).
    ECHO = "echo"


class EngineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One engine, ready to be started: everything resolved, nothing left to look up."""

    kind: EngineKind
    host: str = "127.0.0.1"
    port: int = 8000
    #: Model argument of ``serve``.
    model: str = ""
    #: Name that engine requests carry as ``model``.
    served_model_name: str = "default"
    #: Executable of the ``vllm`` kind.
    serve_command: str = "vllm"
    #: Arguments after ours, already split.
    extra_args: tuple[str, ...] = ()
    #: Argument list of the ``command`` kind; ``{host}``, ``{port}``, ``{model}``, ``{served_model_name}``
    #: and ``{gpus}`` are replaced.
    command: tuple[str, ...] = ()
    #: Path that answers 200 once the engine can work.
    health_path: str = "/health"
    #: From the start of the process to the first 200 of ``health_path``, in seconds.
    start_timeout_s: float = 600.0
    #: Deadline of one request to the engine, in seconds.
    request_timeout_s: float = 600.0
    #: From TERM to KILL when the engine is stopped, in seconds.
    stop_grace_s: float = 5.0


class ExecutorStart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The start of one incarnation."""

    executor: ExecutorName
    incarnation: Incarnation
    engine: EngineSpec
    #: Jobs to run at once.
    slots: int
    #: Folder of this incarnation alone; the temporary directory of executor and engine lies in it.
    work_dir: str
    #: Folder inside ``work_dir`` for bodies that are too large for a frame.
    spool_dir: str
    heartbeat_s: float = 1.0
    log_level: str = "info"
    #: Indices of the GPUs this executor is pinned to; empty for none.
    gpus: tuple[int, ...] = ()
    #: gpuward version of the supervisor that spawns; the executor repeats it in ``Hello``.
    version: str = ""


def write_start(start: ExecutorStart, path: Path) -> None:
    """Write the file that ``GPUWARD_EXECUTOR_CONFIG`` names, readable by the owner only.

    Raises:
        OSError: it cannot be written.
    """
    path.touch(mode=0o600)
    path.write_bytes(msgspec.json.encode(start))


def read_start(path: Path) -> ExecutorStart:
    """Read that file.

    Raises:
        OSError: it cannot be read.
        msgspec.MsgspecError: it is not such a file.
    """
    return msgspec.json.decode(path.read_bytes(), type=ExecutorStart)
