"""What an incarnation is started with: its pinning, its folders, and no secret that it does not need."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gpuward_ipc.endpoints import ENV_CONFIG, ENV_EXECUTOR, ENV_LINK
from gpuward_ipc.startup import EngineKind, EngineSpec, read_start
from gpuward_ipc.types import ExecutorName, Incarnation, SourceName
from gpuward_supervisor.config.node import ExecutorSetup, NodeConfig, Pinning
from gpuward_supervisor.config.schema import LogFormat, LogLevel
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.secrets import Secret
from gpuward_supervisor.sources.base import CasolaSettings
from gpuward_supervisor.spawning import Spawning, engine_summary

GPU0 = ExecutorName("gpu0")
TWO = Incarnation(2)
ENVIRON = {
    "PATH": "/usr/bin",
    "NCCL_DEBUG": "INFO",
    "CASOLA_API_TOKEN": "queue-secret",
    "CASOLA_WS_URL": "ws://q",
    "GPUWARD_CONFIG": "node.toml",
    "VLLM_PORT": "8000",
    "VLLM_EXTRA_ARGS": "--api-key x",
    "VLLM_LOGGING_LEVEL": "DEBUG",
    "HF_TOKEN": "model-secret",
}


def spawning(folder: Path, kind: EngineKind = EngineKind.VLLM, **setup: object) -> Spawning:
    executor = ExecutorSetup(
        name=GPU0,
        pinning=setup.pop("pinning", Pinning.PINNED),  # type: ignore[arg-type]
        gpus=(3,),
        slots=4,
        engine=EngineSpec(kind, model="m"),
        **setup,  # type: ignore[arg-type]
    )
    config = NodeConfig(
        file=None,
        name="node",
        state_dir=folder / "state",
        runtime_dir=folder / "run",
        log_level=LogLevel.INFO,
        log_format=LogFormat.JSON,
        casola=CasolaSettings(url="ws://q", config_id="c", worker_id="w", token=Secret("queue-secret")),
        policy=Policy(executors=(ExecutorPlan(GPU0, 4),), sources=(SourceName("casola"),)),
        executors=(executor,),
        hf_token=Secret("model-secret"),
    )
    return Spawning(config, "ipc:///run/x/executors.sock", folder / "state" / "transit", ENVIRON)


def test_a_pinned_executor_sees_its_gpu_by_index_in_bus_order(tmp_path: Path) -> None:
    env = spawning(tmp_path).launch(GPU0, TWO).env
    assert env["CUDA_VISIBLE_DEVICES"] == "3"
    assert env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_an_unpinned_executor_sees_what_the_supervisor_sees(tmp_path: Path) -> None:
    env = spawning(tmp_path, pinning=Pinning.UNPINNED).launch(GPU0, TWO).env
    assert "CUDA_VISIBLE_DEVICES" not in env and "CUDA_DEVICE_ORDER" not in env


def test_an_executor_without_gpus_sees_none(tmp_path: Path) -> None:
    assert spawning(tmp_path, pinning=Pinning.NO_GPU).launch(GPU0, TWO).env["CUDA_VISIBLE_DEVICES"] == ""


def test_it_is_tagged_and_told_where_to_connect(tmp_path: Path) -> None:
    launch = spawning(tmp_path).launch(GPU0, TWO)
    assert launch.env[ENV_EXECUTOR] == "gpu0.2"
    assert launch.env[ENV_LINK] == "ipc:///run/x/executors.sock"
    start = read_start(Path(launch.env[ENV_CONFIG]))
    assert (start.executor, start.incarnation, start.slots, start.gpus) == (GPU0, TWO, 4, (3,))
    assert launch.work_dir == tmp_path / "run" / "gpu0.2" == Path(start.work_dir)


def test_the_queues_credentials_and_our_settings_stay_with_the_supervisor(tmp_path: Path) -> None:
    env = spawning(tmp_path).launch(GPU0, TWO).env
    assert "queue-secret" not in str(dict(env))
    assert not {"CASOLA_API_TOKEN", "CASOLA_WS_URL", "GPUWARD_CONFIG", "VLLM_PORT", "VLLM_EXTRA_ARGS"} & set(
        env
    )


def test_everything_else_is_inherited(tmp_path: Path) -> None:
    env = spawning(tmp_path, environment={"EXTRA": "1"}).launch(GPU0, TWO).env
    assert (env["PATH"], env["NCCL_DEBUG"], env["VLLM_LOGGING_LEVEL"], env["EXTRA"]) == (
        "/usr/bin",
        "INFO",
        "DEBUG",
        "1",
    )


@pytest.mark.parametrize(
    ("kind", "has_it"),
    [
        (EngineKind.VLLM, True),
        (EngineKind.COMMAND, True),
        (EngineKind.SIMULATED, False),
        (EngineKind.ECHO, False),
    ],
)
def test_the_model_hubs_token_goes_only_to_engines_that_load_models(
    tmp_path: Path, kind: EngineKind, has_it: bool
) -> None:
    assert ("model-secret" in str(dict(spawning(tmp_path, kind).launch(GPU0, TWO).env))) is has_it


def test_no_secret_is_on_the_command_line_or_in_the_start_file(tmp_path: Path) -> None:
    launch = spawning(tmp_path).launch(GPU0, TWO)
    text = " ".join(launch.argv) + Path(launch.env[ENV_CONFIG]).read_text()
    assert "queue-secret" not in text and "model-secret" not in text


def test_folders_are_private_and_fresh(tmp_path: Path) -> None:
    ours = spawning(tmp_path)
    first = ours.launch(GPU0, TWO)
    assert first.work_dir is not None
    (first.work_dir / "left over").write_text("x")
    again = ours.launch(GPU0, TWO)
    assert again.work_dir is not None
    assert not (again.work_dir / "left over").exists()
    for folder in (again.work_dir, ours.spool_of(GPU0, TWO)):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_forget_removes_the_spool_folder(tmp_path: Path) -> None:
    ours = spawning(tmp_path)
    ours.launch(GPU0, TWO)
    ours.forget(GPU0, TWO)
    ours.forget(GPU0, TWO)
    assert not ours.spool_of(GPU0, TWO).exists()


def test_the_summary_names_what_runs(tmp_path: Path) -> None:
    setup = ExecutorSetup(
        name=GPU0, pinning=Pinning.PINNED, gpus=(0, 1), slots=2, engine=EngineSpec(EngineKind.VLLM, port=8016)
    )
    assert engine_summary(setup) == {
        "executor": "gpu0",
        "slots": 2,
        "engine": "vllm",
        "gpus": "0,1",
        "port": 8016,
    }
