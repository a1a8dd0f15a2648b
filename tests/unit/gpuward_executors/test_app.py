"""A process that is started wrongly leaves at once and says why; the rest is for the integration tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpuward_ipc.endpoints import ENV_CONFIG, ENV_EXECUTOR, ENV_LINK, ENV_PARENT
from gpuward_ipc.startup import ExecutorStart, write_start
from gpuward_ipc.types import ExecutorName, Incarnation
from support.executor_process import ECHO

pytestmark = pytest.mark.slow


def ended(**environ: str) -> tuple[int, list[dict[str, Any]]]:
    """Exit code and log of an executor with this environment."""
    done = subprocess.run(
        [sys.executable, "-m", "gpuward_executors"],
        capture_output=True,
        env={"PATH": os.environ["PATH"], **environ},
        check=False,
        timeout=60,
    )
    assert done.stderr == b""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def environ(folder: Path) -> dict[str, str]:
    start = ExecutorStart(
        ExecutorName("e"), Incarnation(1), ECHO, 1, str(folder / "w"), str(folder / "w" / "s")
    )
    write_start(start, folder / "start.json")
    return {ENV_LINK: f"ipc://{folder}/s", ENV_CONFIG: str(folder / "start.json"), ENV_EXECUTOR: "e.1"}


def test_a_wrong_start_is_exit_code_2_and_says_what_is_wrong() -> None:
    code, [line] = ended()
    assert code == 2
    assert (line["event"], ENV_LINK in line["error"]) == ("executor.start_invalid", True)


def test_a_supervisor_that_is_gone_already_is_exit_code_69(tmp_path: Path) -> None:
    assert ended(**environ(tmp_path), **{ENV_PARENT: "1" if os.getpid() != 1 else "2"}) == (69, [])


def test_a_folder_that_cannot_be_made_is_exit_code_2(tmp_path: Path) -> None:
    environment = environ(tmp_path)
    (tmp_path / "w").write_text("in the way")
    code, [line] = ended(**environment)
    assert code == 2
    assert "cannot be made" in line["error"]
