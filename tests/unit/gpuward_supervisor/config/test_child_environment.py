"""What an executor and its engine inherit."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_supervisor.config.child_environment import executor_environment
from support.configuration import REQUIRED, configured

OWN = {
    **REQUIRED,
    "PATH": "/usr/bin",
    "CASOLA_API_TOKEN": "hunter2-queue",
    "CASOLA_LOGS_URL": "https://logs.example/?sig=hunter2",
    "GPUWARD_LOG_LEVEL": "debug",
    "HF_TOKEN": "hf_hunter2",
    "AWS_SECRET_ACCESS_KEY": "aws-hunter2",
    "VLLM_MODEL": "m",
    "VLLM_API_KEY": "k-hunter2",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "CUDA_DEVICE_ORDER": "FASTEST_FIRST",
    "HF_HOME": "/cache",
}


def inherited(folder: Path, gpus: int = 2, toml: str | None = None, **more: str) -> dict[str, str]:
    environ = {**OWN, **more}
    config = configured(folder, toml, environ=environ, gpus=gpus)
    return executor_environment(config, config.executors[-1], environ)


def test_a_vllm_engine_gets_what_it_needs_and_nothing_of_the_queues(tmp_path: Path) -> None:
    assert inherited(tmp_path) == {
        "PATH": "/usr/bin",
        "HF_TOKEN": "hf_hunter2",
        "HF_HOME": "/cache",
        "AWS_SECRET_ACCESS_KEY": "aws-hunter2",
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "VLLM_PORT": "8017",
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
        "CUDA_VISIBLE_DEVICES": "1",
    }


@pytest.mark.parametrize("kind", ["simulated", "echo"])
def test_an_engine_that_loads_no_model_gets_no_secret_at_all(tmp_path: Path, kind: str) -> None:
    made = inherited(tmp_path, GPUWARD_ENGINE_KIND=kind)
    assert "hunter2" not in "".join(made.values())
    assert "VLLM_PORT" not in made
    assert made["HF_HOME"] == "/cache"


def test_the_token_of_a_file_reaches_engines_that_load_models(tmp_path: Path) -> None:
    (tmp_path / "hf").write_text("hf_file\n")
    assert inherited(tmp_path, HF_TOKEN="", HF_TOKEN_FILE=str(tmp_path / "hf"))["HF_TOKEN"] == "hf_file"


def test_an_executor_without_gpus_sees_none(tmp_path: Path) -> None:
    assert inherited(tmp_path, GPUWARD_GPUS="none")["CUDA_VISIBLE_DEVICES"] == ""


def test_an_executor_that_is_not_pinned_sees_what_the_supervisor_sees(tmp_path: Path) -> None:
    made = inherited(tmp_path, gpus=0)
    assert "CUDA_VISIBLE_DEVICES" not in made
    assert made["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_the_files_own_variables_come_last_but_never_before_the_pinning(tmp_path: Path) -> None:
    made = inherited(tmp_path, toml='[executors.environment]\nPATH = "/opt"\nVLLM_PORT = "1"')
    assert (made["PATH"], made["VLLM_PORT"], made["CUDA_VISIBLE_DEVICES"]) == ("/opt", "1", "1")


def test_a_port_block_of_one_has_no_room_for_ports_of_vllms_own(tmp_path: Path) -> None:
    assert "VLLM_PORT" not in inherited(tmp_path, toml="[executors]\nport_block = 1")
