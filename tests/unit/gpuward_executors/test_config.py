from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gpuward_executors.config import load, make_folders
from gpuward_executors.errors import StartInvalid
from gpuward_ipc.endpoints import ENV_CONFIG, ENV_DEATH_FD, ENV_EXECUTOR, ENV_LINK, ENV_PARENT
from gpuward_ipc.startup import EngineKind, EngineSpec, ExecutorStart, write_start
from gpuward_ipc.types import ExecutorName, Incarnation

START = ExecutorStart(
    ExecutorName("gpu0"), Incarnation(2), EngineSpec(kind=EngineKind.VLLM, model="m"), 4, "/w", "/w/spool"
)


def environ(folder: Path, start: ExecutorStart = START, **others: str) -> dict[str, str]:
    path = folder / "start.json"
    write_start(start, path)
    return {ENV_LINK: "ipc:///x", ENV_CONFIG: str(path), ENV_EXECUTOR: "gpu0.2", **others}


def refusal(environment: dict[str, str]) -> str:
    with pytest.raises(StartInvalid) as caught:
        load(environment)
    return str(caught.value)


def test_a_start_is_read_as_it_was_written(tmp_path: Path) -> None:
    settings = load(environ(tmp_path, **{ENV_DEATH_FD: "7", ENV_PARENT: "123"}))
    assert (settings.start, settings.link) == (START, "ipc:///x")
    assert (settings.death_fd, settings.parent_pid) == (7, 123)


def test_an_executor_may_be_started_by_hand(tmp_path: Path) -> None:
    settings = load(environ(tmp_path))
    assert (settings.death_fd, settings.parent_pid) == (None, None)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = refusal({ENV_CONFIG: str(tmp_path / "gone"), ENV_PARENT: "me"})
    for part in (ENV_LINK, "gone: No such file", f"{ENV_PARENT} is 'me'", "gpuward run"):
        assert part in text


def test_a_start_without_a_file_is_refused() -> None:
    assert f"{ENV_CONFIG} is not set" in refusal({ENV_LINK: "ipc:///x"})


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"executor":1}', b"\xff", b'{"surprise":1}'])
def test_a_file_that_is_no_start_is_refused(tmp_path: Path, content: bytes) -> None:
    environment = environ(tmp_path)
    Path(environment[ENV_CONFIG]).write_bytes(content)
    assert f"start file {environment[ENV_CONFIG]}: " in refusal(environment)


def test_a_tag_of_another_incarnation_is_refused(tmp_path: Path) -> None:
    text = refusal(environ(tmp_path, **{ENV_EXECUTOR: "gpu0.1"}))
    assert f"{ENV_EXECUTOR} is 'gpu0.1', the start file says 'gpu0.2'" in text


@pytest.mark.parametrize(
    ("start", "engine", "text"),
    [
        ({"slots": 0}, {}, "slots is 0: expected at least 1"),
        ({"heartbeat_s": 0.0}, {}, "heartbeat_s is 0"),
        ({}, {"port": 0}, "engine.port is 0"),
        ({}, {"model": ""}, "engine.serve_command and engine.model"),
        ({}, {"kind": EngineKind.COMMAND}, "engine.command is empty"),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, start: dict[str, Any], engine: dict[str, Any], text: str
) -> None:
    changed = msgspec.structs.replace(START.engine, **engine)
    assert text in refusal(environ(tmp_path, msgspec.structs.replace(START, engine=changed, **start)))


def test_the_folders_of_an_incarnation_are_the_owners_alone(tmp_path: Path) -> None:
    start = msgspec.structs.replace(START, work_dir=str(tmp_path / "w"), spool_dir=str(tmp_path / "w" / "s"))
    make_folders(start)
    make_folders(start)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("w", "w/s")] == [0o700, 0o700]


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "w").write_text("in the way")
    start = msgspec.structs.replace(START, work_dir=str(tmp_path / "w"), spool_dir=str(tmp_path / "w" / "s"))
    with pytest.raises(StartInvalid, match=f"folder {tmp_path}/w cannot be made"):
        make_folders(start)
