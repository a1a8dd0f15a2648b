"""What an executor is told at its start: the environment of the link and its start file, read once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec

from gpuward_executors.errors import StartInvalid
from gpuward_ipc.endpoints import ENV_CONFIG, ENV_DEATH_FD, ENV_EXECUTOR, ENV_LINK, ENV_PARENT, identity
from gpuward_ipc.startup import EngineKind, ExecutorStart, read_start


class Settings(msgspec.Struct, frozen=True):
    """Everything an executor knows when it starts."""

    #: ZeroMQ endpoint of the supervisor.
    link: str
    start: ExecutorStart
    #: Descriptor that reaches end-of-file when the supervisor is gone; None when started by hand.
    death_fd: int | None
    #: Pid of the supervisor; None when started by hand.
    parent_pid: int | None


def load(environ: Mapping[str, str]) -> Settings:
    """Read and check the start.

    Raises:
        StartInvalid: something is missing or wrong; the text lists all of it.
    """
    problems: list[str] = []
    link = environ.get(ENV_LINK, "")
    if not link:
        problems.append(f"{ENV_LINK} is not set: expected the endpoint of the supervisor's executor link")
    death_fd = _number(environ, ENV_DEATH_FD, problems)
    parent_pid = _number(environ, ENV_PARENT, problems)
    start = _start(environ, problems)
    if start is not None:
        problems += _contradictions(environ, start)
    if problems or start is None:
        raise StartInvalid("; ".join(problems) + " (executors are started by the supervisor: `gpuward run`)")
    return Settings(link, start, death_fd, parent_pid)


def make_folders(start: ExecutorStart) -> None:
    """Make the incarnation's folders where the supervisor has not.

    Raises:
        StartInvalid: they cannot be made.
    """
    for folder in (Path(start.work_dir), Path(start.spool_dir)):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StartInvalid(f"folder {folder} cannot be made: {error.strerror or error}") from error


def _start(environ: Mapping[str, str], problems: list[str]) -> ExecutorStart | None:
    name = environ.get(ENV_CONFIG, "")
    if not name:
        problems.append(f"{ENV_CONFIG} is not set: expected the path of the start file")
        return None
    try:
        return read_start(Path(name))
    except OSError as error:
        problems.append(f"start file {name}: {error.strerror or error}")
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        problems.append(f"start file {name}: {error}")
    return None


def _contradictions(environ: Mapping[str, str], start: ExecutorStart) -> list[str]:
    problems: list[str] = []
    tag = environ.get(ENV_EXECUTOR, "")
    expected = identity(start.executor, start.incarnation).decode()
    if tag != expected:
        # All processes of an incarnation are found, and killed, by this tag.
        problems.append(f"{ENV_EXECUTOR} is {tag!r}, the start file says {expected!r}")
    if start.slots < 1:
        problems.append(f"slots is {start.slots}: expected at least 1")
    if start.heartbeat_s <= 0:
        problems.append(f"heartbeat_s is {start.heartbeat_s:g}: expected more than 0")
    engine = start.engine
    if engine.kind is not EngineKind.ECHO and not 1 <= engine.port <= 65535:
        problems.append(f"engine.port is {engine.port}: expected 1..65535")
    if engine.kind is EngineKind.COMMAND and not engine.command:
        problems.append("engine.command is empty: expected the argument list of the server to start")
    if engine.kind is EngineKind.VLLM and not (engine.serve_command and engine.model):
        problems.append("engine.serve_command and engine.model: expected both for the vllm kind")
    return problems


def _number(environ: Mapping[str, str], name: str, problems: list[str]) -> int | None:
    value = environ.get(name, "")
    if not value:
        return None
    if not (value.isascii() and value.isdigit()):
        problems.append(f"{name} is {value!r}: expected a number")
        return None
    return int(value)
