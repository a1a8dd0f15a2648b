"""The file that tells an executor what it is."""

from __future__ import annotations

import stat
from pathlib import Path

import msgspec
import pytest

from gpuward_ipc.startup import EngineKind, EngineSpec, ExecutorStart, read_start, write_start
from gpuward_ipc.types import ExecutorName, Incarnation

START = ExecutorStart(
    ExecutorName("gpu0"),
    Incarnation(1),
    EngineSpec(EngineKind.VLLM, model="m", extra_args=("--dtype", "half")),
    4,
    "/run/gpuward/gpu0.1",
    "/run/gpuward/gpu0.1/spool",
    gpus=(0,),
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_start(START, tmp_path / "start.json")
    assert read_start(tmp_path / "start.json") == START


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    write_start(START, tmp_path / "start.json")
    assert stat.S_IMODE((tmp_path / "start.json").stat().st_mode) == 0o600


def test_unknown_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "start.json").write_text('{"executor":"x","surprise":1}')
    with pytest.raises(msgspec.ValidationError):
        read_start(tmp_path / "start.json")
