"""`gpuward run`: logs are set up, then the supervisor runs; a refusal starts nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.configuration import REQUIRED

#: Runs the command with the supervisor replaced by a program that says what it was given.
_PROGRAM = """
import sys, types
from gpuward_supervisor.cli.command import parser_of
from gpuward_supervisor.cli.run import COMMAND

def run(config):
    import structlog
    structlog.get_logger("gpuward").info("app.ran", config_id=config.casola.config_id, token="hunter2-queue")
    return 7

sys.modules["gpuward_supervisor.app"] = types.SimpleNamespace(run=run)
sys.exit(COMMAND.run(parser_of(COMMAND).parse_args([])))
"""

#: Put before it: signals at a moment that no test could hit from outside.
_SIGNALLED_WHILE_LISTING = """
import os, signal
import gpuward_health.gpu
gpuward_health.gpu.list_gpus = lambda: os.kill(os.getpid(), signal.{name})
"""
_SIGNALLED_WHERE_RAISING_IS_OF_NO_USE = """
import os, signal
from gpuward_supervisor.cli import run as module
load = module.load_or_complain

class Careless:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

def load_or_complain(file):
    Careless()
    return load(file)

module.load_or_complain = load_or_complain
"""
_SIGNALLED_AT_THE_VERY_END = """
import atexit, os, signal
atexit.register(os.kill, os.getpid(), signal.SIGTERM)
"""


def ran(tmp_path: Path, before: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    folders = {"GPUWARD_STATE_DIR": str(tmp_path / "state"), "GPUWARD_RUNTIME_DIR": str(tmp_path / "run")}
    return subprocess.run(
        [sys.executable, "-c", before + _PROGRAM],
        env={**REQUIRED, **folders, "GPUWARD_GPUS": "none", "PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_the_supervisor_runs_with_logs_that_hide_the_token(tmp_path: Path) -> None:
    done = ran(tmp_path, CASOLA_API_TOKEN="hunter2-queue", CASOLA_MAX_JOBS="3", CASOLA_CAPACTY="1")
    assert (done.returncode, done.stderr) == (7, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["event"] for line in lines] == ["config.warning", "config.note", "app.ran"]
    assert "did you mean CASOLA_CAPACITY" in lines[0]["text"]
    assert (lines[2]["config_id"], lines[2]["token"]) == ("my-model", "***")


@pytest.mark.slow
def test_a_refused_configuration_starts_nothing(tmp_path: Path) -> None:
    done = ran(tmp_path, VLLM_PORT="x")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'environment: VLLM_PORT = "x": expected a whole number' in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_stop_that_is_asked_for_before_anything_runs_is_one(tmp_path: Path, name: str) -> None:
    """As PID 1 of a container a signal without a handler is not even delivered."""
    done = ran(tmp_path, _SIGNALLED_WHILE_LISTING.format(name=name), GPUWARD_GPUS="each")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.slow
def test_an_early_stop_is_not_forgotten_where_nothing_can_be_raised(tmp_path: Path) -> None:
    done = ran(tmp_path, _SIGNALLED_WHERE_RAISING_IS_OF_NO_USE)
    assert (done.returncode, done.stdout) == (0, ""), "the supervisor must not have run"


@pytest.mark.slow
def test_a_signal_after_the_end_does_not_change_the_exit_code(tmp_path: Path) -> None:
    assert ran(tmp_path, _SIGNALLED_AT_THE_VERY_END).returncode == 7
