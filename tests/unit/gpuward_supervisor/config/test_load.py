"""Loading: file, environment, machine; or every problem at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gpuward_health.samples import GpuInventory
from gpuward_ipc.startup import EngineKind, EngineSpec
from gpuward_supervisor.config.load import load
from gpuward_supervisor.config.schema import ConfigFile, LogFormat, LogLevel
from gpuward_supervisor.core.policy import ExecutorPlan, Policy
from gpuward_supervisor.errors import ConfigInvalid, GpusUnknown
from gpuward_supervisor.sources.base import CasolaSettings
from support.configuration import REQUIRED, configured, gpu, problems
from support.source_tree import ROOT


def test_a_container_of_the_reference_worker_starts_unchanged(tmp_path: Path) -> None:
    """Nothing but what its scheduler sets, on a machine without a driver."""
    config = configured(tmp_path)
    (executor,) = config.executors
    assert executor.engine == EngineSpec(
        kind=EngineKind.VLLM,
        host="127.0.0.1",
        port=8000,
        model="meta-llama/Llama-2-7b-chat-hf",
        served_model_name="default",
        serve_command="vllm",
        start_timeout_s=600.0,
    )
    assert executor.slots == 1
    assert config.casola.token.reveal() == ""
    assert (config.log_level, config.log_format) == (LogLevel.INFO, LogFormat.AUTO)
    assert config.notes == ()


def test_the_defaults_of_the_file_are_those_of_the_core(tmp_path: Path) -> None:
    policy = configured(tmp_path).policy
    core = Policy(executors=(ExecutorPlan(policy.executors[0].name, 1),), sources=policy.sources)
    assert policy == msgspec.structs.replace(core, start_timeout_s=630.0)


def test_the_defaults_of_the_file_are_those_of_engines_and_connection() -> None:
    engine = ConfigFile().executors.engine
    spec = EngineSpec(kind=EngineKind.VLLM, model=engine.model)
    for name in EngineSpec.__struct_fields__:
        if name != "port":
            assert getattr(engine, name) == getattr(spec, name), name
    assert ConfigFile().executors.port_base == spec.port
    settings = CasolaSettings(url="", config_id="", worker_id="")
    assert ConfigFile().limits.inbound_max_bytes == settings.inbound_max_bytes
    assert ConfigFile().limits.transfer_max_bytes == settings.transfers.max_bytes


def test_every_number_of_the_file_reaches_the_policy(tmp_path: Path) -> None:
    toml = """
        [node]
        shutdown_grace_s = 1
        source_close_s = 2
        job_notes = false
        [executors]
        heartbeat_s = 3
        heartbeat_timeout_s = 40
        hello_timeout_s = 5
        [executors.engine]
        start_timeout_s = 6
        stop_grace_s = 7
        [restarts]
        backoff_first_s = 8
        backoff_max_s = 9
        backoff_jitter = 0.1
        backoff_reset_s = 11
        intensity = 12
        period_s = 13
        [dispatch]
        attempts_max = 14
        transient_wait_s = 15
        lease_renew_s = 16
        reassign_after_s = 17
        capacity_settle_s = 18
        reregister_min_s = 19
        [limits]
        upload_threshold_bytes = 2000
        inline_result_max_bytes = 2100
        outbox_max = 22
    """
    policy = configured(tmp_path, toml).policy
    assert policy == Policy(
        executors=policy.executors,
        sources=policy.sources,
        shutdown_grace_s=1,
        source_close_s=2,
        job_notes=False,
        heartbeat_s=3,
        heartbeat_timeout_s=40,
        hello_timeout_s=5,
        start_timeout_s=36,
        engine_stop_s=7,
        backoff_first_s=8,
        backoff_max_s=9,
        backoff_jitter=0.1,
        backoff_reset_s=11,
        restart_intensity=12,
        restart_period_s=13,
        attempts_max=14,
        transient_wait_s=15,
        lease_renew_s=16,
        reassign_after_s=17,
        capacity_settle_s=18,
        reregister_min_s=19,
        upload_threshold_bytes=2000,
        inline_result_max_bytes=2100,
        outbox_max=22,
    )


def test_the_example_configures_a_node(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("abc")
    example = (
        (ROOT / "deploy" / "node.toml").read_text().replace("/etc/gpuward/token", str(tmp_path / "token"))
    )
    config = configured(tmp_path, example, gpus=2, required=False)
    assert [(executor.name, executor.slots) for executor in config.executors] == [("gpu0", 8), ("gpu1", 8)]
    assert config.warnings == ()


def test_all_problems_are_listed_at_once_wherever_they_come_from(tmp_path: Path) -> None:
    toml = """
        [node]
        nme = "a"
        [source.casola]
        url = "https://h"
        token_file = "missing"
        [executors]
        gpus = [0, 0]
        slots = "8"
        [restarts]
        backoff_first_s = 100
    """
    found = problems(
        tmp_path, toml, environ={"VLLM_PORT": "x", "VLLM_EXTRA_ARGS": "'"}, gpus=1, required=False
    )
    starts = [
        'environment: VLLM_PORT = "x"',
        'node.toml: node.nme = "a"',
        'node.toml: executors.slots = "8"',
        "node.toml: source.casola.token_file",
        'node.toml: source.casola.url = "https://h"',
        "node.toml: source.casola.config_id",
        'environment: VLLM_EXTRA_ARGS = "\'"',
        "node.toml: executors.gpus: GPU 0 is named for two",
        "node.toml: restarts.backoff_first_s = 100",
    ]
    assert len(found) == len(starts)
    assert [text for text, start in zip(found, starts, strict=True) if not text.startswith(start)] == []


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            "[restarts]\nbackoff_first_s = 61",
            "restarts.backoff_first_s = 61: expected at most restarts.backoff_max_s = 60",
        ),
        (
            "[executors]\nheartbeat_timeout_s = 1.5",
            "executors.heartbeat_timeout_s = 1.5: expected at least twice",
        ),
        (
            "[limits]\nupload_threshold_bytes = 8192\ninline_result_max_bytes = 4096",
            "limits.upload_threshold_bytes = 8192: expected at most limits.inline_result_max_bytes = 4096",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(tmp_path: Path, toml: str, problem: str) -> None:
    found = problems(tmp_path, toml)
    assert len(found) == 1
    assert found[0].startswith(f"node.toml: {problem}")


def refusal(path: Path) -> str:
    with pytest.raises(ConfigInvalid) as refused:
        load(path, REQUIRED, GpuInventoryNever())
    return refused.value.problems[0].text()


class GpuInventoryNever:
    """A machine without a driver."""

    def __call__(self) -> GpuInventory:
        return GpuInventory(driver=None, reason="no driver")


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    assert "cannot be read: No such file or directory; check the path" in refusal(tmp_path / "none.toml")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    (tmp_path / "a").write_bytes(b"a = '\xff'")
    assert "is not UTF-8 text: byte 5 is 0xff" in refusal(tmp_path / "a")
    (tmp_path / "b").write_text("[node]\nname = \n")
    assert "is not TOML: Invalid value (at line 2, column 8)" in refusal(tmp_path / "b")
    (tmp_path / "c").write_text("a = " + "[" * 100_000)
    assert "is nested too deeply" in refusal(tmp_path / "c")


def test_a_variable_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "node.toml").write_text('[node]\nname = "from-file"')
    config = configured(tmp_path, environ={"GPUWARD_CONFIG": str(tmp_path / "node.toml")})
    assert (config.name, config.file) == ("from-file", tmp_path / "node.toml")


def test_paths_in_the_file_are_relative_to_it(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("hunter2\n")
    config = configured(tmp_path, '[source.casola]\ntoken_file = "token"')
    assert config.casola.token.reveal() == "hunter2"


def test_paths_in_variables_are_relative_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "token").write_text("hunter2\n")
    monkeypatch.chdir(tmp_path / "here")
    config = configured(
        tmp_path, "", environ={"CASOLA_API_TOKEN_FILE": "token", "GPUWARD_STATE_DIR": "state"}
    )
    assert config.casola.token.reveal() == "hunter2"
    assert config.state_dir == tmp_path / "here" / "state"


def test_the_token_of_the_variable_wins_over_the_file(tmp_path: Path) -> None:
    toml = '[source.casola]\ntoken_file = "none"'
    assert (
        configured(tmp_path, toml, environ={"CASOLA_API_TOKEN": "hunter2"}).casola.token.reveal() == "hunter2"
    )


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file"),
        ("", "holds no usable secret: it is empty"),
        ("a\nhunter2", "one line"),
    ],
)
def test_a_token_file_that_holds_no_token_is_refused_without_showing_it(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    if content is not None:
        (tmp_path / "token").write_text(content)
    (text,) = problems(tmp_path, '[source.casola]\ntoken_file = "token"')
    assert text.startswith("node.toml: source.casola.token_file: token ")
    assert problem in text
    assert "hunter2" not in text


def test_a_token_that_could_end_a_header_is_refused_without_showing_it(tmp_path: Path) -> None:
    assert problems(tmp_path, environ={"CASOLA_API_TOKEN": "hunter2\r\nX: 1"}) == [
        "environment: CASOLA_API_TOKEN = ***: it is not one line of printable ASCII characters"
    ]


def test_a_driver_that_does_not_answer_is_a_failure_and_no_refusal(tmp_path: Path) -> None:
    sick = GpuInventory(driver=None, error="NVML did not answer in 15 s")
    with pytest.raises(
        GpusUnknown, match=r"NVML did not answer in 15 s; to start without them, set .*GPUWARD_GPUS=none"
    ):
        configured(tmp_path, gpus=sick)
    assert configured(tmp_path, environ={"GPUWARD_GPUS": "none"}, gpus=sick).executors[0].name == "cpu0"


def test_a_lost_gpu_is_told_and_the_others_run(tmp_path: Path) -> None:
    partial = GpuInventory(driver="580", gpus=(gpu(1),), error="GPU 0 of NVML's list does not answer")
    config = configured(tmp_path, gpus=partial)
    assert [executor.gpus for executor in config.executors] == [(1,)]
    assert config.warnings == ("the list of GPUs is not complete: GPU 0 of NVML's list does not answer",)


def test_the_machine_is_asked_once_at_most(tmp_path: Path) -> None:
    asked = []

    def inventory() -> GpuInventory:
        asked.append(1)
        return GpuInventory(driver="580", gpus=(gpu(0), gpu(1)))

    environ = {**REQUIRED, "GPUWARD_STATE_DIR": str(tmp_path), "GPUWARD_RUNTIME_DIR": str(tmp_path / "r")}
    load(None, {**environ, "GPUWARD_GPUS": "0,1"}, inventory)
    assert len(asked) == 1
    load(None, {**environ, "GPUWARD_EXECUTOR_COUNT": "2"}, inventory)
    assert len(asked) == 1


def test_settings_of_the_file_without_use_are_noted(tmp_path: Path) -> None:
    config = configured(tmp_path, '[source.casola]\nqueue_id = "q"', environ={"CASOLA_API_URL": "https://a"})
    assert sorted(config.notes) == [
        "CASOLA_API_URL is accepted, but nothing uses it yet",
        "source.casola.queue_id is accepted, but nothing uses it yet",
    ]


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    assert configured(tmp_path, '\ufeff[node]\nname = "from-notepad"').name == "from-notepad"
