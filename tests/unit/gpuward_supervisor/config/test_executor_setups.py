"""Executors get names, slots, ports and engines, and no two of them the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpuward_ipc.startup import EngineKind
from gpuward_supervisor.config.node import NodeConfig, Pinning
from support.configuration import configured, problems


def slots(config: NodeConfig) -> list[int]:
    return [executor.slots for executor in config.executors]


def test_one_executor_per_gpu_with_one_slot_and_ports_in_blocks(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"VLLM_PORT": "9000"}, gpus=3)
    assert [(e.name, e.gpus, e.slots, e.engine.port, e.ports) for e in config.executors] == [
        ("gpu0", (0,), 1, 9000, 16),
        ("gpu1", (1,), 1, 9016, 16),
        ("gpu2", (2,), 1, 9032, 16),
    ]


@pytest.mark.parametrize(
    ("capacity", "gpus", "expected", "offered"),
    [("8", 4, [2, 2, 2, 2], None), ("7", 3, [3, 2, 2], None), ("1", 1, [1], None), ("2", 3, [1, 1, 1], 2)],
)
def test_the_nodes_capacity_is_spread(
    tmp_path: Path, capacity: str, gpus: int, expected: list[int], offered: int | None
) -> None:
    config = configured(tmp_path, environ={"CASOLA_CAPACITY": capacity}, gpus=gpus)
    assert slots(config) == expected
    assert config.policy.capacity_max == offered
    assert [plan.slots for plan in config.policy.executors] == expected


def test_a_capacity_below_the_number_of_executors_is_pointed_out(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"CASOLA_CAPACITY": "2"}, gpus=3)
    (warning,) = config.warnings
    assert warning.startswith(
        "CASOLA_CAPACITY = 2 is less than the 3 slots of 3 executors: the queue is offered 2"
    )


def test_capacity_wins_over_slots_for_all_and_says_so(tmp_path: Path) -> None:
    config = configured(tmp_path, "[executors]\nslots = 8", environ={"CASOLA_CAPACITY": "4"}, gpus=2)
    assert slots(config) == [2, 2]
    assert config.warnings == (
        "executors.slots = 8 has no effect: CASOLA_CAPACITY = 4 is the total, spread over 2 executors",
    )
    assert (
        configured(tmp_path, "[executors]\nslots = 2", environ={"CASOLA_CAPACITY": "4"}, gpus=2).warnings
        == ()
    )


def test_slots_of_one_executor_stay_and_the_rest_is_spread(tmp_path: Path) -> None:
    toml = "[[executor]]\ngpus = [0]\nslots = 5\n[[executor]]\ngpus = [1]\n[[executor]]\ngpus = [2]"
    config = configured(tmp_path, toml, environ={"CASOLA_CAPACITY": "8"}, gpus=3)
    assert slots(config) == [5, 2, 1]
    assert config.policy.capacity_max is None


def test_more_capacity_than_slots_is_pointed_out(tmp_path: Path) -> None:
    config = configured(
        tmp_path, "[[executor]]\ngpus = [0]\nslots = 5", environ={"CASOLA_CAPACITY": "8"}, gpus=1
    )
    assert slots(config) == [5]
    assert "the queue is offered 5" in config.warnings[0]


LISTED = """
[executors]
slots = 4
environment = { A = "1", B = "1" }
[executors.engine]
model = "m"
extra_args = "--seed 1"
[[executor]]
name = "large"
gpus = [0, 1]
slots = 16
environment = { B = "2" }
engine.extra_args = ["-tp", "2"]
[[executor]]
gpus = [2]
port = 9999
engine.model = "small"
[[executor]]
gpus = "none"
engine.kind = "simulated"
[[executor]]
engine.kind = "echo"
"""


def test_listed_executors_take_over_what_they_do_not_say_themselves(tmp_path: Path) -> None:
    config = configured(tmp_path, LISTED, environ={"VLLM_PORT": "8100"}, gpus=4)
    large, small, simulated, echo = config.executors
    assert (large.name, large.gpus, large.slots, large.engine.port) == ("large", (0, 1), 16, 8100)
    assert (large.engine.model, large.engine.extra_args) == ("m", ("-tp", "2"))
    assert large.environment == {"A": "1", "B": "2"}
    assert (small.name, small.slots, small.engine.port) == ("gpu2", 4, 9999)
    assert (small.engine.model, small.engine.extra_args) == ("small", ("--seed", "1"))
    assert (simulated.name, simulated.pinning, simulated.engine.port) == ("cpu0", Pinning.NO_GPU, 8132)
    assert (echo.name, echo.engine.kind, echo.pinning) == ("cpu1", EngineKind.ECHO, Pinning.NO_GPU)


def test_a_listed_executor_must_say_its_gpus_where_there_are_some(tmp_path: Path) -> None:
    toml = '[[executor]]\nname = "a"'
    (problem,) = problems(tmp_path, toml, gpus=2)
    assert problem.startswith(
        "node.toml: executor[0].gpus: there are GPUs here (0, 1), and nothing says which"
    )
    assert configured(tmp_path, toml, gpus=0).executors[0].pinning is Pinning.UNPINNED


@pytest.mark.parametrize("key", ["gpus = [0]", "count = 2", "gpus_per_executor = 2"])
def test_listed_executors_stand_alone(tmp_path: Path, key: str) -> None:
    (problem,) = problems(tmp_path, f"[executors]\n{key}\n[[executor]]\ngpus = [0]", gpus=2)
    assert f"executors.{key}: cannot stand beside [[executor]] tables" in problem


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        (
            'name = "a"\ngpus = [0]|name = "a"\ngpus = [1]',
            'executor[1].name = "a": expected a name that no other',
        ),
        (
            "gpus = [0]|gpus = [0]\nname = 'b'",
            "executor[1].gpus: GPU 0 is named for two executors, gpu0 and b",
        ),
        (
            "gpus = [0]|gpus = [1]\nport = 8000",
            "executor[1].port = 8000: executors gpu0 and gpu1 would listen on the same",
        ),
        (
            "gpus = [0]\nport = 8016|gpus = [1]",
            "executor[0].port = 8016: executors gpu0 and gpu1 would listen on the same",
        ),
        (
            "gpus = [0]\nport = 65530",
            "executor[0].port = 65530: the ports of executor gpu0 would be 65530 to 65545",
        ),
        (
            'gpus = [0]\nengine.extra_args = "--x \'a"',
            'executor[0].engine.extra_args = "--x \'a": cannot be split',
        ),
        (
            "gpus = [0, 1]\nengine.extra_args = '-tp 3'",
            "executor[0].gpus = [0, 1]: its engine asks for 3 GPUs",
        ),
        (
            "gpus = [0]\nengine.kind = 'command'",
            "executors.engine.command: expected the program and its arguments",
        ),
        (
            "gpus = [0]\nenvironment.CUDA_VISIBLE_DEVICES = '1'",
            'executor[0].environment.CUDA_VISIBLE_DEVICES = "1": ',
        ),
        (
            "gpus = [0]\nenvironment.GPUWARD_LINK = '1'",
            'executor[0].environment.GPUWARD_LINK = "1": expected a variable',
        ),
        (
            "gpus = [0]\nenvironment.'A=B' = '1'",
            "executor[0].environment.'A=B' = \"1\": expected a name without `=`",
        ),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, tables: str, problem: str) -> None:
    toml = "".join(f"[[executor]]\n{table}\n" for table in tables.split("|"))
    found = problems(tmp_path, toml, gpus=2)
    assert len(found) == 1
    assert found[0].startswith(f"node.toml: {problem}")


def test_arguments_for_all_that_are_wrong_are_told_once(tmp_path: Path) -> None:
    toml = '[executors.engine]\nextra_args = "-tp x"\n[[executor]]\ngpus = [0]\n[[executor]]\ngpus = [1]'
    (problem,) = problems(tmp_path, toml, gpus=2)
    assert problem.startswith('node.toml: executors.engine.extra_args = "-tp x": -tp needs a whole number')


def test_ports_beyond_the_last_are_refused(tmp_path: Path) -> None:
    (problem,) = problems(tmp_path, environ={"VLLM_PORT": "65530"}, gpus=1)
    assert problem.startswith(
        "environment: VLLM_PORT = 65530: the ports of executor gpu0 would be 65530 to 65545"
    )
    assert problems(tmp_path, "[executors]\nport_base = 65535\nport_block = 1", gpus=1) == []


def test_echo_executors_need_no_ports(tmp_path: Path) -> None:
    environ = {"GPUWARD_ENGINE_KIND": "echo", "GPUWARD_EXECUTOR_COUNT": "3", "VLLM_PORT": "65530"}
    assert len(configured(tmp_path, environ=environ).executors) == 3


def test_a_name_that_is_taken_is_given_to_no_other(tmp_path: Path) -> None:
    toml = '[[executor]]\nname = "cpu0"\ngpus = "none"\n[[executor]]\ngpus = "none"'
    assert [executor.name for executor in configured(tmp_path, toml).executors] == ["cpu0", "cpu1"]


def test_arguments_are_split_as_a_shell_would(tmp_path: Path) -> None:
    config = configured(tmp_path, environ={"VLLM_EXTRA_ARGS": """--x '{"a": 1}' --y=z\\ w"""})
    assert config.executors[0].engine.extra_args == ("--x", '{"a": 1}', "--y=z w")


def test_a_command_without_the_command_kind_has_no_effect_and_says_so(tmp_path: Path) -> None:
    config = configured(tmp_path, '[executors.engine]\ncommand = ["a"]', gpus=1)
    assert config.warnings == ('executors.engine.command has no effect: kind is "vllm", not "command"',)


def test_a_secret_in_the_environment_table_is_pointed_out_without_its_value(tmp_path: Path) -> None:
    config = configured(tmp_path, '[executors.environment]\nMY_TOKEN = "hunter2"', gpus=1)
    assert "executors.environment.MY_TOKEN looks like a secret" in config.warnings[0]
    assert "hunter2" not in config.warnings[0]


@pytest.mark.parametrize(
    "option", ["--port 9", "--port=9", "--host 0.0.0.0", "--served_model_name x", "--api-key k"]
)
def test_an_option_that_would_hide_the_engine_from_its_executor_is_pointed_out(
    tmp_path: Path, option: str
) -> None:
    (warning,) = configured(tmp_path, environ={"VLLM_EXTRA_ARGS": f"--x 1 {option}"}, gpus=1).warnings
    name = option.replace("=", " ").split()[0].replace("_", "-")
    assert warning.startswith(f"VLLM_EXTRA_ARGS has {name}: ")


def test_options_of_another_program_may_mean_anything(tmp_path: Path) -> None:
    toml = '[executors.engine]\nkind = "command"\ncommand = ["a"]\nextra_args = ["--port", "9"]'
    assert configured(tmp_path, toml, gpus=1).warnings == ()
