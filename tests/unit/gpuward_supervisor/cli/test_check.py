"""What `gpuward check` says of a configuration."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import msgspec
import pytest

from gpuward_executors.engines import command as command_engine
from gpuward_executors.engines import simulated as simulated_engine
from gpuward_executors.engines import vllm as vllm_engine
from gpuward_supervisor.cli.check import (
    COMMAND,
    capacity,
    engine_command,
    missing_programs,
    overview,
    shown_command,
    table,
)
from gpuward_supervisor.cli.command import parser_of
from support.configuration import REQUIRED, configured

TOML = """
[executors]
environment = { A = "1", MY_TOKEN = "hunter2" }
[executors.engine]
model = "m"
serve_command = "/bin/true"
extra_args = ["--api-key", "sk-hunter2", "--x", '{"a": 1}']
[[executor]]
gpus = [0, 1]
slots = 4
[[executor]]
gpus = "none"
engine = { kind = "simulated", extra_args = [] }
[[executor]]
gpus = [2]
engine = { kind = "command", command = ["/bin/serve", "{host}:{port}", "{gpus}", '{"model": "{model}"}'] }
[[executor]]
engine = { kind = "echo" }
"""


def test_the_command_lines_shown_are_those_that_executors_start(tmp_path: Path) -> None:
    vllm, simulated, command, echo = configured(tmp_path, TOML, gpus=3).executors
    assert engine_command(vllm.engine, vllm.gpus) == vllm_engine.argv(vllm.engine)
    assert engine_command(simulated.engine, simulated.gpus) == simulated_engine.argv(simulated.engine)
    assert engine_command(command.engine, command.gpus) == command_engine.argv(command.engine, command.gpus)
    assert engine_command(echo.engine, echo.gpus) == []


def test_the_table_shows_what_would_run(tmp_path: Path) -> None:
    config = configured(tmp_path, TOML, environ={"CASOLA_API_TOKEN": "hunter2"}, gpus=3)
    text = table(config, ["look here"], colours=False)
    assert "wss://queue.example/ws  with a token" in text
    assert "7 jobs at once" in text
    assert "gpu0-1    0,1     4      8000  /bin/true serve m --host 127.0.0.1" in text
    assert "cpu1      no gpu  1      -     none: jobs are answered with their own payload" in text
    assert "warning: look here" in text
    assert str(tmp_path / "state") in text
    assert text.endswith("`gpuward run` does that.")


def test_colours_are_added_only_when_wanted(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert "\x1b" not in table(config, ["w"], colours=False)
    assert "\x1b[33mwarning\x1b[0m: w" in table(config, ["w"], colours=True)


def test_no_secret_is_shown_in_either_form(tmp_path: Path) -> None:
    config = configured(
        tmp_path, TOML, environ={"CASOLA_API_TOKEN": "hunter2-queue", "HF_TOKEN": "hf_hunter2"}, gpus=3
    )
    both = table(config, config.warnings, colours=False) + json.dumps(overview(config, config.warnings))
    assert "hunter2" not in both
    assert "--api-key '***'" in shown_command(config.executors[0]) or "--api-key ***" in both


def test_the_overview_is_plain_values(tmp_path: Path) -> None:
    config = configured(tmp_path, TOML, gpus=3)
    plain = msgspec.json.decode(msgspec.json.encode(overview(config, [])))
    assert plain["capacity"] == 7
    assert plain["source"] == {
        "url": "wss://queue.example",
        "config_id": "my-model",
        "worker_id": config.casola.worker_id,
        "token": False,
    }
    assert [executor["port"] for executor in plain["executors"]] == [8000, 8016, 8032, None]
    assert plain["executors"][0]["environment"] == {"A": "1", "MY_TOKEN": "***"}
    assert plain["policy"]["attempts_max"] == 2


def test_the_capacity_offered_is_limited_by_the_nodes_total(tmp_path: Path) -> None:
    assert capacity(configured(tmp_path, environ={"CASOLA_CAPACITY": "2"}, gpus=3)) == 2
    assert capacity(configured(tmp_path, environ={"CASOLA_CAPACITY": "6"}, gpus=3)) == 6


def test_an_engine_program_that_is_not_there_is_pointed_out_once(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"VLLM_SERVE_COMMAND": "no-such-program"}, gpus=3)
    assert missing_programs(config) == [
        "executor gpu0: there is no program 'no-such-program' on its PATH; install it, or name another one"
    ]
    assert missing_programs(configured(tmp_path, environ={"VLLM_SERVE_COMMAND": "sh"})) == []


def test_a_program_is_looked_for_on_the_executors_own_path(tmp_path: Path) -> None:
    program = tmp_path / "bin" / "my-engine"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    toml = (
        f'[executors.environment]\nPATH = "{program.parent}"\n[executors.engine]\nserve_command = "my-engine"'
    )
    assert missing_programs(configured(tmp_path, toml)) == []


@pytest.fixture
def _small_node(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = {
        **REQUIRED,
        "GPUWARD_STATE_DIR": str(tmp_path / "state"),
        "GPUWARD_RUNTIME_DIR": str(tmp_path / "run"),
        "GPUWARD_ENGINE_KIND": "echo",
        "GPUWARD_EXECUTOR_COUNT": "2",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_small_node")
@pytest.mark.parametrize("words", ["", "--json"])
def test_the_command_prints_and_writes_nothing_else(
    words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert COMMAND.run(parser_of(COMMAND).parse_args(shlex.split(words))) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    if words:
        assert [executor["name"] for executor in json.loads(captured.out)["executors"]] == ["cpu0", "cpu1"]
    else:
        assert "cpu1" in captured.out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("_small_node")
def test_a_refused_configuration_ends_with_2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_PORT", "x")
    assert COMMAND.run(parser_of(COMMAND).parse_args([])) == 2


def test_the_table_cannot_be_used_to_write_on_the_terminal(tmp_path: Path) -> None:
    environ = {"CASOLA_CONFIG_ID": "a\x1b[31mb\nqueue", "VLLM_MODEL": "m\x1b]0;x\x07"}
    text = table(configured(tmp_path, environ=environ), ["w\x1b"], colours=False)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "serves         a\\x1b[31mb\\x0aqueue as" in text


def test_one_job_is_one_job(tmp_path: Path) -> None:
    assert "1 job at once" in table(configured(tmp_path), [], colours=False)
