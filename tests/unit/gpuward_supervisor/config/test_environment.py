"""Variables become settings, each at its place."""

from __future__ import annotations

from typing import Any

import pytest

from gpuward_supervisor.config.environment import VARIABLES, Use, overlay, read_gpus
from gpuward_supervisor.config.findings import Findings
from gpuward_supervisor.config.schema import ConfigFile
from gpuward_supervisor.config.walk import sound_part, type_at

#: For each setting, a text as the environment has it and the value it means.
SAMPLES: dict[str, tuple[str, object]] = {
    "CASOLA_WS_URL": ("ws://h:1", "ws://h:1"),
    "CASOLA_CONFIG_ID": ("c", "c"),
    "CASOLA_INSTANCE_ID": ("vast-1", "vast-1"),
    "CASOLA_QUEUE_ID": ("q", "q"),
    "CASOLA_CAPACITY": ("8", 8),
    "CASOLA_API_TOKEN_FILE": ("/t", "/t"),
    "CASOLA_API_URL": ("https://a", "https://a"),
    "CASOLA_HEARTBEAT_INTERVAL": ("60", 60.0),
    "CASOLA_LOGS_URL": ("https://l", "https://l"),
    "CASOLA_LOG_FLUSH_INTERVAL": ("30", 30.0),
    "CASOLA_METRICS_URL": ("https://m", "https://m"),
    "CASOLA_BACKPRESSURE_CHECK_INTERVAL": ("-1", -1.0),
    "CASOLA_BACKPRESSURE_PAUSE_THRESHOLD": ("3", 3),
    "CASOLA_BACKPRESSURE_RESUME_THRESHOLD": ("2", 2),
    "CASOLA_EXPECTED_GPU_NAME": ("H200", "H200"),
    "CASOLA_EXPECTED_VRAM_GB": ("141.5", 141.5),
    "CASOLA_SHUTDOWN_GRACE_PERIOD": ("2.5", 2.5),
    "VLLM_MODEL": ("m", "m"),
    "VLLM_SERVED_MODEL_NAME": ("s", "s"),
    "VLLM_HOST": ("0.0.0.0", "0.0.0.0"),
    "VLLM_PORT": ("9000", 9000),
    "VLLM_STARTUP_TIMEOUT": ("120", 120.0),
    "VLLM_EXTRA_ARGS": ("-tp 2", "-tp 2"),
    "VLLM_SERVE_COMMAND": ("vllm-omni", "vllm-omni"),
    "HF_TOKEN_FILE": ("/h", "/h"),
    "GPUWARD_STATE_DIR": ("/s", "/s"),
    "GPUWARD_RUNTIME_DIR": ("/r", "/r"),
    "GPUWARD_LOG_LEVEL": ("WARNING", "warning"),
    "GPUWARD_LOG_FORMAT": ("json", "json"),
    "GPUWARD_ENGINE_KIND": ("simulated", "simulated"),
    "GPUWARD_GPUS": ("0,1", [0, 1]),
    "GPUWARD_EXECUTOR_COUNT": ("3", 3),
}


def overlaid(environ: dict[str, str], tree: dict[str, Any] | None = None) -> tuple[dict[str, Any], Findings]:
    findings = Findings("node.toml")
    tree = {} if tree is None else tree
    overlay(tree, environ, findings)
    return tree, findings


def at(tree: dict[str, Any], path: tuple[str, ...]) -> object:
    value: Any = tree
    for key in path:
        value = value[key]
    return value


SETTINGS = [variable for variable in VARIABLES.values() if variable.use is Use.SETTING]


@pytest.mark.parametrize("variable", SETTINGS, ids=lambda variable: variable.name)
def test_every_variable_works_alone(variable: Any) -> None:
    text, value = SAMPLES[variable.name]
    tree, findings = overlaid({variable.name: text})
    assert at(tree, variable.path) == value
    assert findings.place(variable.path) == ("environment", variable.name)
    assert sound_part(tree, ConfigFile, findings) == tree
    assert findings.problems == []
    type_at(ConfigFile, variable.path)


@pytest.mark.parametrize("variable", SETTINGS, ids=lambda variable: variable.name)
def test_an_empty_variable_counts_as_not_set(variable: Any) -> None:
    tree, findings = overlaid({variable.name: " "})
    assert tree == {}
    assert findings.problems == []


def test_the_environment_wins_over_the_file() -> None:
    tree, _ = overlaid({"VLLM_PORT": "9000"}, {"executors": {"port_base": 1, "slots": 2}})
    assert tree == {"executors": {"port_base": 9000, "slots": 2}}


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("VLLM_PORT", "http", "expected a whole number"),
        ("CASOLA_SHUTDOWN_GRACE_PERIOD", "5s", "expected a number"),
        ("GPUWARD_GPUS", ";", "expected `each`, `none`, a number of GPUs"),
    ],
)
def test_a_text_that_is_no_such_value_is_refused_by_the_variables_name(
    name: str, text: str, expected: str
) -> None:
    tree, findings = overlaid({name: text})
    assert findings.problems[0].text().startswith(f'environment: {name} = "{text}": {expected}')
    assert tree == {}
    assert findings.refused(VARIABLES[name].path)


def test_a_file_with_something_else_in_place_of_a_table_is_left_to_its_own_problem() -> None:
    tree, findings = overlaid({"VLLM_PORT": "9000"}, {"executors": 3})
    assert tree == {"executors": 3}
    assert findings.problems == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("each", "each"),
        ("none", "none"),
        ("4", 4),
        ("0,", [0]),
        ("0, 2", [0, 2]),
        ("GPU-12ab,3", ["GPU-12ab", 3]),
        ("0,1;2,3", [[0, 1], [2, 3]]),
    ],
)
def test_gpus_in_one_variable(text: str, value: object) -> None:
    assert read_gpus(text) == value


def test_settings_without_effect_are_noted_and_not_refused() -> None:
    _, findings = overlaid({"CASOLA_MAX_JOBS": "abc", "CASOLA_QUEUE_ID": "q", "CASOLA_LEASE_SECONDS": "30"})
    assert findings.problems == []
    assert sorted(findings.notes) == [
        "CASOLA_LEASE_SECONDS is accepted and has no effect",
        "CASOLA_MAX_JOBS is accepted and has no effect",
        "CASOLA_QUEUE_ID is accepted, but nothing uses it yet",
    ]


def test_a_likely_slip_is_pointed_out() -> None:
    _, findings = overlaid({"GPUWARD_STATEDIR": "/x", "CASOLA_CAPACTY": "2", "GPUWARD_ZZZZZZZZ": "1"})
    assert findings.warnings[0] == "environment: CASOLA_CAPACTY is not known; did you mean CASOLA_CAPACITY?"
    assert (
        findings.warnings[1] == "environment: GPUWARD_STATEDIR is not known; did you mean GPUWARD_STATE_DIR?"
    )
    assert findings.warnings[2].startswith("environment: GPUWARD_ZZZZZZZZ is not known; known are GPUWARD_")


def test_other_programs_variables_are_nobodys_business() -> None:
    _, findings = overlaid(
        {"CASOLA_SOMETHING_ELSE_ENTIRELY": "1", "VLLM_LOGGING_LEVEL": "INFO", "GPUWARD_NODE": "x"}
    )
    assert findings.warnings == []
