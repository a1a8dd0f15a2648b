"""A refused configuration is told on standard error, with the exit code of its reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_health import gpu
from gpuward_health.samples import GpuInventory
from gpuward_supervisor.cli.configuration import load_or_complain
from gpuward_supervisor.config.node import NodeConfig
from support.configuration import REQUIRED


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUWARD_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("GPUWARD_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("GPUWARD_GPUS", "none")
    return monkeypatch


@pytest.mark.usefixtures("environment")
def test_a_sound_configuration_is_loaded() -> None:
    config = load_or_complain(None)
    assert isinstance(config, NodeConfig)
    assert config.casola.config_id == "my-model"


@pytest.mark.usefixtures("environment")
def test_every_problem_is_told_and_the_exit_code_is_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "node.toml"
    file.write_text("[node]\nnme = 1\n[executors]\nslots = 0\n")
    assert load_or_complain(str(file)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[0] == "gpuward: the configuration has 2 problems:"
    assert captured.err.splitlines()[1].startswith(f"  {file}: node.nme = 1: there is no such key")


def test_one_problem_is_one_problem(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("CASOLA_CONFIG_ID")
    assert load_or_complain(None) == 2
    assert capsys.readouterr().err.splitlines()[0] == "gpuward: the configuration has 1 problem:"


def test_gpus_that_do_not_answer_are_a_failure(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("GPUWARD_GPUS")
    environment.setattr(gpu, "list_gpus", lambda: GpuInventory(driver=None, error="NVML is stuck"))
    assert load_or_complain(None) == 1
    assert capsys.readouterr().err.startswith(
        "gpuward: the GPUs of this machine cannot be listed: NVML is stuck"
    )


def test_a_mistyped_variable_is_pointed_out_beside_what_is_missing_for_it(
    environment: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    environment.delenv("CASOLA_CONFIG_ID")
    environment.setenv("CASOLA_CONFG_ID", "my-model")
    assert load_or_complain(None) == 2
    assert "  warning: environment: CASOLA_CONFG_ID is not known; did you mean CASOLA_CONFIG_ID?" in (
        capsys.readouterr().err.splitlines()
    )
